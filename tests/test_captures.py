"""Loading what a user has: folders, lists, transforms.json, COLMAP; sizes, crops, distortion; bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from captures import small_capture
from PIL import Image

from da3_splat import load_views
from da3_splat.data.synthetic import make_scenes
from da3_splat.data.views import snapped_size, undistort
from da3_splat.geometry.projection import project
from da3_splat.io.frames import Frame, Lens


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
