"""The model as a user holds it: frames, scales, saving, loading, the public names."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from captures import small_capture

import da3_splat
from da3_splat import Views, create_model, load_model, load_views, render, save_model
from da3_splat.data.synthetic import make_scenes
from da3_splat.fusion.fuse import NO_FUSION
from da3_splat.geometry.alignment import Similarity, transform_cameras, transform_gaussians
from da3_splat.geometry.rotations import quaternion_to_matrix
from da3_splat.geometry.user_frame import camera_similarity, in_user_frame, sparse_depth_ratios
from da3_splat.refinement import RefinementConfig, refine
from da3_splat.starting_points import (
    gaussians_around_points,
    gaussians_at_points,
    start_from_network,
    starting_gaussians,
    thinned,
)
from da3_splat.types import Geometry


@pytest.fixture(scope="module")
def mini():
    return load_model("mini")


def posed_views(count=3, seed=11):
    given, truth = make_scenes(1, count, 56, 84, seed, arc=40)
    return given, truth


def test_embedded_weights_are_small_and_trained(mini):
    """At most 8 M parameters, and better than an untrained network on worlds it was not trained on."""
    assert sum(value.numel() for value in mini.parameters()) <= 8e6
    from da3_splat.metrics import absolute_relative_error

    given, truth = make_scenes(6, 4, 112, 154, seed=77)
    with torch.no_grad():
        depth = mini.network(given.images, reference_view="first").depth
    flat = absolute_relative_error(torch.ones_like(truth.depth), truth.depth)
    assert absolute_relative_error(depth, truth.depth).mean() < 0.8 * flat.mean()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_posed_views_come_back_in_their_frame(mini, count):
    """The cameras are the given ones to the bit, for one view, two, or more."""
    views, _ = posed_views(count)
    scene = mini.reconstruct(views)
    assert torch.equal(scene.cameras.world_to_camera, views.cameras.world_to_camera)
    assert torch.equal(scene.geometry.cameras.intrinsics, views.cameras.intrinsics)
    assert scene.report["scale_source"] == ("none" if count == 1 else "camera baselines")
    assert scene.gaussians.means.isfinite().all()


def random_motion(scale: float) -> Similarity:
    generator = torch.Generator().manual_seed(5)
    return Similarity(
        torch.tensor(scale),
        quaternion_to_matrix(torch.randn(4, generator=generator)),
        torch.randn(3, generator=generator),
    )


def test_a_moved_capture_gives_the_moved_scene(mini):
    """Pixel by pixel without fusion; with it, the last bits of a number can tip what is merged at few pixels."""
    views, _ = posed_views(3)
    motion = random_motion(2.7)
    moved = replace(views, cameras=transform_cameras(motion, views.cameras))
    before, after = (mini.reconstruct(v, fusion=NO_FUSION).gaussians for v in (views, moved))
    want = transform_gaussians(motion, before)
    assert (after.means - want.means).norm() / want.means.norm() < 1e-4
    assert (after.scales - want.scales).norm() / want.scales.norm() < 1e-4

    before, after = mini.reconstruct(views).gaussians, mini.reconstruct(moved).gaussians
    want = transform_gaussians(motion, before)
    distance = torch.cdist(after.means, want.means, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=-1)[0]
    assert abs(after.means.shape[1] - want.means.shape[1]) < 0.01 * want.means.shape[1]
    assert (distance < 1e-4 * want.means[0].norm(dim=-1).mean()).float().mean() > 0.98
    difference = render(after, moved.cameras).color - render(before, views.cameras).color
    assert difference.square().mean().sqrt() < 0.01


def test_unposed_views_have_the_reference_at_the_origin(mini):
    views, _ = posed_views(3)
    scene = mini.reconstruct(replace(views, cameras=None), reference_view=1)
    assert torch.allclose(scene.cameras.world_to_camera[0, 1], torch.eye(4), atol=1e-5)
    assert scene.report["poses"] == "da3" and scene.report["scale_source"] == "none"
    rays = mini.reconstruct(replace(views, cameras=None), reference_view=1, rays=True).geometry.ray_map
    assert rays.directions.shape[:2] == (1, 3)


def test_sparse_points_set_the_scale():
    """A prediction that is right up to a factor comes back with the true depth, whatever the cameras' distances say."""
    views, truth = posed_views(3)
    points = truth.points().reshape(-1, 3)[truth.depth.flatten() > 0][::40]
    views = replace(views, points=points, point_colors=torch.rand_like(points))
    prediction = Geometry(depth=truth.depth / 3.5, cameras=truth.cameras, confidence=torch.ones_like(truth.depth))
    geometry, source = in_user_frame(prediction, views)
    assert source == "sparse points"
    seen = truth.depth > 0
    assert torch.allclose(geometry.depth[seen], truth.depth[seen], rtol=0.02)
    ratios = torch.cat([ratio for ratio, _, _ in sparse_depth_ratios(truth.depth, views)])
    assert (ratios - 1).abs().median() < 0.01


def test_some_cameras_given(mini):
    """Known cameras come back exactly, the others are finite and in the same frame; all NaN is no camera at all."""
    views, _ = posed_views(4)
    pose = views.cameras.world_to_camera.clone()
    pose[:, 0] = float("nan")
    pose[:, 2] = float("nan")
    scene = mini.reconstruct(replace(views, cameras=replace(views.cameras, world_to_camera=pose)))
    assert torch.equal(scene.cameras.world_to_camera[:, [1, 3]], views.cameras.world_to_camera[:, [1, 3]])
    assert bool(scene.cameras.world_to_camera.isfinite().all()) and bool(scene.gaussians.means.isfinite().all())
    assert scene.report["poses"] == "given for 2, da3 for the others"
    none = mini.reconstruct(
        replace(views, cameras=replace(views.cameras, world_to_camera=torch.full_like(pose, torch.nan)))
    )
    assert none.report["poses"] == "da3"


def test_unknown_cameras_follow_the_known_ones():
    """A prediction that is the truth up to a similarity puts the unknown camera where it truly is."""
    views, truth = posed_views(5)
    motion = Similarity(torch.tensor(0.3), quaternion_to_matrix(torch.randn(4)), torch.randn(3))
    prediction = Geometry(depth=0.3 * truth.depth, cameras=transform_cameras(motion, truth.cameras))
    pose = views.cameras.world_to_camera.clone()
    pose[:, 3] = float("nan")
    partly = replace(views, cameras=replace(views.cameras, world_to_camera=pose))
    geometry, source = in_user_frame(prediction, partly)
    assert source == "camera baselines"
    assert torch.allclose(geometry.cameras.world_to_camera, truth.cameras.world_to_camera, atol=1e-3)
    assert torch.allclose(geometry.depth, truth.depth, rtol=1e-3)


def test_the_unknown_cameras_take_the_scale_of_the_depth():
    """One known camera and sparse points: the points fix the scale of the depth and of the other cameras alike."""
    views, truth = posed_views(3)
    points = truth.points().reshape(-1, 3)[truth.depth.flatten() > 0][::40]
    pose = views.cameras.world_to_camera.clone()
    pose[:, 1:] = float("nan")
    partly = replace(
        views, cameras=replace(views.cameras, world_to_camera=pose), points=points, point_colors=torch.rand_like(points)
    )
    half = Similarity(torch.tensor(0.5), torch.eye(3), torch.zeros(3))
    prediction = Geometry(depth=0.5 * truth.depth, cameras=transform_cameras(half, truth.cameras))
    geometry, source = in_user_frame(prediction, partly)
    assert source == "sparse points"
    assert torch.allclose(geometry.cameras.centers, truth.cameras.centers, atol=0.05)


def test_rays_follow_their_cameras(mini):
    """Rays asked for on posed views come back in the user's frame, where the cameras are."""
    views, _ = posed_views(3)
    motion = Similarity(torch.tensor(2.0), quaternion_to_matrix(torch.randn(4)), torch.randn(3))
    moved = replace(views, cameras=transform_cameras(motion, views.cameras))
    first, second = (mini.reconstruct(v, rays=True).geometry.ray_map for v in (views, moved))
    assert torch.allclose(second.directions, first.directions @ motion.rotation.T, atol=1e-3)
    assert torch.allclose(
        second.origins, motion.apply(first.origins.flatten(1, 3)).reshape(first.origins.shape), atol=1e-2
    )


def test_released_head_follows_the_users_frame():
    """A head under the released rules is moved as a whole: a moved capture gives the moved Gaussians."""
    from da3_splat.heads.pixel import PixelHead
    from da3_splat.model import Da3Splat, SplatConfig

    model = Da3Splat(
        load_model("mini").network, PixelHead(384, 32, (32, 64, 96, 192), 2, "released"), SplatConfig("mini")
    ).eval()
    views, _ = posed_views(3)
    motion = random_motion(2.0)
    moved = replace(views, cameras=transform_cameras(motion, views.cameras))
    before, after = (model.reconstruct(v, fusion=NO_FUSION).gaussians for v in (views, moved))
    want = transform_gaussians(motion, before)
    assert (after.means - want.means).norm() / want.means.norm() < 1e-3
    assert (after.scales - want.scales).norm() / want.scales.norm() < 1e-3


def test_training_after_inference_mode():
    """Tables cached under inference_mode serve a training step at the same size."""
    model = create_model("mini")
    images = torch.rand(1, 2, 3, 42, 70)
    with torch.inference_mode():
        model(images)
    model(images).gaussians.means.sum().backward()


def test_metric_model_gives_metres_from_given_cameras():
    from test_backbone import tiny_monocular

    from da3_splat.backbone.network import metres
    from da3_splat.heads.plain import PlainHead
    from da3_splat.model import Da3Splat, SplatConfig

    views, _ = posed_views(2)
    model = Da3Splat(tiny_monocular(), PlainHead(), SplatConfig("da3metric-large")).eval()
    scene = model.reconstruct(views)
    assert scene.report["scale_source"] == "metric model"
    with torch.no_grad():
        raw = model.network(views.images)
    assert torch.allclose(scene.geometry.depth, metres(raw.depth, views.cameras))
    with pytest.raises(ValueError, match="every view must bring one"):
        model.reconstruct(replace(views, cameras=None))


def test_camera_similarity_of_one_two_and_more():
    for count in (1, 2, 4):
        views, _ = posed_views(count)
        motion = Similarity(
            torch.tensor(1.0 if count == 1 else 0.4), quaternion_to_matrix(torch.randn(4)), torch.randn(3)
        )
        found = camera_similarity(views.cameras, transform_cameras(motion, views.cameras))
        assert torch.allclose(found.scale[0], motion.scale, rtol=1e-3)
        assert torch.allclose(found.rotation[0], motion.rotation, atol=1e-3)
        assert torch.allclose(found.translation[0], motion.translation, atol=1e-2)


def test_forward_gives_the_heads_own(mini):
    images = torch.rand(2, 2, 3, 28, 42)
    with torch.no_grad():
        scene = mini(images)
        fused = mini(images[:1], fuse=True)
    assert scene.gaussians.means.shape == (2, 2 * 28 * 42, 3) and scene.cameras.world_to_camera.shape == (2, 2, 4, 4)
    assert fused.gaussians.means.shape[1] <= 2 * 28 * 42


def test_save_and_load(tmp_path):
    model = create_model("mini", sh_degree=2)
    save_model(model, tmp_path / "a.safetensors", half=False)
    back = load_model(tmp_path / "a.safetensors")
    assert back.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), back.state_dict().values()))
    save_model(model, tmp_path / "half.safetensors")
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * (tmp_path / "a.safetensors").stat().st_size


def test_released_files_load_by_preset(tmp_path, capsys):
    from safetensors.torch import save_file
    from test_backbone import released_state

    from da3_splat.backbone import create_backbone

    save_file(
        {k: v.contiguous() for k, v in released_state(create_backbone("da3-small"), 3).items()},
        tmp_path / "w.safetensors",
    )
    model = load_model(tmp_path / "w.safetensors", preset="da3-small")
    assert model.config.head == "plain"
    with pytest.raises(ValueError, match="preset="):
        load_model(tmp_path / "w.safetensors")


def test_errors_name_what_is_wrong(tmp_path, mini):
    with pytest.raises(ValueError, match="no such checkpoint file"):
        load_model(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="bad.safetensors: not a readable"):
        load_model(tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="expected one of mini"):
        create_model("da3-enormous")
    with pytest.raises(ValueError, match="batch of 2"):
        mini.reconstruct(Views(images=torch.rand(2, 1, 3, 28, 42)))


def test_points_become_clouds_within_half_their_distance():
    """Two points 1 apart, three Gaussians each: scattered by half of that, coloured as their point; more points than
    Gaussians stay as they are."""
    points, colors = torch.tensor([[0.0, 0, 0], [1.0, 0, 0]]), torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
    many = [gaussians_around_points(points * k, colors, 2000 * k) for k in (1, 2)]
    assert [one.means.shape[1] for one in many] == [2000, 4000]
    spread = (many[0].means[0].reshape(2, 1000, 3) - points[:, None]).std(dim=1)
    torch.testing.assert_close(spread, torch.full((2, 3), 0.5), atol=0.05, rtol=0)
    reds = many[0].sh[0, :, 0, 0].reshape(2, 1000)
    assert (reds[0] > reds[1]).all()
    assert torch.equal(gaussians_around_points(points, colors, 1).means[0], points)


def test_starting_gaussians_choose_their_source(mini, tmp_path):
    views = load_views(small_capture(tmp_path, views=5), resolution=84)
    scene = mini.reconstruct(views)
    start = starting_gaussians(scene, views, max_gaussians=3000)
    assert start.gaussians.means.shape[1] <= 3100
    exact = make_scenes(1, 5, 56, 84, 7, arc=60)[1]
    perfect = replace(scene, geometry=replace(scene.geometry, depth=exact.depth))
    assert starting_gaussians(perfect, views, 3000).source.startswith("network; its depth is")
    wrong = replace(
        scene, geometry=replace(scene.geometry, depth=exact.depth * (1 + 0.5 * torch.rand_like(exact.depth)))
    )
    assert starting_gaussians(wrong, views, 3000).source.startswith("sparse points")
    assert starting_gaussians(scene, replace(views, points=None), 3000).source == "network"
    start = starting_gaussians(wrong, views, 3000)
    assert start.source.startswith("sparse points (the network") and start.gaussians.means.shape[1] == 3000
    looks_right = starting_gaussians(wrong, views, 3000, looks_right=True)
    some = replace(views, points=views.points[:900], point_colors=views.point_colors[:900])
    assert all("bent to them" in one.source for one in (looks_right, starting_gaussians(wrong, some, 3000)))
    assert torch.equal(looks_right.depth, start.depth)
    asked = start_from_network(mini, views, 3000)  # the same without merging first: consensus moves no sparse point
    assert asked.source.startswith("sparse points (the network") and torch.equal(
        asked.gaussians.means, start.gaussians.means
    )
    alone = replace(views, points=None)
    quick, whole = start_from_network(mini, alone, 3000), starting_gaussians(mini.reconstruct(alone), alone, 3000)
    assert quick.source == "network" and torch.equal(quick.gaussians.means, whole.gaussians.means)
    nowhere = replace(views, cameras=None)  # points alone say nothing of where they are seen
    assert start_from_network(mini, nowhere, 3000).source == "network"
    few = gaussians_at_points(views.points[:1], None)
    assert few.scales.isfinite().all()
    assert thinned(scene.gaussians, 100).means.shape[1] == 100


def test_refinement_improves_and_repeats(mini, tmp_path):
    views = load_views(small_capture(tmp_path, views=5), resolution=84)
    start = starting_gaussians(mini.reconstruct(views), views, max_gaussians=3000).gaussians

    def error(gaussians):
        return float((render(gaussians, views.cameras).color - views.images).abs().mean())

    first, second = (refine(start, views, RefinementConfig(steps=40)).gaussians for _ in range(2))
    assert error(first) < 0.7 * error(start)
    assert torch.equal(first.means, second.means)
    with pytest.raises(ValueError, match="cameras"):
        refine(start, replace(views, cameras=None))


def test_public_names_and_light_import():
    for name in da3_splat.__all__:
        assert getattr(da3_splat, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = da3_splat.nothing
    heavy = ("torch", "numba", "timm", "gsplat", "viser", "nerfstudio")
    code = f"import sys, da3_splat; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    # timm and torchvision bring torch's compiler along, which triples the time to the first model.
    heavy = ("timm", "torchvision", "torch._dynamo", "nerfstudio")
    code = f"import sys, da3_splat; da3_splat.load_model('mini'); print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
