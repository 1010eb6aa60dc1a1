"""Per-scene refinement: poses and focal length come back, bad views count less, it can be stopped, saved, resumed."""

from dataclasses import replace

import pytest
import torch
from scenes import random_cameras, random_gaussians

from da3_splat import render
from da3_splat.geometry.rotations import rigid_motion
from da3_splat.losses import image_loss, log_depth_loss
from da3_splat.metrics import relative_pose_errors
from da3_splat.refinement import Refinement, RefinementConfig, refine
from da3_splat.types import Gaussians, Views


def seen(views: int = 6, seed: int = 3) -> tuple[Gaussians, Views]:
    """Gaussians, and what cameras around see of them."""
    gaussians = random_gaussians(count=400, seed=seed, size=0.1, degree=0)
    cameras = random_cameras(views=views, seed=seed + 1, height=42, width=56)
    return gaussians, Views(images=render(gaussians, cameras).color.clamp(0, 1), cameras=cameras)


def test_rigid_motion():
    quarter = torch.tensor([0.0, 0, torch.pi / 2, 1, 2, 3], dtype=torch.float64)
    moved = rigid_motion(quarter) @ torch.tensor([1.0, 0, 0, 1], dtype=torch.float64)
    torch.testing.assert_close(moved, torch.tensor([1.0, 3, 3, 1], dtype=torch.float64))
    still = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.equal(rigid_motion(still), torch.eye(4, dtype=torch.float64).expand(2, 4, 4))
    assert torch.autograd.gradcheck(rigid_motion, (0.3 * torch.randn(2, 6, dtype=torch.float64)).requires_grad_())


def test_poses_come_back():
    """Cameras turned by a degree and moved by 2 % of the distance: the errors halve, the pictures fit again."""
    gaussians, views = seen()
    motion = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    motion = motion / motion[:, :3].norm(dim=-1, keepdim=True).repeat(1, 6) * torch.pi / 180
    motion[:, 3:] *= 4.0  # the scene is 4 away
    wrong = replace(views.cameras, world_to_camera=rigid_motion(motion)[None] @ views.cameras.world_to_camera)
    config = RefinementConfig(steps=240, poses=True, means_rate=1e-5, scales_rate=0, quats_rate=0, opacities_rate=0)
    found = refine(gaussians, replace(views, cameras=wrong), replace(config, dc_rate=0, rest_rate=0))

    def error(cameras):
        return float(relative_pose_errors(cameras, views.cameras)[0].mean())

    assert error(found.cameras) < 0.5 * error(wrong)
    assert found.psnr > 25 and found.steps == 240
    unmoved = refine(gaussians, replace(views, cameras=wrong), RefinementConfig(steps=6))
    assert torch.equal(unmoved.cameras.world_to_camera, wrong.world_to_camera)


def test_focal_gradient_against_finite_differences():
    """Carried through the pose, it is that of the loss by the logarithm of both focal lengths."""
    gaussians, views = seen()
    wrong = replace(views.cameras, intrinsics=views.cameras.intrinsics * torch.tensor([1.05, 1.05, 1])[:, None])
    refinement = Refinement(gaussians, replace(views, cameras=wrong), RefinementConfig(focal=True))

    def loss(log_focal):
        with torch.no_grad():
            refinement.log_focal.fill_(log_focal)
        return image_loss(render(gaussians, refinement._camera(2)).color[0], views.images[0, 2:3])

    loss(-0.01).backward()
    with torch.no_grad():
        slope = float(loss(-0.008) - loss(-0.012)) / 0.004
    assert float(refinement.log_focal.grad) == pytest.approx(slope, rel=0.05)


def test_focal_comes_back():
    gaussians, views = seen()
    wrong = replace(views.cameras, intrinsics=views.cameras.intrinsics * torch.tensor([1.04, 1.04, 1])[:, None])
    still = dict(means_rate=1e-6, scales_rate=0, quats_rate=0, opacities_rate=0, dc_rate=0, rest_rate=0)
    found = refine(gaussians, replace(views, cameras=wrong), RefinementConfig(steps=90, focal=True, **still))
    assert found.focal_factor == pytest.approx(1 / 1.04, abs=4e-3)
    ratio = found.cameras.intrinsics[0, :, 0, 0] / wrong.intrinsics[0, :, 0, 0]
    torch.testing.assert_close(ratio, torch.full((6,), found.focal_factor))


def test_a_bad_view_counts_less_and_is_named():
    """One picture of something else: it is named, and the others end closer to the truth than where it counts fully."""
    gaussians, views = seen(views=8, seed=11)
    images = views.images.clone()
    images[0, 5] = views.images[0, 1].flip(-1)
    names = tuple(f"photo_{view}.jpg" for view in range(8))
    wrong = replace(views, images=images, names=names)
    found = refine(gaussians, wrong, RefinementConfig(steps=64))
    assert found.doubtful == ("photo_5.jpg",)
    assert refine(gaussians, replace(views, names=names), RefinementConfig(steps=16)).doubtful == ()
    rest = [view for view in range(8) if view != 5]
    trusting = Refinement(gaussians, wrong, RefinementConfig(steps=64))
    trusting.trust = lambda: torch.ones(8)
    while trusting.share < 1:
        trusting.step()

    def error(result):
        return float((render(result.gaussians, views.cameras).color[0, rest] - views.images[0, rest]).abs().mean())

    assert error(found) < error(trusting.result())


def test_masked_pixels_do_not_count():
    gaussians, views = seen(views=3)
    masks = torch.ones(1, 3, 42, 56, dtype=torch.bool)
    masks[..., :20] = False
    garbage = torch.where(masks[:, :, None], views.images, torch.rand(1, 3, 3, 42, 56))
    first = refine(gaussians, replace(views, masks=masks), RefinementConfig(steps=6)).gaussians
    second = refine(gaussians, replace(views, images=garbage, masks=masks), RefinementConfig(steps=6)).gaussians
    assert torch.equal(first.means, second.means)


def test_by_the_clock_by_steps_and_interrupted():
    gaussians, views = seen(views=3)
    start = refine(gaussians, views, RefinementConfig(steps=None, seconds=0.0))
    assert start.steps == 0
    torch.testing.assert_close(start.gaussians.means, gaussians.means)
    torch.testing.assert_close(start.gaussians.opacities, gaussians.opacities, atol=1e-4, rtol=0)
    assert 0 < refine(gaussians, views, RefinementConfig(steps=10_000, seconds=0.3)).steps < 10_000

    def interrupt(refinement):
        if refinement.steps == 4:
            raise KeyboardInterrupt

    assert refine(gaussians, views, RefinementConfig(), watch=interrupt).steps == 4
    with pytest.raises(ValueError, match="steps or seconds"):
        RefinementConfig(steps=None)
    with pytest.raises(ValueError, match="no less than 0"):
        RefinementConfig(steps=-1)


def test_what_is_kept_gets_better():
    gaussians, views = seen(views=4)
    shifted = replace(gaussians, means=gaussians.means + 0.03)
    kept = []
    last = refine(shifted, views, RefinementConfig(steps=40), keep=kept.append)
    signals = [refined.psnr for refined in kept]
    assert len(kept) > 3 and signals == sorted(signals) and signals[-1] > signals[0] + 2
    assert last.psnr >= signals[-1] - 0.5


def test_log_depth_loss():
    target = torch.tensor([[[1.0, 2.0, 4.0]], [[1.0, 1.0, 1.0]]], dtype=torch.float64)
    mask = torch.tensor([[[True, True, True]], [[True, True, False]]])
    depth = torch.tensor([[[3.0, 6.0, 12.0 * torch.e]], [[2.0, 2.0, 100.0]]], dtype=torch.float64)
    # The first is the target times 3 but for one pixel, whose logarithm is 1 off: a third. The second fits.
    assert float(log_depth_loss(depth, target, mask)) == pytest.approx((1 / 3 + 0) / 2)
    assert float(log_depth_loss(7 * depth, target, mask)) == pytest.approx((1 / 3 + 0) / 2)
    assert float(log_depth_loss(depth, target, mask & False)) == 0.0
    slope = depth.clone().requires_grad_()
    log_depth_loss(slope, target, mask).backward()
    assert slope.grad[1, 0, 2] == 0 and slope.grad[0, 0, 2] > 0


def test_depth_pulls():
    """With the pictures saying nothing, the Gaussians move towards the depth asked for, whatever its unit."""
    gaussians, views = seen(views=3)
    rendering = render(gaussians, views.cameras)
    depth = torch.where(rendering.alpha > 0.5, rendering.depth, 0)
    tilt = torch.linspace(0.8, 1.25, 56).expand_as(depth)
    config = RefinementConfig(steps=30, depth_weight=5.0)

    def error(result):
        found = render(result.gaussians, views.cameras).depth
        return float(log_depth_loss(found[0], (depth * tilt)[0], (depth > 0)[0]))

    pulled = refine(gaussians, views, config, depth=10 * depth * tilt)
    assert error(pulled) < 0.7 * error(refine(gaussians, views, replace(config, depth_weight=0.0)))
