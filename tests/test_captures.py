"""Loading what a user has: folders, lists, transforms.json, COLMAP; sizes, crops, distortion; bad input."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from captures import small_capture
from PIL import Image

from da3_splat import load_views
from da3_splat.data.synthetic import make_scenes
from da3_splat.data.views import snapped_size, undistort
from da3_splat.geometry.projection import project, unproject
from da3_splat.io.frames import Frame, Lens
from da3_splat.types import Cameras


def test_snapped_size_by_hand():
    """1208x680 at 504 -> 504 x 283.7 -> 504 x 280; ties go up; a strip keeps at least one patch."""
    assert snapped_size(680, 1208, 504) == (280, 504)
    assert snapped_size(1208, 680, 504) == (504, 280)
    assert snapped_size(21, 42, 42) == (28, 42)
    assert snapped_size(3, 500, 140) == (14, 140)


def test_folder_list_and_single_file(tmp_path):
    for name, size in (("b.png", (60, 40)), ("a.jpg", (60, 40)), ("notes.txt", None), (".hidden.png", (60, 40))):
        if size:
            Image.new("RGB", size, (200, 100, 50)).save(tmp_path / name)
        else:
            (tmp_path / name).write_text("x")
    views = load_views(tmp_path, resolution=84)
    assert views.names == ("a.jpg", "b.png") and views.images.shape == (1, 2, 3, 56, 84) and views.cameras is None
    assert load_views([tmp_path / "b.png"], resolution=84).names == ("b.png",)
    assert load_views(tmp_path / "a.jpg", resolution=84).images.shape[1] == 1
    assert torch.allclose(views.images[0, 1].mean(dim=(1, 2)), torch.tensor([200, 100, 50]) / 255, atol=0.01)


def test_mixed_sizes_are_cropped_around_the_centre(tmp_path):
    Image.new("RGB", (80, 40)).save(tmp_path / "wide.png")
    Image.new("RGB", (40, 80)).save(tmp_path / "tall.png")
    assert load_views(tmp_path, resolution=112).images.shape == (1, 2, 3, 56, 56)


def test_capture_keeps_its_frame_and_intrinsics(tmp_path):
    """Cameras come back as written; a sparse point still falls on a pixel of its colour after resizing."""
    small_capture(tmp_path, views=4)
    _, truth = make_scenes(1, 4, 56, 84, 7, arc=60)
    views = load_views(tmp_path, resolution=84)
    assert torch.allclose(views.cameras.world_to_camera, truth.cameras.world_to_camera, atol=1e-5)
    assert torch.allclose(views.cameras.intrinsics, truth.cameras.intrinsics, atol=1e-4)
    half = load_views(tmp_path, resolution=42)
    assert half.images.shape[-2:] == (28, 42)
    assert torch.allclose(half.cameras.intrinsics[..., :2, :], truth.cameras.intrinsics[..., :2, :] / 2, atol=1e-4)
    assert load_views(tmp_path / "transforms.json", resolution=84, max_views=2).names == (
        views.names[0],
        views.names[3],
    )


@pytest.mark.parametrize("name", ["fox", "horns"])
def test_real_captures_agree_between_formats(captures, name):
    """transforms.json and COLMAP give the same cameras, and the sparse points reproject where COLMAP saw them."""
    import pycolmap

    by_json, by_colmap = load_views(captures / name), load_views(captures / name / "sparse" / "0")
    assert by_json.names == by_colmap.names
    # The two files may live in frames that differ by a rigid motion (applied_transform): compare what is invariant.
    relative = [c.world_to_camera[0] @ c.camera_to_world[0, :1] for c in (by_json.cameras, by_colmap.cameras)]
    assert torch.allclose(relative[0], relative[1], atol=1e-4)
    assert torch.allclose(by_json.cameras.intrinsics, by_colmap.cameras.intrinsics, atol=1e-3)

    reconstruction = pycolmap.Reconstruction(str(captures / name / "sparse" / "0"))
    image = min(reconstruction.images.values(), key=lambda image: image.name)
    observed = [point for point in image.points2D if point.has_point3D()]
    points = torch.tensor(np.array([reconstruction.points3D[p.point3D_id].xyz for p in observed])).float()
    size = reconstruction.cameras[image.camera_id]
    camera = by_colmap.cameras.select([0]).resized(size.height, size.width)
    pixels, _ = project(points, camera)
    seen = torch.tensor(np.array([p.xy for p in observed])).float()
    seen = seen / (seen.max() / max(size.height, size.width)).ceil()  # fox was solved at four times this size
    error = (pixels[0, 0] - seen).norm(dim=-1)
    assert error.median() < 1.5


def test_undistortion_straightens_a_known_bend():
    """A picture bent by the forward model comes back: bend coordinates, read them off, compare with what they were."""
    intrinsics = torch.tensor([[60.0, 0, 42], [0, 60, 28], [0, 0, 1]], dtype=torch.float64)
    k1 = -0.1
    frame = Frame(
        path=Path("x"), height=56, width=84, intrinsics=intrinsics, lens=Lens("SIMPLE_RADIAL", (60, 42, 28, k1))
    )
    y, x = torch.meshgrid(torch.arange(56) + 0.5, torch.arange(84) + 0.5, indexing="ij")
    bent_x, bent_y = (x - 42) / 60, (y - 28) / 60
    straight = torch.stack([bent_x, bent_y])
    for _ in range(20):  # invert x (1 + k1 r^2) = bent
        straight = torch.stack([bent_x, bent_y]) / (1 + k1 * straight.square().sum(dim=0))
    picture = torch.cat([straight, torch.zeros(1, 56, 84)])  # a distorted camera's picture of its own true coordinates
    result, inside = undistort(picture, frame)
    assert inside.all()
    want = torch.stack([(x - 42) / 60, (y - 28) / 60])
    assert (result[:2, 4:-4, 4:-4] - want[:, 4:-4, 4:-4]).abs().max() < 2e-3


def test_bad_input_names_the_file(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such file or folder"):
        load_views(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no images in this folder"):
        load_views(tmp_path)
    with pytest.raises(ValueError, match="empty list"):
        load_views([])
    small_capture(tmp_path, views=2)
    (tmp_path / "images" / "view_0001.png").unlink()
    with pytest.raises(ValueError, match="view_0001.png: no such image"):
        load_views(tmp_path)
    with pytest.raises(ValueError, match="max_views"):
        load_views(tmp_path, max_views=0)
    with pytest.raises(ValueError, match="resolution"):
        load_views(tmp_path, resolution=5)
    (tmp_path / "colmap").mkdir()
    for name in ("cameras.bin", "images.bin", "points3D.bin"):
        (tmp_path / "colmap" / name).write_bytes(b"\xff" * 20)
    with pytest.raises(ValueError, match="colmap: not a readable COLMAP model"):
        load_views(tmp_path / "colmap")


def test_cameras_belong_to_the_pixels_as_stored(tmp_path):
    """EXIF turns loose photos upright, but never a picture that has a camera; a camera of another size is refused."""
    capture = small_capture(tmp_path, views=2)
    path = capture / "images" / "view_0000.png"
    picture = Image.open(path)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(path, exif=exif)
    assert load_views(capture, resolution=84).images.shape[-2:] == (56, 84)
    assert load_views(path, resolution=84).images.shape[-2:] == (84, 56)
    Image.new("RGB", (84, 84)).save(path)
    with pytest.raises(ValueError, match="its camera is of a 84x56 picture, but it has 84x84 pixels"):
        load_views(capture)


def test_nothing_outside_the_capture_is_read(tmp_path):
    capture = small_capture(tmp_path / "capture", views=2)
    shutil.copy(capture / "images" / "view_0000.png", tmp_path / "secret.png")
    content = json.loads((capture / "transforms.json").read_text())
    content["frames"][0]["file_path"] = "../secret.png"
    (capture / "transforms.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="outside"):
        load_views(capture)


def distorted_picture(lens: Lens, intrinsics: torch.Tensor) -> torch.Tensor:
    """(2,56,84): what a lens draws of the plane z = 1 whose colour is its own coordinates, found by inverting it."""
    import pycolmap

    camera = pycolmap.Camera(model=lens.model, width=84, height=56, params=list(lens.params))
    y, x = np.mgrid[0:56, 0:84] + 0.5
    rays = camera.cam_from_img(np.stack([x, y], axis=-1).reshape(-1, 2))
    return torch.from_numpy(np.asarray(rays, np.float32)).reshape(56, 84, 2).permute(2, 0, 1)


LENSES = {
    "SIMPLE_RADIAL": (60, 42, 28, -0.1),
    "RADIAL": (60, 42, 28, -0.1, 0.02),
    "OPENCV": (60, 62, 42, 27, -0.08, 0.01, 0.002, -0.003),
    "FULL_OPENCV": (60, 62, 42, 27, -0.08, 0.01, 0.002, -0.003, 0.001, 0.01, 0.0, 0.0),
    "OPENCV_FISHEYE": (60, 62, 42, 27, -0.02, 0.01, 0.0, 0.0),
    "SIMPLE_RADIAL_FISHEYE": (60, 42, 28, -0.02),
    "RADIAL_FISHEYE": (60, 42, 28, -0.02, 0.01),
    "FOV": (60, 62, 42, 27, 0.5),
    "THIN_PRISM_FISHEYE": (60, 62, 42, 27, -0.02, 0.01, 0.001, 0.001, 0, 0, 0.001, 0.001),
    "RAD_TAN_THIN_PRISM_FISHEYE": (60, 62, 42, 27, -0.02, 0.01, 0, 0, 0, 0, 0.001, 0.001, 0.001, 0, 0.001, 0),
    "SIMPLE_DIVISION": (60, 42, 28, -0.05),
    "DIVISION": (60, 62, 42, 27, -0.05),
    "SIMPLE_FISHEYE": (60, 42, 28),
    "FISHEYE": (60, 62, 42, 27),
    "EUCM": (60, 62, 42, 27, 0.5, 1.1),
}


@pytest.mark.parametrize("model", LENSES)
def test_every_lens_is_undistorted(model):
    """A picture of the plane's own coordinates comes back as a pinhole camera's picture of them."""
    lens = Lens(model, tuple(map(float, LENSES[model])))
    intrinsics = torch.tensor([[60.0, 0, 42], [0, 60.0, 28], [0, 0, 1]], dtype=torch.float64)
    frame = Frame(path=Path("x"), height=56, width=84, intrinsics=intrinsics, lens=lens)
    result, inside = undistort(distorted_picture(lens, intrinsics), frame)
    y, x = torch.meshgrid(torch.arange(56) + 0.5, torch.arange(84) + 0.5, indexing="ij")
    want = torch.stack([(x - 42) / 60, (y - 28) / 60])
    middle = inside.clone()
    middle[:4], middle[-4:], middle[:, :4], middle[:, -4:] = False, False, False, False
    assert middle.float().mean() > 0.5
    assert (result - want)[:, middle].abs().max() < 6e-3


def test_all_models_of_colmap_are_covered():
    import pycolmap

    known = set(pycolmap.CameraModelId.__members__) - {"INVALID", "EQUIRECTANGULAR", "SIMPLE_PINHOLE", "PINHOLE"}
    assert known == set(LENSES)
    frame = Frame(path=Path("x"), height=56, width=84, intrinsics=torch.eye(3).double(), lens=Lens("WIDE", (1.0,)))
    with pytest.raises(ValueError, match="camera model WIDE is not supported"):
        undistort(torch.zeros(3, 56, 84), frame)
    with pytest.raises(ValueError, match="expected parameters"):
        undistort(torch.zeros(3, 56, 84), replace(frame, lens=Lens("OPENCV", (1.0, 2.0))))


def test_pixels_the_lens_never_saw_are_masked():
    """A pincushion lens leaves the corners of the pinhole picture empty: they are black and masked."""
    intrinsics = torch.tensor([[60.0, 0, 42], [0, 60.0, 28], [0, 0, 1]], dtype=torch.float64)
    frame = Frame(
        path=Path("x"), height=56, width=84, intrinsics=intrinsics, lens=Lens("SIMPLE_RADIAL", (60, 42, 28, 0.3))
    )
    result, inside = undistort(torch.ones(3, 56, 84), frame)
    assert not inside[0, 0] and inside[28, 42] and (result[:, ~inside] == 0).all() and (result[:, inside] > 0.99).all()


def test_masks_come_from_alpha_and_from_mask_files(tmp_path):
    """Half transparent, half masked by a file: what is left is a quarter, also after resizing."""
    capture = small_capture(tmp_path, views=2)
    for index in range(2):
        path = capture / "images" / f"view_{index:04d}.png"
        picture = Image.open(path).convert("RGBA")
        alpha = np.full((56, 84), 255, np.uint8)
        alpha[:28] = 0 if index == 0 else 255
        picture.putalpha(Image.fromarray(alpha))
        picture.save(path)
    mask = np.zeros((56, 84), np.uint8)
    mask[:, 42:] = 255
    Image.fromarray(mask).save(capture / "mask.png")
    content = json.loads((capture / "transforms.json").read_text())
    content["frames"][0]["mask_path"] = "mask.png"
    (capture / "transforms.json").write_text(json.dumps(content))
    views = load_views(capture, resolution=42)
    assert views.masks.shape == (1, 2, 28, 42)
    want = torch.zeros(28, 42, dtype=torch.bool)
    want[14:, 21:] = True
    assert torch.equal(views.masks[0, 0], want) and views.masks[0, 1].all()
    content["frames"][0]["mask_path"] = "../mask.png"
    (capture / "transforms.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="outside"):
        load_views(capture)


def test_focal_length_of_exif(tmp_path):
    """24 mm on full frame: the diagonal, 43.27 mm, is the picture's diagonal in pixels; resizing scales it."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 24
    Image.new("RGB", (840, 560)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGB", (840, 560)).save(tmp_path / "b.jpg")
    views = load_views(tmp_path, resolution=84)
    assert views.cameras is None and torch.isnan(views.focals[1])
    assert torch.isclose(views.focals[0], torch.tensor(24 / 43.2666 * (840**2 + 560**2) ** 0.5 / 10), rtol=1e-4)
    assert load_views(tmp_path / "b.jpg", resolution=84).focals is None


def test_unreadable_pictures_are_left_out_if_asked(tmp_path):
    for name in ("a.png", "c.png"):
        Image.new("RGB", (60, 40)).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(ValueError, match="b.png: not a readable image"):
        load_views(tmp_path, resolution=84)
    skipped: dict[int, str] = {}
    views = load_views(tmp_path, resolution=84, skipped=skipped)
    assert views.names == ("a.png", "c.png") and list(skipped) == [1] and "b.png" in skipped[1]
    for name in ("a.png", "c.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="no picture could be read: .*a.png"):
        load_views(tmp_path, resolution=84, skipped={})


def test_sizes_and_intrinsics_of_the_official_preprocessing(golden_cases):
    """The official code's picture sizes and K for a 1208x680 pair at 140, and for a pair of mixed sizes."""
    from da3_splat.data.views import OneView, join_views

    golden = np.load(golden_cases / "api_preprocess.npz")
    height, width = golden["upper_bound_resize_shape"][-2:]
    assert snapped_size(680, 1208, 140) == (height, width)
    given = torch.from_numpy(golden["K_in"])

    def camera(k: torch.Tensor, h: int, w: int) -> Cameras:
        return Cameras(world_to_camera=torch.eye(4)[None, None], intrinsics=k[None, None], height=h, width=w)

    for k, want in zip(given, golden["upper_bound_resize_K"]):
        assert np.allclose(camera(k, 680, 1208).resized(height, width).intrinsics[0, 0], want, rtol=2e-3)
    sizes = [(680, 1208), (680, 800)]
    reads = []
    for k, size in zip(given, sizes):
        snapped = snapped_size(*size, 140)
        reads.append(OneView(torch.zeros(3, *snapped), camera(k, *size).resized(*snapped)))
    joined = join_views(reads)
    assert -(-joined.images.shape[-2] // 3) == golden["mixed_x"].shape[-2]
    assert np.allclose(joined.cameras.intrinsics[0, :, :2, 2], golden["mixed_K"][:, :2, 2], atol=1.0)


def test_a_real_stereo_pair_of_true_scale():
    """Middlebury's Motorcycle (inside scikit-image's wheel): with its depth the right view warps to the left one.

    Published calibration of the half-size pair: focal 994.978, baseline 193.001 mm, principal points 311.193 and
    342.279 in x (the doffs of 31.086), 254.877 in y.
    """
    skimage_data = pytest.importorskip("skimage.data")
    left, right, disparity = skimage_data.stereo_motorcycle()
    height, width = disparity.shape
    focal, baseline, doffs = 994.978, 0.193001, 31.086
    valid = np.isfinite(disparity) & (disparity > 0)
    depth = np.where(valid, baseline * focal / (np.where(valid, disparity, 1) + doffs), 0)
    intrinsics = torch.tensor([[focal, 0, 311.193], [0, focal, 254.877], [0, 0, 1]]).repeat(1, 2, 1, 1)
    intrinsics[0, 1, 0, 2] += doffs
    poses = torch.eye(4).repeat(1, 2, 1, 1)
    poses[0, 1, 0, 3] = -baseline
    cameras = Cameras(world_to_camera=poses, intrinsics=intrinsics, height=height, width=width)
    points = unproject(torch.from_numpy(depth).float()[None, None], cameras.select([0])).reshape(-1, 3)
    pixels, _ = project(points, cameras.select([1]))
    grid = (pixels[0, 0] / torch.tensor([width, height]) * 2 - 1).reshape(1, height, width, 2)
    pictures = [torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1) for image in (left, right)]
    warped = torch.nn.functional.grid_sample(pictures[1][None], grid, align_corners=False)[0]
    seen = torch.from_numpy(valid) & (grid[0].abs() < 1).all(dim=-1)
    error = (warped - pictures[0]).abs().mean(dim=0)[seen]
    unmoved = (pictures[1] - pictures[0]).abs().mean(dim=0)[seen]
    assert 1.5 < np.median(depth[valid]) < 5.0  # metres
    assert error.median() < 0.02 and error.mean() < 0.5 * unmoved.mean()
