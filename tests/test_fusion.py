"""Consensus, merging, colours: derivatives against autograd, hand-made cases, and gains on disturbed geometry."""

from dataclasses import replace

import pytest
import torch
from scenes import random_cameras

from da3_splat.data.disturbance import Disturbance, disturb
from da3_splat.data.synthetic import make_scenes
from da3_splat.fusion import consensus as module
from da3_splat.fusion.consensus import ConsensusConfig, reach_consensus
from da3_splat.fusion.fuse import NO_FUSION, FusionConfig, agree, fuse, usable_pixels
from da3_splat.fusion.merging import MergeConfig, kept_pixels, merge
from da3_splat.fusion.pair_equations import PairEquations
from da3_splat.fusion.pruning import prune, thinned
from da3_splat.fusion.recoloring import recolor
from da3_splat.fusion.two_views import CorrectedViews, ViewMaps
from da3_splat.heads.lifting import lift, raw_channels
from da3_splat.rendering import render
from da3_splat.rendering.sight import in_sight
from da3_splat.rendering.spreading import spread_back
from da3_splat.types import Cameras, Gaussians, Geometry, Views

HEIGHT, WIDTH = 56, 84


def plain(geometry: Geometry, images: torch.Tensor) -> Gaussians:
    return lift(images.new_zeros(*geometry.depth.shape, raw_channels(0)), images, geometry)


def by_view(geometry: Geometry, images: torch.Tensor):
    def of_view(view: int) -> Gaussians:
        gaussians = plain(geometry.select([view]), images[:, [view]])
        return replace(gaussians, source_view=torch.full_like(gaussians.source_view, view))

    return of_view


def pose_error(found: Cameras, true: Cameras) -> float:
    """Mean angle in degrees between the relative rotations of neighbouring views."""
    relative = [c.world_to_camera[0, 1:, :3, :3] @ c.camera_to_world[0, :-1, :3, :3] for c in (found, true)]
    turned = relative[0] @ relative[1].transpose(-1, -2)
    cosine = ((turned.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(-1, 1)
    return float(torch.rad2deg(torch.arccos(cosine)).mean())


def wall(views: int, depths: list[float]) -> tuple[Geometry, torch.Tensor]:
    """Identical cameras before a wall that each view puts at its own depth; random pictures."""
    cameras = random_cameras(batch=1, views=1, height=6, width=10)
    cameras = replace(
        cameras,
        world_to_camera=cameras.world_to_camera.expand(1, views, 4, 4),
        intrinsics=cameras.intrinsics.expand(1, views, 3, 3),
    )
    depth = torch.tensor(depths)[None, :, None, None].expand(1, views, 6, 10)
    return Geometry(depth=depth, cameras=cameras), torch.rand(1, views, 3, 6, 10)


def test_normal_equations_are_the_derivatives():
    """J^T J and J^T r of a pair against autograd through the same residuals, in every parameter of both views."""
    views, truth = make_scenes(1, 2, HEIGHT, WIDTH, seed=3, arc=10)
    geometry = disturb(truth, Disturbance(depth=0.02, rotation=0.3, translation=0.005), seed=1)
    scene = module._Scene(geometry, views.images, ConsensusConfig(samples=40, grid=(2, 3)), None)
    poses = geometry.cameras.camera_to_world[0].double()
    pairs = torch.tensor([[0, 1]])

    def residuals(parameters: torch.Tensor) -> torch.Tensor:
        twists, factors = parameters[:, :6], parameters[:, 6:].reshape(2, 2, 3)
        moved = poses @ torch.linalg.matrix_exp(module._twist_matrix(twists))
        look = scene.look(CorrectedViews(moved, factors, twists), pairs, scene.pixels, scene.chosen)
        return torch.cat([look.color_residual, look.depth_residual[..., None]], dim=-1)[0].flatten()

    start = torch.zeros(2, 12, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(residuals, start).flatten(1).double()  # (N*4, 24)
    look = scene.look(
        CorrectedViews(poses, start[:, 6:].reshape(2, 2, 3), start[:, :6]), pairs, scene.pixels, scene.chosen
    )
    # Scales so wide that every robust weight is 1, up to the constants.
    wide = 1e3
    normal, right = look.normal_equations(wide, wide)
    weights = (look.weight[0][:, None] * torch.ones(4)).flatten().double() / wide**2
    want = (jacobian * weights[:, None]).T @ jacobian
    # The slopes of sampled maps are central differences, autograd's are those of bilinear cells: compare what does not
    # depend on them, the depth residual's part, exactly, and the whole loosely.
    assert torch.nn.functional.cosine_similarity(normal[0].double().flatten(), want.flatten(), dim=0) > 0.9
    scene.maps.values[..., :3] = 0  # no colours
    scene.maps.values[..., 3] = scene.maps.values[..., 3].mean()  # a flat depth map: its slope is zero both ways
    jacobian = torch.autograd.functional.jacobian(residuals, start).flatten(1).double()
    look = scene.look(
        CorrectedViews(poses, start[:, 6:].reshape(2, 2, 3), start[:, :6]), pairs, scene.pixels, scene.chosen
    )
    normal, right = look.normal_equations(wide, wide)
    weights = (look.weight[0][:, None] * torch.ones(4)).flatten().double() / wide**2
    want = (jacobian * weights[:, None]).T @ jacobian
    assert torch.allclose(normal[0].double(), want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))
    gradient = jacobian.T @ (weights * residuals(start).double())
    assert torch.allclose(right[0].double(), gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))

    # Narrow scales, by hand: depth that is denied weighs little, and its colour less.
    look.color_residual = 0.3 * torch.rand_like(look.color_residual)
    normal, right = look.normal_equations(0.3, 0.02)
    color, depth = look.color_residual[0].double(), look.depth_residual[0].double()
    trust = (1 + (depth / (3 * 0.02)) ** 2) ** -2
    of_color = trust * (1 + (color / (2 * 0.3)).square().sum(dim=-1)) ** -2 / 0.3**2
    weights = torch.stack([of_color, of_color, of_color, trust / 0.02**2], dim=-1) * look.weight[0][:, None]
    want = (jacobian * weights.flatten()[:, None]).T @ jacobian
    assert torch.allclose(normal[0].double(), want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))
    gradient = jacobian.T @ (weights * torch.cat([color, depth[:, None]], dim=-1)).flatten()
    assert torch.allclose(right[0].double(), gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


def test_maps_between_pixels_are_bilinear():
    """Against torch's own sampler, the border continued; slopes are central differences."""
    log_depth, usable = torch.rand(2, 6, 9), torch.rand(2, 6, 9) > 0.3
    maps = ViewMaps(log_depth, usable)
    pixels = torch.rand(3, 50, 2) * torch.tensor([11.0, 8.0]) - 1
    views = torch.tensor([1, 0, 1])
    by_y, by_x = torch.gradient(log_depth, dim=(1, 2))
    stacked = torch.stack([log_depth, by_x, by_y, usable.float()], dim=1)[views]
    grid = pixels / torch.tensor([9.0, 6.0]) * 2 - 1
    want = torch.nn.functional.grid_sample(stacked, grid[:, :, None], padding_mode="border", align_corners=False)
    found = maps.between_pixels(views, pixels)[..., [3, 7, 11, 12]]
    assert torch.allclose(found, want[..., 0].transpose(1, 2), atol=1e-5)
    centres = torch.tensor([[[0.5, 0.5], [8.5, 5.5]]])
    assert torch.equal(maps.at_pixels(torch.tensor([1]), centres)[0, :, 3], log_depth[1, [0, 5], [0, 8]])


def test_many_views_are_solved_as_few_are():
    """Conjugate gradients on the blocks of pairs against the full matrix, with unknowns that are held at zero."""
    torch.manual_seed(0)
    views, size = 7, 5
    pairs = torch.tensor([(i, j) for i in range(views) for j in range(views) if 0 < abs(i - j) < 3])
    jacobians = torch.randn(len(pairs), 12, 2 * size, dtype=torch.float64)
    blocks, vectors = jacobians.transpose(1, 2) @ jacobians, torch.randn(len(pairs), 2 * size, dtype=torch.float64)
    free = torch.ones(views, size, dtype=torch.bool)
    free[2, :3] = False
    pull = torch.randn(views, size, dtype=torch.float64)
    equations = PairEquations(pairs, blocks, vectors, torch.rand(size, dtype=torch.float64) + 0.1, pull, free)
    dense = equations.solve()
    right = pull.clone()
    for (i, j), vector in zip(pairs.tolist(), vectors):
        right[i] += vector[:size]
        right[j] += vector[size:]
    iterated = equations._conjugate_gradients(-right * free)
    assert torch.allclose(dense, iterated, rtol=1e-6, atol=1e-9) and bool((iterated[2, :3] == 0).all())


def test_candidates_are_few_and_see_the_same():
    """Of 12 views on an arc, at most 4 candidates each; a view turned away is nobody's; few views are all compared."""
    views, truth = make_scenes(1, 12, 28, 42, seed=26, arc=60)
    turned = disturb(truth, Disturbance(one_view=180.0), seed=0)
    scene = module._Scene(turned, views.images, ConsensusConfig(candidates=4), None)
    state = CorrectedViews(turned.cameras.camera_to_world[0].double(), torch.zeros(12, 4, 5), torch.zeros(12, 6))
    pairs = scene._candidates(state)
    assert torch.bincount(pairs[:, 0], minlength=12).max() <= 4 and len(pairs) >= 11 * 3
    assert 6 not in pairs[:, 1]
    assert len(module._Scene(turned, views.images, ConsensusConfig(), None)._candidates(state)) == 12 * 11


def test_consensus_brings_poses_and_depth_back():
    views, truth = make_scenes(1, 6, HEIGHT, WIDTH, seed=20, arc=40)
    wrong = disturb(truth, Disturbance(depth=0.02, rotation=0.7, translation=0.01), seed=4)
    found = reach_consensus(wrong, views.images, torch.zeros(6, dtype=torch.bool))
    assert found.accepted and found.color_after < found.color_before and found.depth_after < 0.5 * found.depth_before
    assert pose_error(found.geometry.cameras, truth.cameras) < 0.4 * pose_error(wrong.cameras, truth.cameras)


def test_given_poses_are_not_touched_to_the_bit():
    views, truth = make_scenes(1, 4, HEIGHT, WIDTH, seed=21, arc=30)
    wrong = disturb(truth, Disturbance(depth=0.03), seed=5)
    fixed = torch.tensor([True, False, True, True])
    found = reach_consensus(wrong, views.images, fixed)
    assert found.accepted and found.depth_after < found.depth_before
    poses = found.geometry.cameras.world_to_camera
    assert torch.equal(poses[:, fixed], wrong.cameras.world_to_camera[:, fixed])
    assert not torch.equal(poses[:, 1], wrong.cameras.world_to_camera[:, 1])


def test_the_guard_refuses_what_does_not_help():
    """True geometry has nothing to gain, and pictures of different worlds nothing to say to each other."""
    views, truth = make_scenes(1, 4, HEIGHT, WIDTH, seed=22, arc=30)
    images = torch.rand_like(views.images)
    found = reach_consensus(truth, images, torch.zeros(4, dtype=torch.bool))
    if not found.accepted:
        assert torch.equal(found.geometry.depth, truth.depth)
        assert torch.equal(found.geometry.cameras.world_to_camera, truth.cameras.world_to_camera)
    assert pose_error(found.geometry.cameras, truth.cameras) < 0.3
    apart = disturb(truth, Disturbance(one_view=170.0), seed=0)
    assert reach_consensus(apart, views.images, torch.zeros(4, dtype=torch.bool)).geometry.depth.isfinite().all()


def test_merging_by_hand():
    """Three views of one wall: one Gaussian a pixel stays, in the middle of the three depths, as opaque as three."""
    geometry, images = wall(3, [4.0, 4.02, 4.04])
    merged, counts = merge(geometry, by_view(geometry, images))
    assert counts.kept == 60 and counts.redundant == 120 and counts.floating == counts.invalid == 0
    assert merged.means.shape[1] == 60
    center = geometry.cameras.centers[0, 0]
    local = geometry.cameras.world_to_camera[0, 0, :3, :3] @ (merged.means[0] - center).T
    middle = float(torch.tensor([4.0, 4.02, 4.04]).log().mean().exp())
    assert torch.allclose(local[2], torch.full_like(local[2], middle), rtol=1e-4)
    one = plain(geometry, images).opacities[0, 0]
    assert torch.allclose(merged.opacities, 1 - (1 - one) ** 3, atol=1e-6)


def test_what_others_see_through_is_dropped():
    """A view that puts the wall at half the distance floats before the two that agree; one against one is kept."""
    geometry, images = wall(3, [2.0, 4.0, 4.0])
    merged, counts = merge(geometry, by_view(geometry, images), MergeConfig(largest_tolerance=0.02))
    assert counts.floating == 60 and counts.redundant == 60 and set(merged.source_view[0].tolist()) == {1}
    geometry, images = wall(2, [2.0, 4.0])
    merged, counts = merge(geometry, by_view(geometry, images), MergeConfig(largest_tolerance=0.02))
    assert counts.kept + counts.floating == 120


def test_the_sharper_view_stays():
    """A camera at half the distance covers a quarter of the wall a pixel: where both see it, its Gaussians stay."""
    far, near = torch.eye(4), torch.eye(4)
    near[2, 3] = -2.0
    k = torch.tensor([[10.0, 0, 5], [0, 10.0, 3], [0, 0, 1]])
    cameras = Cameras(
        world_to_camera=torch.stack([far, near])[None], intrinsics=k.expand(1, 2, 3, 3), height=6, width=10
    )
    depth = torch.tensor([4.0, 2.0])[None, :, None, None].expand(1, 2, 6, 10)
    geometry, images = Geometry(depth=depth, cameras=cameras), torch.rand(1, 2, 3, 6, 10)
    merged, counts = merge(geometry, by_view(geometry, images))
    kept = torch.bincount(merged.source_view[0], minlength=2).tolist()
    assert kept[1] == 60  # all of the near view's
    assert kept[0] == 60 - 5 * 3  # the far view keeps what the near one does not show: its picture's middle is covered
    lower_confidence = torch.ones_like(depth).clone()
    lower_confidence[:, 1] = 1e-3  # but not if nobody trusts the near view
    merged, _ = merge(replace(geometry, confidence=lower_confidence), by_view(geometry, images))
    assert torch.bincount(merged.source_view[0], minlength=2)[0] == 60


def test_merging_is_differentiable_and_bounded():
    views, truth = make_scenes(1, 3, 28, 42, seed=23, arc=20)
    raw = torch.zeros(1, 3, 28, 42, raw_channels(0), requires_grad=True)
    gaussians = lift(raw, views.images, truth)
    pixels = 28 * 42
    merged, _ = merge(truth, lambda i: gaussians.select(slice(i * pixels, (i + 1) * pixels)))
    render(merged, truth.cameras).color.sum().backward()
    assert raw.grad.isfinite().all() and raw.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="batch of 2"):
        merge(Geometry(depth=truth.depth.repeat(2, 1, 1, 1)), lambda i: gaussians)


def test_what_a_picture_lacks_is_given_back_as_its_gradient_says():
    """The kernel that asks for weights alone beside torch's gradient of the oracle: overlapping, saturated and black
    Gaussians, degree 1, a mask, tiles that are cut by the picture's rim."""
    torch.manual_seed(2)
    views, truth = make_scenes(1, 1, 37, 51, seed=24)
    count = 400
    means = truth.cameras.centers[0, 0] + torch.randn(1, count, 3) * 0.6
    means = means + truth.cameras.camera_to_world[0, 0, :3, 2] * 2
    gaussians = Gaussians(
        means=means,
        scales=torch.rand(1, count, 3) * 0.2 + 0.01,
        quats=torch.nn.functional.normalize(torch.randn(1, count, 4), dim=-1),
        opacities=torch.rand(1, count) * 0.9995,
        sh=torch.randn(1, count, 4, 3),
    )
    counted = torch.rand(37, 51) > 0.3
    found, expected = (
        spread_back(gaussians, truth.cameras, views.images[0, 0], counted, backend) for backend in ("cpu", "reference")
    )
    for kernel, oracle in zip(found, expected):
        assert (oracle != 0).float().mean() > 0.2 and (oracle == 0).any()
        assert torch.allclose(kernel, oracle, atol=2e-4, rtol=1e-3), (kernel - oracle).abs().max()
    assert float((found[1][:, 0] - found[1][:, 1]).abs().max()) > 0  # a channel is black where another is not


def test_recoloring_finds_the_colours_of_the_pictures():
    """Gaussians of a true scene with spoilt colours get them back from the pictures; masked pictures teach nothing."""
    views, truth = make_scenes(1, 3, 28, 42, seed=24, arc=20)
    true = plain(truth, views.images).select((truth.depth > 0).flatten())
    pictures = Views(images=render(true, truth.cameras).color.detach(), cameras=truth.cameras)
    spoilt = replace(true, sh=true.sh + 0.5 * torch.randn_like(true.sh))

    def error(gaussians: Gaussians) -> float:
        return float((render(gaussians, truth.cameras).color - pictures.images).square().mean().sqrt())

    errors = [error(spoilt), *(error(recolor(spoilt, pictures, passes)) for passes in (1, 2, 4))]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.4 * errors[0]
    masked = replace(pictures, masks=torch.zeros(1, 3, 28, 42, dtype=torch.bool))
    assert torch.allclose(recolor(spoilt, masked, 1).sh, spoilt.sh, atol=1e-6)


@pytest.mark.parametrize("given", [True, False])
def test_fusion_beats_laying_views_side_by_side(given):
    """Held-out views of disturbed geometry: better by a decibel, with little more than half of the Gaussians."""
    views, truth = make_scenes(1, 9, 84, 126, seed=25, arc=40)
    targets, contexts = [2, 6], [0, 1, 3, 4, 5, 7, 8]
    disturbance = Disturbance(depth=0.02) if given else Disturbance(depth=0.02, rotation=0.5, translation=0.01)
    geometry = disturb(truth.select(contexts), disturbance, seed=6)
    seen = views.select(contexts)
    beside = plain(geometry, seen.images).select((geometry.depth > 0).flatten())
    fixed = torch.full((7,), given)
    agreed, report = agree(geometry, seen, fixed, FusionConfig())
    fused, counts = fuse(agreed, seen, by_view(agreed, seen.images), FusionConfig())
    mask = truth.depth[0, targets] > 0

    def score(gaussians: Gaussians) -> float:
        error = (render(gaussians, truth.cameras.select(targets)).color[0] - views.images[0, targets]).square().mean(1)
        return float(-10 * error[mask].mean().log10())

    assert report["consensus_accepted"]
    assert score(fused) > score(beside) + 1
    assert fused.means.shape[1] < 0.55 * beside.means.shape[1]
    dropped = sum(value for name, value in counts.items() if name.startswith("dropped"))
    assert counts["gaussians"] + dropped == counts["pixels"]


def test_only_gaussians_in_sight_are_drawn_and_the_picture_is_the_same():
    """Left out are those behind the camera and beside the picture, never one whose rim shows; non-square, turned."""
    torch.manual_seed(1)
    cameras = random_cameras(views=1, height=30, width=44, seed=8)
    count = 4000
    gaussians = Gaussians(
        means=torch.randn(1, count, 3) * 6,
        quats=torch.randn(1, count, 4),
        scales=torch.rand(1, count, 3) * 0.5,
        opacities=torch.rand(1, count),
        sh=torch.randn(1, count, 1, 3),
    )
    seen = in_sight(gaussians, cameras)
    assert 0.05 * count < len(seen) < 0.7 * count
    everything, some = render(gaussians, cameras), render(gaussians.select(seen), cameras)
    assert torch.equal(everything.color, some.color) and torch.equal(everything.alpha, some.alpha)


def test_masks_sky_confidence_and_edges_choose_pixels():
    geometry, images = wall(2, [4.0, 4.0])
    views = Views(images=images, masks=torch.ones(1, 2, 6, 10, dtype=torch.bool))
    views.masks[0, 0, :, :4] = False
    confidence = torch.arange(60.0).reshape(6, 10).expand(1, 2, 6, 10)
    sky = torch.zeros(1, 2, 6, 10)
    sky[0, 1, 0] = 1.0
    geometry = replace(geometry, confidence=confidence, sky=sky)
    assert usable_pixels(geometry, views, NO_FUSION).sum() == 120 - 24
    assert usable_pixels(geometry, views, replace(NO_FUSION, sky="drop")).sum() == 120 - 24 - 10
    assert usable_pixels(geometry, views, replace(NO_FUSION, min_confidence=0.5)).sum() < 60
    step = geometry.depth.clone()
    step[..., 5:] = 8.0
    limited = usable_pixels(replace(geometry, depth=step), Views(images=images), replace(NO_FUSION, edge_limit=0.1))
    assert limited.sum() == 120 - 2 * 6 * 2
    shell, _ = agree(geometry, views, torch.ones(2, dtype=torch.bool), NO_FUSION)
    assert (shell.depth[0, 1, 0] >= 20 * 4.0).all() and torch.equal(shell.depth[0, 0], geometry.depth[0, 0])


def test_thinning_keeps_the_count_and_pruning_the_finite():
    geometry, images = wall(2, [4.0, 5.0])
    gaussians = plain(geometry, images)
    few = thinned(gaussians, 30)
    assert few.means.shape[1] == 30 and torch.allclose(few.scales.mean() / gaussians.scales.mean(), torch.tensor(2.0))
    with pytest.raises(ValueError, match="max_gaussians: expected at least 1"):
        thinned(gaussians, 0)
    broken = replace(gaussians, means=gaussians.means.clone())
    broken.means[0, 3] = float("nan")
    assert prune(broken).means.shape[1] == 119
    capped, report = fuse(
        geometry, Views(images=images), by_view(geometry, images), replace(NO_FUSION, max_gaussians=50)
    )
    assert capped.means.shape[1] == 50 and report["dropped_over_limit"] == 70


def test_a_place_without_its_gaussian_goes_to_another_view():
    """Three views of one wall: where the first's Gaussians are not there, the second's stay, and all three speak."""
    geometry, images = wall(3, [4.0, 4.0, 4.0])
    gaussians_of = by_view(geometry, images)
    available = torch.ones(1, 3, 6, 10, dtype=torch.bool)
    available[0, 0, :, :5] = False
    merged, counts = merge(geometry, gaussians_of, available=available)
    assert torch.bincount(merged.source_view[0], minlength=3).tolist() == [30, 30, 0] and counts.redundant == 120
    single = gaussians_of(0).opacities[0, 0]
    assert torch.allclose(merged.opacities, 1 - (1 - single) ** 3)
    chosen = kept_pixels(geometry, MergeConfig(), available=available)
    assert [len(of_view) for of_view in chosen] == [30, 30, 0]
