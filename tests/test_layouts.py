"""The writers of published layouts: paths to the letter, and the script that calls them."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import pytest

from da3_splat import load_views
from da3_splat.data import dl3dv, megadepth
from da3_splat.data.layouts import scene_hash, write_dl3dv_scene, write_dl3dv_zip, write_megadepth_scene
from da3_splat.data.synthetic import make_scenes

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_synthetic.py"
LONG = [pytest.mark.slow, pytest.mark.long]
SLOWER_LAYOUTS = ("nerfstudio", "dl3dv", "dl3dv-benchmark", "megadepth")


def paths_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def views():
    return make_scenes(1, 2, 28, 42, 3, supersample=1)[0]


def test_dl3dv_paths(tmp_path, views):
    name = scene_hash(0)
    assert len(name) == 64 and name == scene_hash(0) != scene_hash(1)
    write_dl3dv_scene(tmp_path / "all" / "1K", views, name)
    pictures = ["images_4/frame_00001.png", "images_4/frame_00002.png"]
    assert paths_in(tmp_path / "all") == [f"1K/{name}/{path}" for path in (*pictures, "transforms.json")]
    path = write_dl3dv_zip(tmp_path / "zip" / "1K", views, name)
    assert paths_in(tmp_path / "zip") == [f"1K/{name}.zip"]
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == [f"{name}/{path}" for path in (*pictures, "transforms.json")]
    write_dl3dv_scene(tmp_path / "benchmark", views, name, factors=(4, 8), benchmark=True)
    assert paths_in(tmp_path / "benchmark") == [
        f"{name}/nerfstudio/{path}" for path in (*pictures, *(p.replace("_4", "_8", 1) for p in pictures))
    ] + [f"{name}/nerfstudio/transforms.json"]


def test_megadepth_paths_and_text(tmp_path):
    truth = write_megadepth_scene(tmp_path, "0000", 0, 2, 42, 56, seed=1, supersample=1)
    names = [written.frame.path.stem for written in truth]
    dense, model = "phoenix/S6/zl548/MegaDepth_v1/0000/dense0", "MegaDepth_v1_SfM/0000/sparse/manhattan/0"
    assert paths_in(tmp_path) == sorted(
        [f"{model}/{name}.txt" for name in ("cameras", "images", "points3D")]
        + [f"MegaDepth_v1_SfM/0000/images/{name}.jpg" for name in names]
        + [f"{dense}/imgs/{name}.jpg" for name in names]
        + [f"{dense}/depths/{name}.h5" for name in names]
    )
    lines = (tmp_path / model / "images.txt").read_text().splitlines()
    assert len(lines) == 4 + 2 * 2 and all(line.startswith("#") for line in lines[:4])
    assert len(lines[4].split()) == 10 and lines[4].split()[9] == f"{names[0]}.jpg"
    assert len(lines[5].split()) == 3 * 40 and lines[5].split()[2] == "1" and lines[7].split()[2] == "41"
    cameras = (tmp_path / model / "cameras.txt").read_text().splitlines()
    assert cameras[3].split()[:2] == ["1", "SIMPLE_RADIAL"] and len(cameras[3].split()) == 8
    points = (tmp_path / model / "points3D.txt").read_text().splitlines()
    assert len(points) == 3 + 2 * 40 and points[3].split()[0] == "1" and points[-1].split()[-2:] == ["2", "39"]
    with h5py.File(tmp_path / dense / "depths" / f"{names[0]}.h5") as file:
        assert list(file) == ["depth"] and file["depth"].shape == (42, 56)


def test_pycolmap_reads_the_model(tmp_path):
    """COLMAP itself agrees: points project into the raw photos where images.txt says they were seen."""
    pycolmap = pytest.importorskip("pycolmap")
    truth = write_megadepth_scene(tmp_path, "0000", 0, 2, 42, 56, seed=1, supersample=1)
    model = pycolmap.Reconstruction(str(tmp_path / "MegaDepth_v1_SfM" / "0000" / "sparse" / "manhattan" / "0"))
    assert model.num_points3D() == 80 and len(model.images) == len(truth)
    for image in model.images.values():
        for point in image.points2D:
            projected = image.project_point(model.points3D[point.point3D_id].xyz)
            assert abs(projected - point.xy).max() < 0.01


@pytest.mark.parametrize("layout", ["colmap", *(pytest.param(name, marks=LONG) for name in SLOWER_LAYOUTS)])
def test_script(tmp_path, layout):
    size = ["--views", "3", "--height", "28", "--width", "42", "--scenes", "1", "--seed", "4"]
    command = [sys.executable, str(SCRIPT), "--layout", layout, *size, "--output", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    if layout == "megadepth":
        assert [scene.name for scene in megadepth.find_scenes(tmp_path)[0]] == ["0004_0"]
    elif layout in ("nerfstudio", "colmap"):
        views = load_views(tmp_path / "scene_0004", resolution=42)
        assert views.images.shape == (1, 3, 3, 28, 42) and views.cameras is not None and len(views.points) > 0
    else:
        scenes, problems = dl3dv.find_scenes(tmp_path)
        assert [scene.name for scene in scenes] == [scene_hash(4)] and problems == []
        assert len(scenes[0].frames()) == 3
        assert (scenes[0].path.suffix == ".zip") == (layout == "dl3dv")


def test_written_json_is_json(tmp_path, views):
    scene = write_dl3dv_scene(tmp_path, views, scene_hash(0), distortion=(0.1, 0.0, 0.0, 0.0))
    assert json.loads((scene / "transforms.json").read_text())["k1"] == 0.1
