"""MegaDepth on disk: several models a landmark, undistorted intrinsics, ordinal depth, scene-info archives."""

import shutil

import cv2
import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from da3_splat.data.captures import read_frames
from da3_splat.data.colmap_text import RawCamera, read_cameras, read_images, read_points
from da3_splat.data.layouts import write_megadepth_scene, write_scene_info
from da3_splat.data.megadepth import (
    TEST_LANDMARKS,
    find_scenes,
    only_test_landmarks,
    read_depth,
    scene_at,
    undistorted_intrinsics,
    without_test_landmarks,
)
from da3_splat.data.scene_info import read_scene_info
from da3_splat.geometry.projection import project
from da3_splat.types import Cameras

VIEWS, HEIGHT, WIDTH = 4, 42, 56
PHOENIX = "phoenix/S6/zl548/MegaDepth_v1"


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Landmark 0000 with models 0 and 2, test landmark 5004 with model 0; and the truth of 0000/dense0."""
    root = tmp_path_factory.mktemp("megadepth")
    truth = write_megadepth_scene(root, "0000", 0, VIEWS, HEIGHT, WIDTH, seed=1, supersample=1)
    write_megadepth_scene(root, "0000", 2, 2, HEIGHT, WIDTH, seed=2, supersample=1)
    write_megadepth_scene(root, "5004", 0, 2, HEIGHT, WIDTH, seed=3, supersample=1)
    return root, truth


@pytest.fixture
def copied(collection, tmp_path):
    """A copy of it to damage, and its 0000/dense0."""
    root = tmp_path / "copy"
    shutil.copytree(collection[0], root)
    return root, root / PHOENIX / "0000" / "dense0"


def edit(path, change) -> None:
    path.write_text("\n".join(change(path.read_text().split("\n"))))


def test_models_are_scenes_of_their_own(collection):
    root, _ = collection
    for place in (root, root / PHOENIX):
        scenes, problems = find_scenes(place)
        assert problems == [] and [scene.name for scene in scenes] == ["0000_0", "0000_2", "5004_0"]
    assert [len(scene.frames()) for scene in scenes] == [VIEWS, 2, 2]
    first, second = scenes[0].frames()[0], scenes[1].frames()[0]
    assert not torch.allclose(first.world_to_camera, second.world_to_camera)


def test_test_landmarks_are_kept_apart(collection):
    scenes, _ = find_scenes(collection[0])
    assert [scene.name for scene in without_test_landmarks(scenes)] == ["0000_0", "0000_2"]
    assert [scene.name for scene in only_test_landmarks(scenes)] == ["5004_0"]
    assert len(TEST_LANDMARKS) == 19 and TEST_LANDMARKS[0] == "5000" and TEST_LANDMARKS[-1] == "5018"


def test_a_scene_reads_back(collection):
    """Poses, sizes (which differ, portraits included), intrinsics of each picture, and pixels within JPEG's error."""
    root, truth = collection
    frames = find_scenes(root)[0][0].frames()
    assert len({(frame.height, frame.width) for frame in frames}) == 3
    assert len({frame.intrinsics[0, 0].item() for frame in frames}) == VIEWS
    for frame, written in zip(frames, truth):
        assert frame.path == written.frame.path and frame.lens is None
        assert (frame.height, frame.width) == (written.frame.height, written.frame.width)
        assert torch.allclose(frame.world_to_camera, written.frame.world_to_camera, atol=1e-6)
        assert torch.allclose(frame.intrinsics, written.frame.intrinsics, atol=1e-4)
        with Image.open(frame.path) as picture:
            assert (picture.height, picture.width) == (frame.height, frame.width)
    views = read_frames(frames[:2], points=None, colors=None, resolution=WIDTH)
    assert views.images.shape == (1, 2, 3, HEIGHT, WIDTH)


def test_sparse_points_fall_on_their_colour(collection):
    """The whole chain at once: points, poses and undistorted intrinsics of one frame agree with the pixels."""
    root, _ = collection
    scene = find_scenes(root)[0][0]
    points, colors = scene.points()
    frame = scene.frames()[0]
    camera = Cameras(
        world_to_camera=frame.world_to_camera.float()[None, None],
        intrinsics=frame.intrinsics.float()[None, None],
        height=frame.height,
        width=frame.width,
    )
    own = slice(0, 40)  # the points that the writer took from this picture
    pixels, depth = project(torch.from_numpy(points[own]), camera)
    columns, rows = pixels[0, 0].floor().long().unbind(-1)
    assert (depth > 0).all() and torch.allclose(pixels[0, 0] % 1, torch.tensor(0.5), atol=5e-3)
    with Image.open(frame.path) as picture:
        seen = np.asarray(picture, np.float32)[rows, columns] / 255
    assert np.abs(seen - colors[own]).mean() < 0.1  # JPEG
    own_depth = read_depth(frame.path.parents[1] / "depths" / f"{frame.path.stem}.h5")
    assert torch.allclose(own_depth[rows, columns], depth[0, 0], rtol=1e-3)


def test_undistorted_intrinsics_by_hand():
    """No distortion: the centre goes to the middle, half the size has half the focal length (319/639)."""
    plain = RawCamera(640, 480, 500.0, 500.0, 320.0, 240.0, 0.0)
    same = undistorted_intrinsics(plain, 480, 640)
    assert torch.allclose(same, torch.tensor([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]]).double(), atol=1e-6)
    half = undistorted_intrinsics(plain, 240, 320)
    assert torch.allclose(half[0], torch.tensor([500 * 319 / 639, 0, 160]).double(), atol=1e-3)
    # An off-centre lens: the picture is centred on it, so the nearer border decides, 199.5 of 319.5 pixels away.
    off = undistorted_intrinsics(RawCamera(640, 480, 500.0, 500.0, 200.0, 240.0, 0.0), 480, 640)
    assert torch.allclose(off[0], torch.tensor([500 * 319.5 / 199.5, 0, 320]).double(), atol=1e-3)


@pytest.mark.parametrize("radial", [-0.12, 0.12])
def test_undistorted_picture_has_no_blank_pixels(radial):
    """Its border, bent, stays within the raw photo and touches the photo's border: the largest such window."""
    camera = RawCamera(640, 480, 500.0, 500.0, 320.0, 240.0, radial)
    k = undistorted_intrinsics(camera, 470, 620).numpy()
    x, y = np.meshgrid(np.linspace(0.5, 619.5, 301), np.linspace(0.5, 469.5, 301))
    x, y = (x - k[0, 2]) / k[0, 0], (y - k[1, 2]) / k[1, 1]
    factor = 1 + radial * (x * x + y * y)
    columns, rows = 500 * x * factor + 320, 500 * y * factor + 240
    slack = min(columns.min(), rows.min(), 640 - columns.max(), 480 - rows.max())
    assert -0.1 < slack < 1.0
    assert k[0, 0] == k[1, 1] != 500


def test_only_scaling_the_raw_intrinsics_is_wrong():
    """What D2-Net's direct script does ignores k: here it would be off by 3 percent."""
    camera = RawCamera(640, 480, 500.0, 500.0, 320.0, 240.0, -0.12)
    assert abs(undistorted_intrinsics(camera, 480, 640)[0, 0].item() / 500 - 1) > 0.02


def test_depth_masks_are_not_depth(collection, tmp_path):
    """Small files (D2-Net's rule) and files with labels below 0 (COTR's) are ordinal; 0 is not known."""
    scene = find_scenes(collection[0])[0][0]
    reading = scene.read()
    assert reading.depths == [None] * VIEWS and len(reading.frames) == VIEWS  # these pictures are tiny
    assert len(reading.problems) == VIEWS and "below 102400 bytes" in reading.problems[0]
    asked = scene.read(smallest_depth=0)
    assert asked.problems == [] and [path.suffix for path in asked.depths] == [".h5"] * VIEWS
    depth = read_depth(asked.depths[1])
    assert torch.equal(depth, collection[1][1].depth) and depth.dtype == torch.float32
    labels = np.ones((3, 4), np.float32)
    labels[1, 2] = -1
    with h5py.File(tmp_path / "labels.h5", "w") as file:
        file["depth"] = labels
    assert read_depth(tmp_path / "labels.h5") is None
    assert torch.equal(read_depth(tmp_path / "labels.h5", keep_ordinal=True), torch.from_numpy(labels))
    with h5py.File(tmp_path / "holes.h5", "w") as file:
        file["depth"] = np.array([[np.nan, 2.0], [0.0, np.inf]], np.float32)
    assert read_depth(tmp_path / "holes.h5").tolist() == [[0.0, 2.0], [0.0, 0.0]]


def test_depth_of_usual_size_is_depth(copied):
    """168x168 floats are above the limit, and offered by default."""
    root, dense = copied
    for path in (dense / "depths").iterdir():
        with h5py.File(path, "w") as file:
            file["depth"] = np.ones((168, 168), np.float32)
    reading = find_scenes(root)[0][0].read()
    assert reading.problems == [] and reading.depths[0].name == reading.frames[0].path.stem + ".h5"


def test_bad_depth_files_are_named(tmp_path):
    (tmp_path / "text.h5").write_text("no hdf5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["label"] = np.ones((2, 2))
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["depth"] = h5py.ExternalLink("other.h5", "label")
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["depth"] = np.ones(4)
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file.create_group("depth")
    for name in ("text", "other", "link", "flat", "group"):
        with pytest.raises(ValueError, match=f"{name}.h5: not a readable depth file"):
            read_depth(tmp_path / f"{name}.h5")
    with pytest.raises(ValueError, match="none.h5: no such file"):
        read_depth(tmp_path / "none.h5")


def test_pictures_that_lack_something(copied):
    """No depth, no pose, no picture, a damaged picture: the rest loads, a line each."""
    root, dense = copied
    scene = find_scenes(root)[0][0]
    names = sorted(path.name for path in (dense / "imgs").iterdir())
    (dense / "depths" / f"{names[0][:-4]}.h5").unlink()
    (dense / "imgs" / names[1]).unlink()
    (dense / "imgs" / names[2]).write_text("no picture")
    shutil.copy(dense / "imgs" / names[0], dense / "imgs" / "stranger.jpg")
    reading = scene.read(smallest_depth=0)
    assert [frame.name for frame in reading.frames] == [names[0], names[3]]
    assert reading.depths[0] is None and reading.depths[1] is not None
    assert len(reading.problems) == 3 and not any("\n" in problem for problem in reading.problems)
    assert f"{names[2]}: not a readable image" in reading.problems[0]
    assert f"1 posed photos are not in {dense / 'imgs'} ({names[1]})" in reading.problems[1]
    assert "1 pictures have no pose" in reading.problems[2] and "stranger.jpg" in reading.problems[2]


def test_listing_reports_what_is_no_scene(copied):
    root, dense = copied
    shutil.rmtree(dense / "imgs")
    shutil.rmtree(root / "MegaDepth_v1_SfM" / "0000" / "sparse" / "manhattan" / "2")
    scenes, problems = find_scenes(root)
    assert [scene.name for scene in scenes] == ["5004_0"]
    assert "dense0: no folder imgs" in problems[0] and "dense2: its model" in problems[1]
    shutil.rmtree(root / "MegaDepth_v1_SfM")
    with pytest.raises(ValueError, match="no MegaDepth_v1_SfM folder here or above"):
        find_scenes(root)
    with pytest.raises(ValueError, match="no <scene>/dense<k> folders"):
        find_scenes(dense)
    with pytest.raises(ValueError, match="expected a folder <scene>/dense<k>"):
        scene_at(dense)


def test_one_scene_by_its_folder(copied):
    root, dense = copied
    assert scene_at(dense).name == "0000_0" and len(scene_at(dense).frames()) == VIEWS
    moved = root.parent / "elsewhere"
    (root / "MegaDepth_v1_SfM").rename(moved)
    assert len(scene_at(dense, moved).frames()) == VIEWS


def test_colmap_text(tmp_path):
    """wxyz, two lines a picture of which the second may be blank, names with spaces, comments, all camera models."""
    (tmp_path / "cameras.txt").write_text(
        "# three lines\n#\n#\n1 SIMPLE_RADIAL 8 6 5.0 4 3 -0.1\n2 PINHOLE 8 6 5 7 4 3\n\n3 SIMPLE_PINHOLE 8 6 5 4 3\n"
    )
    cameras = read_cameras(tmp_path / "cameras.txt")
    assert cameras[1] == RawCamera(8, 6, 5.0, 5.0, 4.0, 3.0, -0.1)
    assert cameras[2] == RawCamera(8, 6, 5.0, 7.0, 4.0, 3.0, 0.0)
    assert cameras[3] == RawCamera(8, 6, 5.0, 5.0, 4.0, 3.0, 0.0)
    (tmp_path / "images.txt").write_text(
        "#\n#\n#\n#\n7 0.5 0.5 0.5 0.5 1 2 3 1 a b.jpg\n\n9 2 0 0 0 0 0 0 2 c.jpg\n1.5 2.5 -1 3.0 4.0 12\n"
    )
    images = read_images(tmp_path / "images.txt")
    assert [(image.name, image.camera) for image in images] == [("a b.jpg", 1), ("c.jpg", 2)]
    # The quaternion (1,1,1,1)/2 takes x to y, y to z, z to x.
    expected = [[0.0, 0, 1, 1], [1, 0, 0, 2], [0, 1, 0, 3], [0, 0, 0, 1]]
    assert torch.allclose(images[0].world_to_camera, torch.tensor(expected).double())
    assert torch.equal(images[1].world_to_camera, torch.eye(4).double())
    (tmp_path / "points3D.txt").write_text("#\n#\n#\n5 1.0 2.0 3.0 255 0 51 0.7 7 0 9 1\n")
    points, colors = read_points(tmp_path / "points3D.txt")
    assert points.tolist() == [[1.0, 2.0, 3.0]] and np.allclose(colors, [[1.0, 0.0, 0.2]])


@pytest.mark.parametrize(
    "name, reader, text, message",
    [
        ("cameras.txt", read_cameras, "1 OPENCV 8 6 5 5 4 3 0 0 0 0", "line 1: expected a camera of SIMPLE_RADIAL"),
        ("cameras.txt", read_cameras, "#\n1 PINHOLE 8 6 5 5 4", "line 2: expected a camera"),
        ("cameras.txt", read_cameras, "1 PINHOLE 8 6 0 5 4 3", "line 1: expected a positive"),
        ("cameras.txt", read_cameras, "#\n", "no cameras"),
        ("images.txt", read_images, "1 1 0 0 0 0 0 0 1", "line 1: expected ID QW"),
        ("images.txt", read_images, "1 0 0 0 0 0 0 0 1 a.jpg", "line 1: its rotation"),
        ("images.txt", read_images, "1 1 0 0 0 0 0 nan 1 a.jpg", "line 1: expected finite"),
        ("images.txt", read_images, "1 1 0 0 0 0 0 0 1 a.jpg\n2 1 0 0 0 0 0 0 1 b.jpg", "line 2: expected the 2D"),
        ("images.txt", read_images, "", "no images"),
        ("points3D.txt", read_points, "1 2 3", "line 1: expected ID X Y Z R G B"),
        ("points3D.txt", read_points, "1 x 2 3 4 5 6 7", "line 1: expected numbers"),
    ],
)
def test_bad_models_name_the_line(tmp_path, name, reader, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name}: {message}") as caught:
        reader(tmp_path / name)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="none.txt: no such file"):
        reader(tmp_path / "none.txt")
    (tmp_path / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=f"{name}: not a readable text file"):
        reader(tmp_path / name)


def test_a_camera_that_is_not_there(copied):
    root, dense = copied
    scene = find_scenes(root)[0][0]
    edit(scene.model / "cameras.txt", lambda lines: [line for line in lines if not line.startswith("1 ")])
    reading = scene.read(smallest_depth=0)
    assert len(reading.frames) == VIEWS - 1 and "there is no camera 1" in reading.problems[0]
    for path in (dense / "imgs").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="dense0: no picture can be used"):
        scene.read()


def test_scene_info(collection, tmp_path):
    """Plain arrays come back; frames have the intrinsics of the archive and the size of the picture."""
    root, truth = collection
    overlap, pairs = torch.rand(VIEWS, VIEWS), torch.tensor([[0, 2, 0.5], [1, 3, 0.25]])
    write_scene_info(tmp_path / "0000_0.npz", root, truth, overlap, pairs)
    info = read_scene_info(tmp_path / "0000_0.npz")
    assert torch.equal(info.overlap, overlap) and info.pairs.tolist() == [[0, 2], [1, 3]]
    assert info.pair_overlap.tolist() == [0.5, 0.25] and info.depths[0].startswith(f"{PHOENIX}/0000/dense0/depths/")
    frames, which, problems = info.frames(root)
    assert problems == [] and which == [0, 1, 2, 3]
    for frame, written in zip(frames, truth):
        assert torch.equal(frame.intrinsics, written.frame.intrinsics) and frame.height == written.frame.height
        assert torch.equal(frame.world_to_camera, written.frame.world_to_camera)
    write_scene_info(tmp_path / "bare.npz", root, truth, overlap)
    assert read_scene_info(tmp_path / "bare.npz").pairs.shape == (0, 2)


def test_scene_info_never_unpickles(collection, tmp_path):
    """The published archives are pickled: refused in one line that says what to do, and nothing in them runs."""
    root, truth = collection
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (ran.write_text, ("x",))

    write_scene_info(tmp_path / "good.npz", root, truth, torch.rand(VIEWS, VIEWS))
    arrays = dict(np.load(tmp_path / "good.npz"))
    for name in ("image_paths", "intrinsics", "poses"):
        evil = np.array([Evil()] * VIEWS, dtype=object)
        np.savez(tmp_path / "evil.npz", allow_pickle=True, **{**arrays, name: evil})
        with pytest.raises(ValueError, match=f"evil.npz: {name}: holds pickled Python objects.*convert") as caught:
            read_scene_info(tmp_path / "evil.npz")
        assert "\n" not in str(caught.value) and not ran.exists()


def test_bad_scene_info(collection, tmp_path):
    root, truth = collection
    write_scene_info(tmp_path / "good.npz", root, truth, torch.rand(VIEWS, VIEWS))
    arrays = dict(np.load(tmp_path / "good.npz"))
    bad = tmp_path / "bad.npz"
    for change, message in (
        ({"poses": arrays["poses"][:2]}, "poses: expected 4 rows"),
        ({"intrinsics": arrays["intrinsics"][:, :2]}, r"intrinsics: expected shape \(\*, 3, 3\)"),
        ({"overlap_matrix": arrays["overlap_matrix"][:, :2]}, "overlap_matrix: expected 4 rows"),
        ({"image_paths": np.arange(4)}, "image_paths: expected shape"),
        ({"pair_infos": np.array([[0, 9, 0.5]])}, "pair_infos: expected pictures 0 to 3"),
    ):
        np.savez(bad, **{**arrays, **change})
        with pytest.raises(ValueError, match=f"bad.npz: {message}"):
            read_scene_info(bad)
    np.savez(bad, **{name: value for name, value in arrays.items() if name != "poses"})
    with pytest.raises(ValueError, match="bad.npz: no array poses"):
        read_scene_info(bad)
    bad.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ValueError, match="bad.npz: not a readable npz archive"):
        read_scene_info(bad)
    np.save(tmp_path / "single.npy", np.ones(3))
    with pytest.raises(ValueError, match="single.npy: not a readable npz archive .expected an npz archive"):
        read_scene_info(tmp_path / "single.npy")
    np.save(tmp_path / "pickled.npy", np.array([None]), allow_pickle=True)
    with pytest.raises(ValueError, match="pickled.npy: not a readable npz archive"):
        read_scene_info(tmp_path / "pickled.npy")
    outside = np.array(["../secret.jpg", *arrays["image_paths"][1:]])
    np.savez(bad, **{**arrays, "image_paths": outside})
    frames, which, problems = read_scene_info(bad).frames(root)
    assert which == [1, 2, 3] and "lies outside" in problems[0]


def test_raw_photos_are_bent(collection):
    """The writer's raw photo, undistorted by OpenCV, is the picture in imgs: the two halves of the download agree."""
    _, truth = collection
    frame, raw = truth[0].frame, truth[0].raw
    model = collection[0] / "MegaDepth_v1_SfM" / "0000" / "images" / frame.path.name
    before = np.array([[raw.fx, 0, raw.cx - 0.5], [0, raw.fy, raw.cy - 0.5], [0, 0, 1]])
    after = frame.intrinsics.numpy().copy()
    after[:2, 2] -= 0.5
    with Image.open(model) as photo, Image.open(frame.path) as picture:
        assert photo.size == (raw.width, raw.height)
        maps = cv2.initUndistortRectifyMap(
            before, np.array([raw.radial, 0, 0, 0]), None, after, picture.size, cv2.CV_32FC1
        )
        straight = cv2.remap(np.asarray(photo), *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        assert np.abs(straight.astype(float) - np.asarray(picture)).mean() < 8
