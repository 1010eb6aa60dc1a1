"""Each fault that hostile files have found, by name, so that it does not come back."""

import json
import os
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from captures import small_capture
from hostile import arrays, captures, pictures, settings
from hostile.case import bounded
from PIL import EpsImagePlugin, Image

from da3_splat import cli
from da3_splat.backbone.checkpoints import read_safetensors
from da3_splat.config import load_config
from da3_splat.data.captures import load_views
from da3_splat.evaluation.results import ResultsFolder
from da3_splat.io.depth_maps import depth_files, read_depth
from da3_splat.io.images import list_images, read_image
from da3_splat.io.npz import load_geometry
from da3_splat.io.ply import load_ply, load_points
from da3_splat.io.transforms_json import read_transforms
from da3_splat.io.video import read_video, write_video
from da3_splat.model import load_model
from da3_splat.sequence.work_folder import WorkFolder
from da3_splat.trained_run import load_run
from da3_splat.training.labelling import read_quality


def written(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def case_of(cases: list, name: str, folder: Path) -> Path:
    return next(case for case in cases if case.name == name).write(folder)


def test_postscript_is_not_handed_to_ghostscript(tmp_path, monkeypatch):
    """Pillow goes by the first bytes, not the name, and would start another program on them."""
    called = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: called.append(a) or Image.new("RGB", (4, 3)))
    with pytest.raises(ValueError, match="photo.jpg: not a readable image"):
        read_image(written(tmp_path / "photo.jpg", pictures.POSTSCRIPT))
    assert not called


def test_a_playlist_is_not_followed(tmp_path):
    """FFmpeg goes by the first bytes, too: a file called .mp4 may list others, here or on the network."""
    secret = tmp_path / "private" / "secret.ts"
    secret.parent.mkdir()
    write_video(secret, [np.random.default_rng(i).random((48, 64, 3)) for i in range(3)], fps=10)
    script = f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{secret}\n#EXT-X-ENDLIST\n"
    with pytest.raises(ValueError, match="walk.mp4: not a readable video"):
        read_video(written(tmp_path / "walk.mp4", script))
    with pytest.raises(ValueError, match="list.mp4: not a readable video"):
        read_video(written(tmp_path / "list.mp4", "ffconcat version 1.0\nfile private/secret.ts\n"))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    os.mkfifo(tmp_path / "transforms.json")
    with bounded(seconds=20):
        with pytest.raises(ValueError, match="a.png: not a"):
            read_image(tmp_path / "a.png")
        with pytest.raises(ValueError, match="transforms.json: not a file"):
            read_transforms(tmp_path / "transforms.json")


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "../secret.png", "/etc/hostname"])
@pytest.mark.parametrize("key", ["file_path", "mask_path"])
def test_names_that_are_none_or_lead_out(tmp_path, name, key):
    path = captures.good_transforms(tmp_path)
    content = json.loads(path.read_text())
    content["frames"][1][key] = name
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="transforms.json: frame 1: .*(is no name|lies outside)"):
        read_transforms(path)


def test_links_that_lead_out_or_in_a_circle(tmp_path):
    """Of an archive that was unpacked: what it points to is not the stranger's to read."""
    secret = written(tmp_path / "secret.png", pictures.encoded("PNG"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").symlink_to(secret)
    with pytest.raises(ValueError, match="photos: a.png lies outside"):
        list_images(tmp_path / "photos")
    path = captures.good_transforms(tmp_path / "capture")
    for name, target in (("a", secret), ("b", path.parent / "images" / "b.png")):
        picture = path.parent / "images" / f"{name}.png"
        kept = picture.read_bytes()
        picture.unlink()
        picture.symlink_to(target)
        with pytest.raises(ValueError, match=r"transforms.json: frame .*lies outside|b.png: (not a|no such)"):
            load_views(path)
        picture.unlink()
        picture.write_bytes(kept)
    (tmp_path / "elsewhere").symlink_to(tmp_path / "capture")  # what the user gives may be a link
    assert load_views(tmp_path / "elsewhere", resolution=42).images.shape[1] == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shared fl_x = 1e-320", "focal length"),
        ("pose 0,3 = 1e+300", "further than"),
        ("pose 3,3 = 0.0", "last row"),
        ("shared w = 1e+29", "pixels"),
    ],
)
def test_cameras_nobody_can_compute_with(tmp_path, name, message):
    path = case_of(captures.transforms_cases(), name, tmp_path)
    with pytest.raises(ValueError, match=f"transforms.json: frame .: .*{message}"):
        read_transforms(path)


@pytest.mark.parametrize("file", ["cameras.bin", "images.bin", "points3D.bin", "frames.bin", "rigs.bin"])
@pytest.mark.parametrize("change", ["cut by 20", "says 1099511627776", "empty"])
def test_colmap_models_that_are_not_as_long_as_they_say(tmp_path, file, change):
    """pycolmap repeats the last camera of a short file, and asks for all memory there is for points without end."""
    model = case_of(captures.colmap_cases(), f"{file}: {change}", tmp_path)
    with bounded(), pytest.raises(ValueError, match=f"{file}: cut short"):
        load_views(model)


@pytest.mark.parametrize(
    "name", ["says 9223372036854775808", "text says 1000000000", "f_rest_x", "a list for x", "says -1"]
)
def test_ply_headers_that_lie(tmp_path, name):
    path = case_of(arrays.ply_cases(), name, tmp_path)
    with bounded(), pytest.raises(ValueError, match="scene.ply"):
        load_ply(path)


def test_what_is_not_finite_in_a_ply_is_left_out(tmp_path):
    rows = np.ones((3, 14), "<f4")
    rows[0, 1], rows[1, 7] = np.nan, 1e9  # a place, and a size whose exponential is infinite
    path = written(tmp_path / "scene.ply", arrays.ply(3, rows=rows.tobytes()))
    assert load_ply(path).means.shape[1] == 1 and len(load_points(path)[0]) == 2


def test_a_ply_with_red_alone_is_grey(tmp_path):
    path = written(tmp_path / "a.ply", arrays.ply(2, ["x", "y", "z", "red"], rows=np.ones(8, "<f4").tobytes()))
    assert (load_points(path)[1] == 0.5).all()


@pytest.mark.parametrize("array", ["depth", "windows"])
def test_npz_headers_that_lie(tmp_path, array):
    path = case_of(arrays.npz_cases(), f"{array}: a shape of 10^12", tmp_path)
    with bounded(), pytest.raises(ValueError, match="depth.npz: .*says it is"):
        load_geometry(path)


def test_an_archive_that_unpacks_to_a_gigabyte(tmp_path):
    path = case_of(arrays.npz_cases(), "a bomb of a gigabyte", tmp_path)
    with bounded(room=512 << 20), pytest.raises(ValueError, match="depth.npz: unpacks to"):
        load_geometry(path)


@pytest.mark.parametrize(
    "name", ["windows all inf", "windows all -1.0", "windows all 1e+300", "world_to_camera all nan"]
)
def test_geometry_that_is_none(tmp_path, name):
    with pytest.raises(ValueError, match="depth.npz: not a geometry"):
        load_geometry(case_of(arrays.npz_cases(), name, tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        "npy: a shape of 10^12",
        "npy: complex",
        "npy: nothing in it",
        "dpt: negative",
        "dpt: of nothing",
        "pfm: says 30000 30000",
        "pfm: says -4 4",
        "pfm: no end",
    ],
)
def test_depth_maps_that_lie(tmp_path, name):
    path = case_of(arrays.depth_cases(), name, tmp_path)
    with bounded(room=256 << 20), pytest.raises(ValueError, match=path.name):
        read_depth(path)


def test_pfm_by_hand(tmp_path):
    """Rows from the bottom up; the sign of the scale says the order of bytes, its size is a factor."""
    values = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    written(tmp_path / "little.pfm", b"Pf\n3 2\n-1.0\n" + values[::-1].astype("<f4").tobytes())
    written(tmp_path / "big.pfm", b"Pf\n3 2\n2\n" + values[::-1].astype(">f4").tobytes())
    assert read_depth(tmp_path / "little.pfm").tolist() == values.tolist()
    assert read_depth(tmp_path / "big.pfm").tolist() == (2 * values).tolist()


def test_depth_names_that_are_none(tmp_path):
    path = captures.good_transforms(tmp_path)
    content = json.loads(path.read_text())
    content["frames"][1]["depth_file_path"] = 3
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="frame 1: depth_file_path"):
        depth_files(path)


def test_hdf5_that_unpacks_to_a_gigabyte(tmp_path):
    from da3_splat.data.megadepth import read_depth as read_h5

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("depth", (1 << 13, 1 << 14), "f8", chunks=(64, 64), compression="gzip")
    with bounded(room=256 << 20), pytest.raises(ValueError, match="a.h5: .*too large"):
        read_h5(tmp_path / "a.h5")


@pytest.mark.parametrize(
    "name",
    [
        "a description of lists",
        "another preset",
        "a preset of lists",
        "channels of letters",
        "a head of a million features",
        "a head of 10^18 features",
        "one channel",
        "negative features",
        "a degree of 10^6",
    ],
)
def test_weights_whose_description_lies(tmp_path, name):
    path = case_of(arrays.safetensors_cases(), name, tmp_path)
    with bounded(), pytest.raises(ValueError, match="model.safetensors: its description"):
        load_model(path)


@pytest.mark.parametrize("shard", ["model.safetensors.index.json", 3, "../a.safetensors", "."])
def test_lists_of_shards_that_name_no_shards(tmp_path, shard):
    """The first one names itself, and was read for ever."""
    path = written(tmp_path / "model.safetensors.index.json", json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(ValueError, match="index.json"):
        read_safetensors(path)


@pytest.mark.parametrize(
    "text",
    ["[" * 50_000, settings.LAUGHS, "steps: 1\nsteps: 2", "steps: 2026-99-99", "steps: " + "9" * 5000]
    + [f"steps: !!{kind} x" for kind in ("timestamp", "bool", "int")],
)
def test_recipes_that_are_none(tmp_path, text):
    from hostile.readers import Recipe

    with bounded(room=256 << 20), pytest.raises(ValueError, match="recipe.yaml: not readable as YAML"):
        load_config(Recipe, written(tmp_path / "recipe.yaml", text))


def test_the_recipes_of_this_project_are_read_as_before():
    from da3_splat.config import _Plain

    for path in (Path(__file__).parents[1] / "configs").rglob("*.yaml"):
        assert yaml.load(path.read_text(), Loader=_Plain) == yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    "name",
    [
        "a pickle",
        "empty",
        "text",
        "cut",
        "no pipeline",
        "a list",
        "means alone",
        "means of another shape",
        "means that are text",
        "a bomb",
        "no numbers",
    ],
)
def test_checkpoints_that_are_none(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="step-000000010.ckpt: ") as caught:
        load_run(case_of(settings.run_cases(), name, tmp_path))
    assert len(str(caught.value).splitlines()) == 1 and not (tmp_path / "unpickled").exists()


def test_a_tensor_of_one_number_that_says_it_is_a_million_million(tmp_path):
    from da3_splat.io.checkpoints import read_checkpoint

    wide = torch.ones(1).expand(1_000_000, 1_000_000)
    path = written(tmp_path / "checkpoint.pt", settings.checkpoint({"a": [wide]}))
    with pytest.raises(ValueError, match="checkpoint.pt: .*fewer numbers"):
        read_checkpoint(path)


@pytest.mark.parametrize("text", ["[" * 50_000, "", "3", "null", '{"settings": 3}'])
def test_small_json_files_of_ours(tmp_path, text):
    folder = settings.good_scene(tmp_path / "scene")
    written(tmp_path / "quality.json", text)
    with pytest.raises(ValueError, match="quality.json"):
        read_quality(tmp_path)
    written(tmp_path / "results" / "scenes" / "world.json", text)
    assert ResultsFolder(tmp_path / "results", "x").record("world") is None
    if text != '{"settings": 3}':
        from da3_splat.scene_folder import load_scene

        written(folder / "report.json", text)
        with pytest.raises(ValueError, match="report.json"):
            load_scene(folder)


def test_a_chunk_of_other_tensors_is_made_again(tmp_path):
    path = case_of(settings.chunk_cases(), "other things", tmp_path)
    assert WorkFolder(tmp_path, {}).load(path.stem) is None


def test_a_zip_with_a_password(tmp_path):
    """Its flag alone: the reader asks for the password before it looks."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", pictures.encoded("PNG"))
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="a.png: not a readable image .*password"):
        read_image(zipfile.Path(path, "a.png"))


def test_sixteen_bits_are_converted_piece_by_piece(tmp_path):
    """As float64 at once, a picture of 64 million pixels took more than a gigabyte."""
    Image.fromarray(np.full((6000, 6000), 60_000, np.uint16)).save(tmp_path / "deep.tif")
    with bounded(room=500 << 20):
        assert read_image(tmp_path / "deep.tif").getpixel((5999, 5999)) == (60_000 * 255 // 65535,) * 3


def test_no_path_of_this_machine_is_in_the_work_folder(tmp_path, capsys):
    """work/recipe.json held the absolute path of each picture; the run still goes on from its chunks."""
    capture = small_capture(tmp_path / "in" / "capture", views=4, height=28, width=42)
    command = ["reconstruct", str(capture), "--output", str(tmp_path / "out"), "--resolution", "42", "--chunk", "3"]
    command += ["--overlap", "2", "--json"]
    cli.main(command)
    assert str(tmp_path) not in (tmp_path / "out" / "work" / "recipe.json").read_text()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["chunks_found"] == 0
    cli.main(command)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["chunks_found"] == 2
    picture = capture / "images" / "view_0001.png"
    os.utime(picture, ns=(0, 0))
    with pytest.raises(SystemExit) as ended:
        cli.main(command)
    assert ended.value.code == 2 and "other pictures or settings" in capsys.readouterr().err


def test_no_path_of_this_machine_is_in_results(tmp_path, capsys):
    """results.json held the absolute paths of the data, of the weights, and of each file that could not be read."""
    small_capture(tmp_path / "captures" / "one", views=4, height=42, width=56)
    captures.good_transforms(tmp_path / "captures" / "bad").write_text("{")
    command = ["evaluate", "novel-views", "--data", str(tmp_path / "captures"), "--contexts", "2", "--every", "2"]
    cli.main([*command, "--size", "42x56", "--output", str(tmp_path / "out"), "--json"])
    capsys.readouterr()
    for path in (tmp_path / "out").rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), path
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["data"]["folder"] == "captures" and results["failed"][0]["error"].startswith("bad")


def test_links_out_of_published_data_sets(tmp_path):
    """A scene's folder may be a link (to another disk); a picture in it that is one leads out of the scene."""
    from da3_splat.data import dl3dv, megadepth
    from da3_splat.data.layouts import scene_hash, write_dl3dv_scene, write_megadepth_scene
    from da3_splat.data.synthetic import make_scenes

    views = make_scenes(1, 2, 28, 42, 3, supersample=1)[0]
    scene = write_dl3dv_scene(tmp_path / "1K", views, scene_hash(1))
    picture = next(path for path in scene.rglob("*.png") if "images" in path.parent.name)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / scene.name).symlink_to(scene)
    (found,), _ = dl3dv.find_scenes(tmp_path / "linked")
    assert len(found.frames()) == 2
    picture.rename(tmp_path / "secret.png")
    picture.symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match="lies outside"):
        found.frames()
    write_megadepth_scene(tmp_path / "mega", "0000", 0, 2, 28, 42, seed=1, supersample=1)
    (found, *_), _ = megadepth.find_scenes(tmp_path / "mega")
    picture = next(path for path in (tmp_path / "mega").rglob("imgs/*"))
    picture.unlink()
    picture.symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match="lies outside"):
        found.frames()


def test_a_video_whose_pictures_change_their_size(tmp_path):
    """Two streams in one file, as a phone that was turned leaves them: motion was measured between unlike pictures."""
    from da3_splat.io import video

    class Frames:
        def __init__(self):
            noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
            self.pictures = [Image.fromarray(noise[:48]), Image.fromarray(noise[:, :48])]

        def __call__(self, path):
            import av

            for index in range(6):
                picture = self.pictures[index // 3].convert("RGB")
                yield index, index / 5, av.VideoFrame.from_image(picture)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "_decoded", Frames())
        sizes = {frame.picture.size for frame in video.read_video(tmp_path / "a.mp4", fps=5)}
    assert sizes == {(64, 48), (48, 64)}
