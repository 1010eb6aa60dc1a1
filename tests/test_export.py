"""Scene folders and exports: round trips, and the readers of other programs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from captures import small_capture
from PIL import Image
from scenes import random_cameras

from da3_splat import load_model, load_ply, load_views, render
from da3_splat.data.captures import find_frames
from da3_splat.data.views import read_frames
from da3_splat.export import export_scene, parse_formats, tracked_points
from da3_splat.geometry.paths import fly_through
from da3_splat.geometry.projection import project
from da3_splat.io.colmap import read_colmap, write_colmap
from da3_splat.io.transforms_json import read_transforms, write_transforms
from da3_splat.scene_folder import load_scene, original_cameras, save_scene


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A scene folder of a posed capture read at half its size, the scene and its views."""
    folder = tmp_path_factory.mktemp("made")
    small_capture(folder / "capture", views=4)
    frames = find_frames(folder / "capture").frames
    views = read_frames(frames, resolution=42)
    scene = load_model("mini").reconstruct(views)
    save_scene(scene, views, folder / "scene", frames=frames)
    return folder / "scene", scene, views


def test_resizing_is_undone_at_the_output(made):
    """Cameras, pictures and depth come back at the size of the input, and the depth.npz stays what the network saw."""
    folder, scene, views = made
    frames, _ = read_transforms(folder / "transforms.json")
    originals, _ = read_transforms(folder.parent / "capture" / "transforms.json")
    for frame, original in zip(frames, originals):
        assert (frame.height, frame.width) == (56, 84) and Image.open(frame.path).size == (84, 56)
        assert torch.allclose(frame.world_to_camera, original.world_to_camera, atol=1e-6)
        assert torch.allclose(frame.intrinsics, original.intrinsics, atol=1e-5)
    assert (frames[0].path).read_bytes() == originals[0].path.read_bytes()
    depth = np.load(folder / "depth" / "view_0000.npz")["depth"]
    assert depth.shape == (56, 84) and np.array_equal(depth[1::2, 1::2], scene.geometry.depth[0, 0].numpy())


def test_mixed_sizes_and_crops_are_undone(tmp_path):
    """A wide and a tall photo are both cropped to 56x56; their cameras and depth come back at 80x40 and 40x80."""
    for name, size in (("a.png", (80, 40)), ("b.png", (40, 80))):
        pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    frames = find_frames(tmp_path).frames
    views = read_frames(frames, resolution=112)
    scene = load_model("mini").reconstruct(views)
    save_scene(scene, views, tmp_path / "scene", frames=frames)
    wide, tall = original_cameras(scene.cameras, views)
    assert (wide.height, wide.width, tall.height, tall.width) == (40, 80, 80, 40)
    center = wide.intrinsics[0, 0, :2, 2]
    assert torch.allclose(center, torch.tensor([40.0, 20.0]), atol=1e-3)
    assert torch.allclose(wide.intrinsics[0, 0, 0, 0], scene.cameras.intrinsics[0, 0, 0, 0] * 80 / 112, rtol=1e-5)
    depth = np.load(tmp_path / "scene" / "depth" / "a.npz")["depth"]
    assert depth.shape == (40, 80) and np.isnan(depth[:, :19]).all() and np.isfinite(depth[:, 21:59]).all()


def test_scene_folder_round_trip(made):
    folder, scene, views = made
    again, same = load_scene(folder)
    assert torch.equal(again.geometry.depth, scene.geometry.depth)
    assert torch.equal(again.cameras.world_to_camera, scene.cameras.world_to_camera)
    assert again.gaussians.means.shape == scene.gaussians.means.shape
    assert same.images.shape == views.images.shape and (same.images - views.images).abs().max() < 1e-6
    with pytest.raises(ValueError, match="no scene.ply in this folder"):
        load_scene(folder.parent)


def test_colmap_round_trip_to_1e_6(tmp_path):
    """Cameras of different size and points come back, tracks say who saw what, and nothing given is changed."""
    cameras = random_cameras(views=3, dtype=torch.float64)
    single = [cameras.select([0]), cameras.select([1]).resized(74, 100), cameras.select([2])]
    before = [camera.intrinsics.clone() for camera in single]
    points, colors = 0.3 * np.random.default_rng(1).normal(size=(20, 3)), np.random.default_rng(2).random((20, 3))
    seen = np.random.default_rng(3).random((3, 20)) < 0.7
    names = ["a.png", "b.png", "c.png"]
    write_colmap(tmp_path / "sparse" / "0", single, names, points, colors, seen)
    frames, xyz, rgb = read_colmap(tmp_path / "sparse" / "0", tmp_path)
    for frame, camera, intact, name in zip(frames, single, before, names):
        assert frame.path.name == name and (frame.height, frame.width) == (camera.height, camera.width)
        assert torch.allclose(frame.world_to_camera, camera.world_to_camera[0, 0], atol=1e-9)
        assert torch.allclose(frame.intrinsics, camera.intrinsics[0, 0], atol=1e-9)
        assert torch.equal(camera.intrinsics, intact)
    assert np.allclose(xyz, points, atol=1e-6) and np.abs(rgb - colors).max() <= 0.5 / 255 + 1e-6

    import pycolmap

    model = pycolmap.Reconstruction(str(tmp_path / "sparse" / "0"))
    assert model.num_points3D() == 20 and model.num_cameras() == 3
    for index, point in enumerate(model.points3D[key] for key in sorted(model.points3D)):
        views = {element.image_id - 1 for element in point.track.elements}
        assert views <= set(np.flatnonzero(seen[:, index]))
        for element in point.track.elements:
            image = model.images[element.image_id]
            assert np.allclose(image.project_point(point.xyz), image.points2D[element.point2D_idx].xy, atol=1e-6)


def test_transforms_round_trip_to_1e_6(tmp_path):
    cameras = random_cameras(views=2, dtype=torch.float64)
    single = [cameras.select([0]), cameras.select([1]).resized(74, 100)]
    write_transforms(tmp_path / "transforms.json", single, ["a.png", "b.png"])
    frames, _ = read_transforms(tmp_path / "transforms.json")
    for frame, camera in zip(frames, single):
        assert torch.allclose(frame.world_to_camera, camera.world_to_camera[0, 0], atol=1e-12)
        assert torch.allclose(frame.intrinsics, camera.intrinsics[0, 0], atol=1e-12)
        assert (frame.height, frame.width) == (camera.height, camera.width)


def test_exports_open_in_other_programs(made, tmp_path):
    """COLMAP, Nerfstudio's two dataparsers, trimesh, PyAV and gsplat's own sizes read what was written."""
    folder, scene, views = made
    formats = parse_formats("ply, splat,compressed,glb,npz,colmap,transforms,video")
    written = export_scene(scene, views, folder, tmp_path, formats)
    assert all(path.exists() for path in written)
    count = load_ply(tmp_path / "scene.ply").means.shape[1]
    assert (tmp_path / "scene.splat").stat().st_size == 32 * count
    header = (tmp_path / "scene.compressed.ply").read_bytes()[:2000]
    assert f"element vertex {count}".encode() in header and b"packed_position" in header

    import av
    import trimesh

    loaded = trimesh.load(tmp_path / "points.glb")
    assert len(loaded.geometry) == 2 and len(next(iter(loaded.geometry.values())).vertices) > 100
    with av.open(str(tmp_path / "flight.mp4")) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == 120 and pictures[0].shape == (28, 42, 3) and pictures[0].std() > 5
    assert np.abs(pictures[0].astype(int) - pictures[60].astype(int)).mean() > 1  # it moves

    again = load_views(tmp_path / "sparse" / "0", resolution=42)
    assert torch.allclose(again.cameras.world_to_camera, scene.cameras.world_to_camera, atol=1e-5)
    by_json = load_views(tmp_path / "transforms.json", resolution=42)
    assert torch.allclose(by_json.cameras.intrinsics, scene.cameras.intrinsics, atol=1e-4)
    assert len(by_json.points) == len(again.points) > 50


@pytest.mark.parametrize("kind", ["transforms", "colmap"])
def test_nerfstudio_accepts_exports(made, tmp_path, kind):
    pytest.importorskip("nerfstudio", reason="Nerfstudio is not installed")
    folder, scene, views = made
    export_scene(scene, views, folder, tmp_path, [kind])
    if kind == "transforms":
        from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig as Config

        config = Config(data=tmp_path, load_3D_points=True, eval_mode="all")
    else:
        from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig as Config

        config = Config(data=tmp_path, colmap_path=Path("sparse/0"), downscale_factor=1, eval_mode="all")
    outputs = config.setup().get_dataparser_outputs("train")
    assert len(outputs.image_filenames) == 4 and outputs.cameras.camera_to_worlds.shape == (4, 3, 4)
    assert len(outputs.metadata["points3D_xyz"]) > 50
    # Undoing Nerfstudio's normalisation gives the cameras back.
    poses = torch.eye(4).repeat(4, 1, 1)
    poses[:, :3] = outputs.cameras.camera_to_worlds
    poses[:, :3, 3] /= outputs.dataparser_scale
    transform = torch.eye(4)
    transform[:3] = outputs.dataparser_transform
    centers = (torch.linalg.inv(transform) @ poses)[:, :3, 3]
    want = scene.cameras.centers[0]
    distances = [torch.cdist(c, c) for c in (centers, want)]
    assert torch.allclose(*distances, atol=1e-4)


def test_tracks_are_what_views_agree_on(made):
    _, scene, views = made
    points, colors, seen = tracked_points(scene.geometry, views, 200)
    assert len(points) == len(colors) == seen.shape[1] <= 200 and seen.shape[0] == 4
    assert seen.any(axis=0).all() and colors.min() >= 0 and colors.max() <= 1


def test_a_flight_passes_all_cameras_smoothly():
    cameras = random_cameras(views=5)
    flight = fly_through(cameras, 200)
    gaps = torch.cdist(cameras.centers[0], flight.centers[0]).amin(dim=1)
    assert gaps.max() < 0.05
    rotation = flight.world_to_camera[0, :, :3, :3]
    assert torch.allclose(rotation @ rotation.transpose(1, 2), torch.eye(3).expand(200, 3, 3), atol=1e-5)
    step = (flight.centers[0, 1:] - flight.centers[0, :-1]).norm(dim=-1)
    assert step.max() < 6 * step.mean()
    alone = fly_through(cameras.select([0]), 10)
    assert alone.world_to_camera.shape == (1, 10, 4, 4) and alone.world_to_camera.isfinite().all()


def test_gaussians_follow_the_exported_cameras(made):
    """A Gaussian projected by an exported camera falls on the pixel it was made from, in the exported picture."""
    folder, scene, views = made
    loaded, _ = load_scene(folder)
    rendering = render(loaded.gaussians, scene.cameras)
    assert (rendering.color[0] - views.images[0]).square().mean() < 0.05
    with pytest.raises(ValueError, match="expected some of"):
        parse_formats("obj")


def test_a_broken_scene_folder_is_one_line(made, tmp_path):
    folder, scene, views = made
    save_scene(scene, replace(views, windows=()), tmp_path)
    (tmp_path / "depth.npz").write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(ValueError, match="depth.npz: not a geometry"):
        load_scene(tmp_path)
    assert json.loads((tmp_path / "transforms.json").read_text())["w"] == 42


@pytest.mark.parametrize("size, resolution", [((40, 30), 84), ((30, 45), 70), ((64, 64), 42), ((50, 20), 112)])
def test_scenes_of_any_aspect_load_again(tmp_path, size, resolution):
    """Snapping to the patch is not idempotent, so the windows say what each view shows; mixed orientations, too."""
    for name, shape in (("a.png", size), ("b.png", size[::-1])):
        pixels = np.random.default_rng(1).integers(0, 255, (shape[1], shape[0], 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    frames = find_frames(tmp_path).frames
    views = read_frames(frames, resolution=resolution)
    save_scene(load_model("mini").reconstruct(views), views, tmp_path / "scene", frames=frames)
    _, again = load_scene(tmp_path / "scene")
    assert again.images.shape == views.images.shape and (again.images - views.images).abs().mean() < 0.05


def test_masks_survive(tmp_path):
    """Masks of the input are written beside the pictures and come back, at the size of the input and of the network."""
    capture = small_capture(tmp_path / "capture", views=3)
    mask = np.zeros((56, 84), np.uint8)
    mask[:, 42:] = 255
    Image.fromarray(mask).save(capture / "mask.png")
    content = json.loads((capture / "transforms.json").read_text())
    content["frames"][1]["mask_path"] = "mask.png"
    (capture / "transforms.json").write_text(json.dumps(content))
    frames = find_frames(capture).frames
    views = read_frames(frames, resolution=42)
    scene = load_model("mini").reconstruct(views)
    save_scene(scene, views, tmp_path / "scene", frames=frames)
    _, again = load_scene(tmp_path / "scene")
    assert torch.equal(again.masks, views.masks) and not views.masks.all()
    export_scene(scene, views, tmp_path / "scene", tmp_path / "out", ["transforms"])
    assert torch.equal(load_views(tmp_path / "out", resolution=42).masks, views.masks)
    kept = scene.gaussians.means[0, scene.gaussians.source_view[0] == 1]
    pixels, _ = project(kept[None], scene.cameras.select([1]))
    assert (pixels[0, 0, :, 0] > 20).all()


def test_pictures_smaller_than_their_calibration(tmp_path):
    """Cameras of 168x112 on pictures of 84x56: what is written fits the pictures."""
    capture = small_capture(tmp_path / "capture", views=2)
    content = json.loads((capture / "transforms.json").read_text())
    for entry in (content, *content["frames"]):
        for key in {"w", "h", "fl_x", "fl_y", "cx", "cy"} & entry.keys():
            entry[key] *= 2
    (capture / "transforms.json").write_text(json.dumps(content))
    frames = find_frames(capture).frames
    views = read_frames(frames, resolution=42)
    save_scene(load_model("mini").reconstruct(views), views, tmp_path / "scene", frames=frames)
    written, _ = read_transforms(tmp_path / "scene" / "transforms.json")
    assert (written[0].height, written[0].width) == (56, 84)
    assert torch.allclose(written[0].intrinsics[:2] * 2, frames[0].intrinsics[:2], rtol=1e-5)
