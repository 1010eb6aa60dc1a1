"""DL3DV on disk: both layouts, folders and zips, every known trap, damaged scenes."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from da3_splat.data.captures import read_frames
from da3_splat.data.dl3dv import Dl3dvScene, find_scenes, read_hashes, without
from da3_splat.data.layouts import WORLD_SWAP, scene_hash, write_dl3dv_scene, write_dl3dv_zip
from da3_splat.data.synthetic import make_scenes
from da3_splat.data.view_index import ViewIndex, write_view_index
from da3_splat.types import Cameras

HEIGHT, WIDTH, VIEWS = 28, 42, 5


@pytest.fixture(scope="module")
def views():
    return make_scenes(1, VIEWS, HEIGHT, WIDTH, 3, supersample=1)[0]


def swapped(cameras: Cameras) -> torch.Tensor:
    """world_to_camera (V,4,4) of the cameras in the world as DL3DV turns it."""
    return cameras.world_to_camera[0].double() @ torch.tensor(WORLD_SWAP).double()


def edit(scene: Path, change) -> None:
    path = next(scene.rglob("transforms.json"))
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def pose_of(frames) -> torch.Tensor:
    return torch.stack([frame.world_to_camera for frame in frames])


@pytest.mark.parametrize("layout", ["folder", "zip", "benchmark"])
def test_a_scene_reads_back(tmp_path, views, layout):
    """Poses in the file's world, K of the small pictures although the file has that of the large ones, pixels."""
    name = scene_hash(1)
    if layout == "zip":
        write_dl3dv_zip(tmp_path / "1K", views, name)
    else:
        folder = tmp_path if layout == "benchmark" else tmp_path / "11K"
        write_dl3dv_scene(folder, views, name, factors=(4, 8), benchmark=layout == "benchmark")
    scenes, problems = find_scenes(tmp_path)
    assert problems == [] and [scene.name for scene in scenes] == [name]
    frames = scenes[0].frames()
    assert [frame.name for frame in frames] == [f"frame_{index:05d}.png" for index in range(1, VIEWS + 1)]
    assert torch.allclose(pose_of(frames), swapped(views.cameras), atol=1e-6)
    assert torch.allclose(frames[0].intrinsics, views.cameras.intrinsics[0, 0].double(), atol=1e-5)
    assert (frames[0].height, frames[0].width, frames[0].lens) == (HEIGHT, WIDTH, None)
    read = read_frames(frames, points=None, colors=None, resolution=WIDTH)
    assert (read.images - views.images).abs().max() < 0.5 / 255 + 1e-6
    if layout == "zip":
        assert isinstance(frames[0].path, zipfile.Path) and not list(tmp_path.rglob("*.png"))


def test_published_keys(tmp_path, views):
    """The file is the old Nerfstudio's to the letter: full size, OpenCV's names, paths under images/, no PLY."""
    scene = write_dl3dv_scene(tmp_path, views, scene_hash(1))
    content = json.loads((scene / "transforms.json").read_text())
    assert set(content) == {
        *("w", "h", "fl_x", "fl_y", "cx", "cy", "k1", "k2", "p1", "p2", "camera_model", "frames"),
    }  # fmt: skip
    assert (content["w"], content["h"]) == (4 * WIDTH, 4 * HEIGHT)
    assert content["frames"][0]["file_path"] == "images/frame_00001.png"
    assert not (scene / "images").exists() and (scene / "images_4" / "frame_00001.png").is_file()
    # The way back that converters take: undo the world swap row by row, then the camera's axes.
    pose = np.array(content["frames"][0]["transform_matrix"])
    pose[2, :] *= -1
    pose = pose[[1, 0, 2, 3]]
    pose[:3, 1:3] *= -1
    assert np.allclose(np.linalg.inv(pose), views.cameras.world_to_camera[0, 0].numpy(), atol=1e-5)


def test_2k_captures_have_small_pictures(tmp_path, views):
    """The trap: w, h and K say 4x, but what lies in images_4 is a half of that: K follows the picture, not the name."""
    scene = write_dl3dv_scene(tmp_path, views, scene_hash(1))
    for path in (scene / "images_4").iterdir():
        Image.open(path).resize((WIDTH // 2, HEIGHT // 2)).save(path)
    frame = Dl3dvScene("x", scene).frames()[0]
    assert (frame.height, frame.width) == (HEIGHT // 2, WIDTH // 2)
    half = views.cameras.resized(HEIGHT // 2, WIDTH // 2).intrinsics[0, 0].double()
    assert torch.allclose(frame.intrinsics, half, atol=1e-5)


def test_picture_folder_by_preference(tmp_path, views):
    scene = write_dl3dv_scene(tmp_path, views, scene_hash(1), factors=(2, 4, 8))
    assert Dl3dvScene("x", scene).frames()[0].path.parent.name == "images_4"
    shutil.rmtree(scene / "images_4")
    (scene / "images_4").mkdir()  # empty
    frame = Dl3dvScene("x", scene).frames()[0]
    assert frame.path.parent.name == "images_8" and frame.width == 2 * WIDTH // 8
    assert Dl3dvScene("x", scene).read(("images_2",))[0][0].width == WIDTH
    with pytest.raises(ValueError, match="no pictures in any of images_16"):
        Dl3dvScene("x", scene).read(("images_16",))


def test_distortion_is_kept_at_the_size_of_the_picture(tmp_path, views):
    scene = write_dl3dv_scene(tmp_path, views, scene_hash(1), distortion=(0.1, -0.02, 0.003, -0.0004))
    frame = Dl3dvScene("x", scene).frames()[0]
    k = frame.intrinsics
    assert frame.lens.model == "OPENCV" and frame.lens.params[4:] == (0.1, -0.02, 0.003, -0.0004)
    assert frame.lens.params[:4] == (k[0, 0].item(), k[1, 1].item(), k[0, 2].item(), k[1, 2].item())


def test_frames_and_pictures_that_lack_the_other(tmp_path, views):
    """Listed but missing, there but not listed: a line each, the rest loads, sorted by name."""
    scene = write_dl3dv_scene(tmp_path, views, scene_hash(1))
    (scene / "images_4" / "frame_00002.png").unlink()

    def change(content):
        del content["frames"][3]  # frame_00004
        content["frames"].reverse()

    edit(scene, change)
    frames, problems = Dl3dvScene("x", scene).read()
    assert [frame.name for frame in frames] == ["frame_00001.png", "frame_00003.png", "frame_00005.png"]
    assert torch.allclose(pose_of(frames), swapped(views.cameras)[[0, 2, 4]], atol=1e-6)
    assert len(problems) == 2 and all("\n" not in problem for problem in problems)
    assert "1 of 4 frames have no picture" in problems[0] and "frame_00002" in problems[0]
    assert "1 of 4 pictures have no pose (frame_00004)" in problems[1]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["frames"][1].pop("file_path"), "frame 1: no file_path"),
        (lambda c: c["frames"][1].pop("transform_matrix"), "frame 1: transform_matrix is missing"),
        (lambda c: c["frames"][1].update(transform_matrix=[[1, 2], [3, 4]]), "frame 1: transform_matrix: expected 4x4"),
        (lambda c: c["frames"][1]["transform_matrix"][0].__setitem__(3, float("nan")), "frame 1: .*finite"),
        (lambda c: c["frames"][1]["transform_matrix"][0].__setitem__(0, 9.0), "frame 1: .*not a rotation"),
        (lambda c: c["frames"][1].update(file_path="images/frame_00001.png"), "frame 1: frame_00001 is listed twice"),
        (lambda c: c["frames"].__setitem__(1, "x"), "frame 1: no file_path"),
        (lambda c: c["frames"][1].update(fl_x="wide"), "frame 1: fl_x: expected a number"),
        (lambda c: c["frames"][1].update(camera_model="OPENCV_FISHEYE"), "frame 1: camera_model"),
    ],
)
def test_one_bad_frame_is_one_line(tmp_path, views, change, message):
    scene = write_dl3dv_scene(tmp_path, views, scene_hash(1))
    edit(scene, change)
    frames, problems = Dl3dvScene("x", scene).read()
    assert len(frames) == VIEWS - 1
    assert re.search(f"transforms.json: {message}", problems[0]) and "\n" not in problems[0]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(frames=[]), "no list of frames"),
        (lambda c: c.update(w=0), "no frame can be used; .* expected positive w, h"),
        (lambda c: c.update(w=c["h"], h=c["w"]), "its camera is of a 112x168 picture, but the pictures have 42x28"),
        (lambda c: c.pop("fl_x"), "no frame can be used; .*fl_x: expected a number"),
    ],
)
def test_bad_scenes_name_the_file(tmp_path, views, change, message):
    scene = write_dl3dv_scene(tmp_path, views, scene_hash(1))
    edit(scene, change)
    with pytest.raises(ValueError, match=f"transforms.json: .*{message}|transforms.json: {message}"):
        Dl3dvScene("x", scene).read()


def test_nothing_outside_the_scene_is_read(tmp_path, views):
    """A path that leads elsewhere is a picture that is not there; the name alone counts."""
    scene = write_dl3dv_scene(tmp_path, views, scene_hash(1))
    shutil.copy(scene / "images_4" / "frame_00001.png", tmp_path / "secret.png")

    def change(content):
        content["frames"][0]["file_path"] = "../../secret.png"

    edit(scene, change)
    frames, problems = Dl3dvScene("x", scene).read()
    assert len(frames) == VIEWS - 1 and "secret" in problems[0]
    assert all(frame.path.parent == scene / "images_4" for frame in frames)


def test_a_damaged_picture_does_not_hide_the_size(tmp_path, views):
    scene = write_dl3dv_scene(tmp_path, views, scene_hash(1))
    (scene / "images_4" / "frame_00001.png").write_bytes(b"no picture")
    frames, problems = Dl3dvScene("x", scene).read()
    assert len(frames) == VIEWS and frames[0].width == WIDTH and "frame_00001.png: not a readable" in problems[0]


def test_listing_reports_what_is_no_scene(tmp_path, views):
    """Without transforms.json, another name, a broken zip, the same scene twice: a line each, sorted scenes remain."""
    good = write_dl3dv_zip(tmp_path / "1K", views, scene_hash(1))
    write_dl3dv_scene(tmp_path / "2K", views, scene_hash(2))
    write_dl3dv_scene(tmp_path / "1K", views, scene_hash(1))  # unpacked beside its zip: no problem
    bare = write_dl3dv_scene(tmp_path / "2K", views, scene_hash(3))
    (bare / "transforms.json").unlink()
    write_dl3dv_zip(tmp_path / "2K", views, "not-a-hash")
    write_dl3dv_scene(tmp_path / "2K", views, "ab" * 31 + "xy")
    (tmp_path / "3K").mkdir()
    (tmp_path / "3K" / f"{scene_hash(4)}.zip").write_bytes(good.read_bytes()[:-40])
    with zipfile.ZipFile(tmp_path / "3K" / f"{scene_hash(5)}.zip", "w") as archive:
        archive.writestr(f"{scene_hash(5)}/images_4/frame_00001.png", b"")
    write_dl3dv_scene(tmp_path / "3K", views, scene_hash(2))
    (tmp_path / "cache").mkdir()
    scenes, problems = find_scenes(tmp_path)
    assert [scene.name for scene in scenes] == sorted([scene_hash(1), scene_hash(2)])
    assert all(scene.path.is_dir() for scene in scenes)
    expected = {
        scene_hash(3): "no transforms.json",
        "not-a-hash": "64 hexadecimal digits",
        "ab" * 31 + "xy": "64 hexadecimal digits",
        scene_hash(4): "not a readable zip archive",
        scene_hash(5): "no transforms.json",
        "3K/" + scene_hash(2): "the same scene as",
    }
    assert len(problems) == len(expected) and not any("\n" in problem for problem in problems)
    for name, message in expected.items():
        assert any(name in problem and message in problem for problem in problems), (name, problems)
    with pytest.raises(ValueError, match="nowhere: no such"):
        find_scenes(tmp_path / "nowhere")
    assert [scene.path for scene in find_scenes(good)[0]] == [good]
    assert len(find_scenes(tmp_path / "2K")[0]) == 1 and len(find_scenes(tmp_path / "2K" / scene_hash(2))[0]) == 1


def test_listing_opens_nothing(tmp_path, views, monkeypatch):
    """No archive is parsed and no transforms.json is read before a scene is asked for its frames."""
    for seed in range(3):
        write_dl3dv_zip(tmp_path / "1K", views, scene_hash(seed))
        (write_dl3dv_scene(tmp_path / "2K", views, scene_hash(10 + seed)) / "transforms.json").write_text("{")

    def refuse(*arguments, **options):
        raise AssertionError("opened")

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "__init__", refuse)
        patch.setattr(json, "loads", refuse)
        scenes, problems = find_scenes(tmp_path)
    assert len(scenes) == 6 and problems == []
    readable = 0
    for scene in scenes:
        if scene.path.suffix == ".zip":
            readable += len(scene.frames()) == VIEWS
        else:
            with pytest.raises(ValueError, match="transforms.json: not readable as JSON"):
                scene.frames()
    assert readable == 3


def test_a_damaged_member_of_a_zip(tmp_path, views):
    path = write_dl3dv_zip(tmp_path, views, scene_hash(1))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{scene_hash(1)}/transforms.json")
    middle = info.header_offset + 130
    data[middle : middle + 40] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(ValueError, match="transforms.json: not readable as JSON"):
        Dl3dvScene(scene_hash(1), path).frames()


def test_excluding_the_benchmark(tmp_path, views):
    """The 140 scenes were sampled from the rest: their hashes from a text file, a csv or a view index."""
    for seed in range(3):
        write_dl3dv_scene(tmp_path / "1K", views, scene_hash(seed))
    scenes, _ = find_scenes(tmp_path)
    (tmp_path / "list.txt").write_text(f"# benchmark\n{scene_hash(1)}\n")
    (tmp_path / "list.csv").write_text(f"hash,batch\n{scene_hash(1).upper()},1K\n")
    write_view_index(tmp_path / "list.json", {scene_hash(1): ViewIndex((0,), (1,)), scene_hash(7): None})
    for name, count in (("list.txt", 1), ("list.csv", 1), ("list.json", 2)):
        hashes = read_hashes(tmp_path / name)
        assert len(hashes) == count
        assert {scene.name for scene in without(scenes, hashes)} == {scene_hash(0), scene_hash(2)}
    (tmp_path / "empty.txt").write_text("a" * 65)
    with pytest.raises(ValueError, match="empty.txt: no scene hashes"):
        read_hashes(tmp_path / "empty.txt")


def test_the_frame_of_the_file_is_kept(tmp_path, views):
    """`applied_transform`, should a file have one, is not undone; per-frame numbers win over shared ones."""
    scene = write_dl3dv_scene(tmp_path, views, scene_hash(1))
    before = pose_of(Dl3dvScene("x", scene).frames())

    def change(content):
        content["applied_transform"] = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 5]]
        content["frames"][0]["fl_x"] = 2 * content["fl_x"]

    edit(scene, change)
    frames = Dl3dvScene("x", scene).frames()
    assert torch.equal(pose_of(frames), before)
    assert torch.isclose(frames[0].intrinsics[0, 0], 2 * frames[1].intrinsics[0, 0])


def test_portrait_clips(tmp_path):
    tall, _ = make_scenes(1, 2, 42, 28, 3, supersample=1)
    write_dl3dv_zip(tmp_path, tall, scene_hash(1))
    frame = find_scenes(tmp_path)[0][0].frames()[1]
    assert (frame.height, frame.width) == (42, 28)
    assert torch.allclose(frame.intrinsics, tall.cameras.intrinsics[0, 1].double(), atol=1e-5)


def test_a_lens_is_undone_on_reading(tmp_path, views):
    """Frames with distortion go through the reader; corners that a pincushion lens never saw are masked."""
    scene = write_dl3dv_scene(tmp_path, views, scene_hash(1), distortion=(0.2, 0.0, 0.0, 0.0))
    read = read_frames(Dl3dvScene("x", scene).frames(), points=None, colors=None, resolution=WIDTH)
    assert read.images.shape == views.images.shape and not read.masks[0, 0, 0, 0] and read.masks[0, 0, 14, 21]


def test_a_large_archive_that_lists_transforms_first(tmp_path):
    """The directory of a zip of thousands of pictures is longer than its tail; the scene is found all the same."""
    path = tmp_path / "1K" / f"{'ab' * 32}.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{'ab' * 32}/transforms.json", "{}")
        for index in range(3000):
            archive.writestr(f"{'ab' * 32}/images_4/frame_{index:05d}.png", b"")
    scenes, problems = find_scenes(tmp_path)
    assert [scene.name for scene in scenes] == ["ab" * 32] and not problems
