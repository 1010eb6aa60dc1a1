"""Losses and metrics against cases worked by hand, gradients against finite differences, and the libraries' own."""

import numpy as np
import pytest
import torch
from scenes import random_cameras
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from da3_splat.data.synthetic import make_scenes
from da3_splat.geometry.alignment import Similarity, transform_cameras
from da3_splat.geometry.poses import encode_cameras
from da3_splat.geometry.projection import rays_from_cameras
from da3_splat.geometry.rotations import quaternion_to_matrix
from da3_splat.losses import (
    CONFIDENCE_WEIGHT,
    camera_loss,
    depth_loss,
    fit_colors,
    gradient_loss,
    image_loss,
    point_loss,
    ray_loss,
    scale_shift_invariant_depth_loss,
    static_pixels,
    student_loss,
)
from da3_splat.metrics import absolute_relative_error, pose_auc, psnr, relative_pose_errors, ssim
from da3_splat.training.geometry import normalise_truth
from da3_splat.types import Cameras, Geometry, RayMap


def test_depth_loss_by_hand():
    """Two valid pixels: errors 1 and 2 with confidence 2 and 1: (2*1 - 0.2 ln 2 + 2) / 2."""
    depth = torch.tensor([[[[2.0, 5.0, 9.0]]]])
    target, confidence = torch.tensor([[[[1.0, 3.0, 1.0]]]]), torch.tensor([[[[2.0, 1.0, 7.0]]]])
    mask = torch.tensor([[[[True, True, False]]]])
    want = (2 - CONFIDENCE_WEIGHT * np.log(2) + 2) / 2
    assert depth_loss(depth, confidence, target, mask).item() == pytest.approx(want)


def test_gradient_loss_by_hand():
    """A constant offset costs nothing; a step of 3 between two of the three columns costs 3 / 2 in x."""
    target = torch.rand(1, 1, 2, 3)
    mask = torch.ones(1, 1, 2, 3, dtype=torch.bool)
    assert gradient_loss(target + 5, target, mask).item() == pytest.approx(0, abs=1e-5)
    stepped = target + torch.tensor([0.0, 3.0, 3.0])
    assert gradient_loss(stepped, target, mask).item() == pytest.approx(1.5, rel=1e-5)
    mask[..., 1] = False  # no pair of neighbours in x is left
    assert gradient_loss(stepped, target, mask).item() == pytest.approx(0, abs=1e-5)


def truth_and_perfect():
    _, truth = make_scenes(2, 3, 28, 42, seed=3, supersample=1)
    truth = normalise_truth(truth)
    rays = rays_from_cameras(truth.cameras, 16, 24)
    perfect = Geometry(
        depth=torch.where(truth.depth > 0, truth.depth, torch.ones(())), confidence=torch.ones_like(truth.depth),
        cameras=truth.cameras, ray_map=rays, camera_encoding=encode_cameras(truth.cameras),
    )  # fmt: skip
    return truth, perfect


def test_a_perfect_prediction_costs_nothing():
    truth, perfect = truth_and_perfect()
    for name, value in student_loss(perfect, truth).items():
        assert value.item() == pytest.approx(0, abs=2e-3 if name == "point" else 1e-5), name


def test_camera_loss_ignores_the_sign_and_length_of_quaternions():
    cameras = random_cameras(batch=2, views=3)
    encoding = encode_cameras(cameras)
    other = torch.cat([encoding[..., :3], -2.5 * encoding[..., 3:7], encoding[..., 7:]], dim=-1)
    assert camera_loss(other, cameras).item() == pytest.approx(0, abs=1e-6)
    other[..., 7:] += 0.25
    assert camera_loss(other, cameras).item() == pytest.approx(0.25, rel=1e-5)


def test_ray_and_point_loss_by_hand():
    zeros, ones = torch.zeros(1, 1, 2, 3, 3), torch.ones(1, 1, 2, 3, 3)
    assert ray_loss(RayMap(directions=ones, origins=2 * ones), RayMap(directions=zeros, origins=zeros)).item() == 3
    depth, mask = torch.full((1, 1, 2, 3), 4.0), torch.ones(1, 1, 2, 3, dtype=torch.bool)
    assert point_loss(depth, RayMap(directions=ones, origins=ones), zeros, mask).item() == 5


def test_truth_is_normalised_whatever_the_world():
    """A similarity of the world changes nothing: first camera at the origin, mean norm of the points 1."""
    _, truth = make_scenes(1, 3, 28, 42, seed=4, supersample=1)
    first = normalise_truth(truth)
    motion = Similarity(torch.tensor([3.0]), quaternion_to_matrix(torch.randn(1, 4)), torch.randn(1, 3))
    moved = Geometry(depth=3 * truth.depth, cameras=transform_cameras(motion, truth.cameras), sky=truth.sky)
    second = normalise_truth(moved)
    assert torch.allclose(first.depth, second.depth, atol=1e-5)
    assert torch.allclose(first.cameras.world_to_camera, second.cameras.world_to_camera, atol=1e-4)
    points = first.points()[first.depth > 0]
    assert points.norm(dim=-1).mean() == pytest.approx(1, abs=1e-4)


def test_gradients_by_finite_differences():
    truth, _ = truth_and_perfect()
    truth = truth.to(torch.float64)
    rays = rays_from_cameras(truth.cameras, 4, 6)
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    inputs = [0.5 + random(2, 3, 28, 42), 1.5 + random(2, 3, 28, 42), rays.directions + 0.3, rays.origins - 0.2]
    inputs = [value.requires_grad_() for value in (*inputs, encode_cameras(truth.cameras) + 0.1 + random(2, 3, 9))]

    def total(depth, confidence, directions, origins, encoding):
        prediction = Geometry(
            depth=depth, confidence=confidence, camera_encoding=encoding,
            ray_map=RayMap(directions=directions, origins=origins),
        )  # fmt: skip
        return sum(student_loss(prediction, truth).values())

    direction = [random(*value.shape) - 0.5 for value in inputs]
    total(*inputs).backward()
    analytic = sum((value.grad * d).sum() for value, d in zip(inputs, direction))
    with torch.no_grad():
        high, low = (total(*(v + sign * 1e-6 * d for v, d in zip(inputs, direction))) for sign in (1, -1))
    assert analytic.item() == pytest.approx(((high - low) / 2e-6).item(), rel=1e-4)


def test_gradient_of_each_student_loss():
    generator = torch.Generator().manual_seed(7)

    def random(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.5

    target, mask = random(2, 2, 3, 4), torch.rand(2, 2, 3, 4, generator=generator) < 0.7
    points, true = random(2, 2, 3, 4, 3), RayMap(directions=random(2, 2, 3, 4, 3), origins=random(2, 2, 3, 4, 3))
    cameras = random_cameras(batch=2, views=2).to(torch.float64)
    depth = random(2, 2, 3, 4).requires_grad_()
    confidence = (1 + random(2, 2, 3, 4)).requires_grad_()
    directions, origins = (random(2, 2, 3, 4, 3).requires_grad_() for _ in range(2))
    encoding = (encode_cameras(cameras) + 0.1 + 0.1 * random(2, 2, 9)).requires_grad_()
    check = torch.autograd.gradcheck
    assert check(lambda d, c: depth_loss(d, c, target, mask), (depth, confidence))
    assert check(lambda d, o: ray_loss(RayMap(directions=d, origins=o), true), (directions, origins))
    assert check(
        lambda z, d, o: point_loss(z, RayMap(directions=d, origins=o), points, mask), (depth, directions, origins)
    )
    assert check(lambda e: camera_loss(e, cameras), (encoding,))
    assert check(lambda d: gradient_loss(d, target, mask), (depth,))


def test_student_loss_does_not_see_a_similarity_of_the_world():
    """Worlds moved, turned and scaled give the same targets, so the same loss of the same prediction."""
    _, truth = make_scenes(2, 3, 28, 42, seed=3, supersample=1)
    torch.manual_seed(2)
    motion = Similarity(torch.tensor([0.3, 40.0]), quaternion_to_matrix(torch.randn(2, 4)), 5 * torch.randn(2, 3))
    depth = motion.scale[:, None, None, None] * truth.depth
    moved = Geometry(depth=depth, cameras=transform_cameras(motion, truth.cameras), sky=truth.sky)
    said = Geometry(
        depth=torch.rand(2, 3, 28, 42), confidence=1 + torch.rand(2, 3, 28, 42), camera_encoding=torch.randn(2, 3, 9),
        ray_map=RayMap(directions=torch.randn(2, 3, 16, 24, 3), origins=torch.randn(2, 3, 16, 24, 3)),
    )  # fmt: skip
    before, after = (student_loss(said, normalise_truth(world)) for world in (truth, moved))
    for name, value in before.items():
        assert after[name].item() == pytest.approx(value.item(), rel=1e-3), name


def test_metrics_against_scikit_image():
    generator = torch.Generator().manual_seed(0)
    image, target = torch.rand(2, 3, 40, 56, generator=generator), torch.rand(2, 3, 40, 56, generator=generator)
    target = 0.7 * image + 0.3 * target
    for i in range(2):
        a, b = (x[i].permute(1, 2, 0).numpy() for x in (image, target))
        assert psnr(image, target)[i].item() == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1), rel=1e-4)
        theirs = structural_similarity(
            a, b, channel_axis=2, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ssim(image, target)[i].item() == pytest.approx(theirs, abs=5e-3)
    assert image_loss(image, image).item() == pytest.approx(0, abs=1e-5)


def test_absolute_relative_error_by_hand():
    """Scale 2 is taken out; one of four valid pixels is 50 % off."""
    target = torch.tensor([[[2.0, 4.0, 6.0, 8.0, 0.0]]])
    depth = torch.tensor([[[1.0, 2.0, 3.0, 6.0, 5.0]]])
    assert absolute_relative_error(depth, target).tolist() == pytest.approx([0.125])


def test_pose_auc_by_hand():
    """Errors 0.5, 1.5 and 40 degrees: a third, two thirds and two thirds lie below 1, 2 and 3 degrees."""
    errors = torch.tensor([[0.5, 1.5, 40.0], [90.0, 90.0, 90.0]])
    assert pose_auc(errors, 3).tolist() == pytest.approx([5 / 9, 0.0])
    assert pose_auc(errors[:1], 60).item() == pytest.approx((1 / 3 + 39 * 2 / 3 + 20) / 60)


def test_relative_pose_errors_by_hand():
    """A second camera that is turned by 20 degrees too little and stands to the side instead of in front."""
    angle = np.radians(20)
    turn = torch.tensor([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    true = torch.eye(4).repeat(1, 2, 1, 1)
    true[0, 1, :3, :3], true[0, 1, 2, 3] = turn, 1.0
    said = torch.eye(4).repeat(1, 2, 1, 1)
    said[0, 1, 0, 3] = -5.0
    intrinsics = torch.eye(3).expand(1, 2, 3, 3)

    def cameras(poses):
        return Cameras(world_to_camera=poses, intrinsics=intrinsics, height=2, width=3)

    rotation, direction = relative_pose_errors(cameras(said), cameras(true))
    assert (rotation.item(), direction.item()) == pytest.approx((20, 90), abs=1e-3)
    opposite = true.clone()
    opposite[0, 1, 2, 3] = -3.0  # the sign of the direction does not count
    assert relative_pose_errors(cameras(opposite), cameras(true))[1].item() == pytest.approx(0, abs=1e-3)
    nowhere = torch.eye(4).repeat(1, 2, 1, 1)
    assert relative_pose_errors(cameras(nowhere), cameras(true))[1].item() == 90
    assert relative_pose_errors(cameras(said), cameras(nowhere))[1].item() == 0


def test_pose_errors_do_not_see_frame_or_scale():
    cameras = random_cameras(2, 4, 28, 42)
    turn = quaternion_to_matrix(torch.tensor([[0.5, 0.1, -0.7, 0.3], [1.0, 2.0, 3.0, 4.0]]))
    moved = transform_cameras(Similarity(torch.tensor([0.2, 7.0]), turn, torch.randn(2, 3)), cameras)
    rotation, direction = relative_pose_errors(moved, cameras)
    assert rotation.shape == direction.shape == (2, 6)
    assert rotation.max() < 0.05 and direction.max() < 0.05


def test_scale_shift_invariant_depth_loss_by_hand():
    """Any scale and shift costs nothing; errors 0, 0, 3, -3 around a line are counted by the spread of the target."""
    target = torch.rand(2, 5, 7) + 1
    mask = torch.ones(2, 5, 7, dtype=torch.bool)
    assert scale_shift_invariant_depth_loss(3 * target - 0.7, target, mask).item() < 1e-5
    depth, true = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]), torch.tensor([[[0.0, 2.0, 3.0, 5.0]]])
    # Best line: 0 -> 1, 1 -> 4; errors 1 each; the target lies 2.5, 0.5, 0.5, 2.5 from its mean.
    assert scale_shift_invariant_depth_loss(depth, true, mask[:1, :1, :4]).item() == pytest.approx(1 / 1.5)
    flat = torch.ones(1, 5, 7)
    assert scale_shift_invariant_depth_loss(target[:1], flat, mask[:1]).item() == 0
    depth = (2 * target).requires_grad_()
    scale_shift_invariant_depth_loss(depth**2, target, mask).backward()
    assert depth.grad.isfinite().all() and depth.grad.abs().sum() > 0


def test_colors_of_another_camera_are_fitted():
    """An affine change of colour is found and undone; a part that is masked does not disturb it."""
    torch.manual_seed(3)
    rendered = torch.rand(2, 3, 12, 17)
    change = torch.eye(3) * 0.7 + 0.1 * torch.rand(3, 3)
    target = torch.einsum("nchw,cd->ndhw", rendered, change) + torch.tensor([0.05, -0.02, 0.1])[:, None, None]
    torch.testing.assert_close(fit_colors(rendered, target), target, rtol=0, atol=2e-3)
    mask = torch.ones(2, 12, 17, dtype=torch.bool)
    mask[:, :4] = False
    spoiled = target.clone()
    spoiled[:, :, :4] = 1
    torch.testing.assert_close(fit_colors(rendered, spoiled, mask), target, rtol=0, atol=2e-3)


def test_what_moves_is_left_out():
    """A square that only the target shows is what a share of nine tenths leaves out."""
    rendered = torch.full((1, 3, 40, 50), 0.5)
    target = rendered + 0.01 * torch.rand(1, 3, 40, 50)
    target[:, :, 10:20, 10:20] = 1
    kept = static_pixels(rendered, target, share=0.9)
    assert kept.float().mean().item() == pytest.approx(0.9, abs=0.01)
    assert not kept[0, 12:18, 12:18].any() and kept[0, 25:].all()
