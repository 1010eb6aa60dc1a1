"""Every reader by name: how it is called, a good input, and the bad ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from hostile import arrays, captures, pictures, settings
from hostile.case import Case


@dataclass(frozen=True)
class Reader:
    """`read` is given what `good` (and each case) returns. `files` of the good input, from its folder, are damaged."""

    read: Callable[[Path], object]
    good: Callable[[Path], Path]
    files: Sequence[str]
    cases: Callable[[], list[Case]]


@dataclass(frozen=True)
class Recipe:
    """A recipe of the common kinds of values."""

    steps: int = 300
    rate: float = 1e-3
    sizes: tuple[tuple[int, int], ...] = ((84, 112),)
    path: Path | None = None


def _file(name: str, content: Callable[[], bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content())
        return folder / name

    return write


def _read_capture(path: Path) -> object:
    from da3_splat.data.captures import load_views

    views = load_views(path, resolution=42)
    if views.cameras is not None:
        for values in (views.cameras.world_to_camera, views.cameras.intrinsics, views.cameras.centers):
            assert bool(values.isfinite().all()), "a camera that is not finite"
        assert bool((views.cameras.intrinsics[..., 0, 0] > 0).all()), "a camera without focal length"
    assert bool(views.images.isfinite().all())
    return views


def _load_ply(path: Path) -> object:
    from da3_splat.io.ply import load_ply, load_points

    points = load_points(path)
    assert np.isfinite(points[0]).all(), "points that are not finite"
    gaussians = load_ply(path)
    for values in gaussians.kept_on_disk().values():
        assert bool(values.isfinite().all()), "Gaussians that are not finite"
    return gaussians


def _load_geometry(path: Path) -> object:
    from da3_splat.io.npz import load_geometry

    geometry, _ = load_geometry(path)
    assert bool(geometry.cameras.world_to_camera.isfinite().all()), "a camera that is not finite"
    return geometry


def _load_scene(path: Path) -> object:
    from da3_splat.scene_folder import load_scene

    return load_scene(path)


def _load_model(path: Path) -> object:
    from da3_splat.model import load_model

    return load_model(path)


def _read_shards(path: Path) -> object:
    from da3_splat.backbone.checkpoints import read_safetensors

    return read_safetensors(path)


def _read_h5(path: Path) -> object:
    from da3_splat.data.megadepth import read_depth

    return read_depth(path)


def _read_depth(path: Path) -> object:
    from da3_splat.io.depth_maps import read_depth

    depth = read_depth(path)
    assert bool(depth.isfinite().all()) and depth.numel() > 0
    return depth


def _read_index(path: Path) -> object:
    from da3_splat.data.view_index import read_view_index

    return read_view_index(path)


def _read_recipe(path: Path) -> object:
    from da3_splat.config import load_config

    return load_config(Recipe, path)


def _read_chunk(path: Path) -> object:
    from da3_splat.sequence.work_folder import WorkFolder

    return WorkFolder(path.parent, {}).load(path.stem)


def _load_run(path: Path) -> object:
    from da3_splat.trained_run import load_run

    return load_run(path)


def _read_quality(path: Path) -> object:
    from da3_splat.training.labelling import read_quality

    return read_quality(path.parent)


def _read_record(path: Path) -> object:
    from da3_splat.evaluation.results import ResultsFolder

    return ResultsFolder(path.parents[1], "x").record(path.stem)


def _record_cases() -> list[Case]:
    def moved(case: Case) -> Callable[[Path], Path]:
        def write(folder: Path) -> Path:
            (folder / "scenes").mkdir()
            return case.write(folder).rename(folder / "scenes" / "world.json")

        return write

    return [Case(case.name, moved(case)) for case in settings.quality_cases()]


@cache
def small_video() -> bytes:
    """Sixteen frames of 64x48."""
    import tempfile

    from da3_splat.io.video import write_video

    noise = np.random.default_rng(0).random((48, 80, 3))
    frames = [noise[:, shift : shift + 64] for shift in range(16)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mp4"
        write_video(path, frames, fps=10)
        return path.read_bytes()


def _good_npy() -> bytes:
    return arrays.npy((4, 4), data=np.ones(16, "<f4").tobytes())


def _good_h5(folder: Path) -> Path:
    import h5py

    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("depth", data=np.ones((8, 8), "f4"), chunks=(4, 4), compression="gzip")
    return folder / "a.h5"


def _small_model(folder: Path) -> Path:
    """A link to the embedded weights would not do: damaged copies are made of it."""
    from da3_splat.model import EMBEDDED

    (folder / "model.safetensors").write_bytes(EMBEDDED["mini"].read_bytes())
    return folder / "model.safetensors"


def _good_chunk(folder: Path) -> Path:
    import torch

    from da3_splat.sequence.work_folder import ChunkResult, WorkFolder
    from da3_splat.types import Cameras, Geometry

    poses, intrinsics = torch.eye(4).repeat(1, 2, 1, 1), torch.eye(3).repeat(1, 2, 1, 1)
    cameras = Cameras(world_to_camera=poses, intrinsics=intrinsics, height=4, width=6)
    geometry = Geometry(depth=torch.ones(1, 2, 4, 6), cameras=cameras)
    WorkFolder(folder, {}).save("chunk", ChunkResult(geometry, torch.zeros(2, 3)))
    return folder / "chunk.safetensors"


def _good_text(name: str, text: str) -> Callable[[Path], Path]:
    return _file(name, text.encode)


@cache
def _run(name: str) -> Case:
    return next(case for case in settings.run_cases() if case.name == name)


COLMAP_BINARY = ("cameras.bin", "images.bin", "points3D.bin", "frames.bin", "rigs.bin")
COLMAP_TEXT = ("cameras.txt", "images.txt", "points3D.txt", "frames.txt", "rigs.txt")
INDEX = '{"a": {"context": [0, 2], "target": [1]}, "b": null}'
RECORD = '{"identity": "x", "name": "world", "scores": {"psnr": 20.5}, "timing": {}}'
RECIPE = "steps: 300\nrate: 1.0e-3\nsizes: [[84, 112]]\n"
SHARDS = "model.safetensors.index.json"

READERS: dict[str, Reader] = {
    "png": Reader(_read_capture, _file("a.png", lambda: pictures.encoded("PNG")), ["a.png"], pictures.image_cases),
    "jpeg": Reader(_read_capture, _file("a.jpg", lambda: pictures.with_exif(6)), ["a.jpg"], list),
    "tiff": Reader(_read_capture, _file("a.tif", lambda: pictures.encoded("TIFF")), ["a.tif"], list),
    "webp": Reader(_read_capture, _file("a.webp", lambda: pictures.encoded("WEBP")), ["a.webp"], list),
    "video": Reader(_read_capture, _file("a.mp4", small_video), ["a.mp4"], lambda: pictures.video_cases(small_video())),
    "transforms": Reader(_read_capture, captures.good_transforms, ["transforms.json"], captures.transforms_cases),
    "colmap": Reader(_read_capture, captures.good_colmap, COLMAP_BINARY, captures.colmap_cases),
    "colmap text": Reader(_read_capture, captures.good_colmap_text, COLMAP_TEXT, list),
    "ply": Reader(_load_ply, _file("scene.ply", lambda: arrays.ply(2)), ["scene.ply"], arrays.ply_cases),
    "npz": Reader(
        _load_geometry,
        _file("depth.npz", lambda: arrays.as_npz(arrays.good_geometry())),
        ["depth.npz"],
        arrays.npz_cases,
    ),
    "depth map": Reader(_read_depth, _file("a.npy", _good_npy), ["a.npy"], arrays.depth_cases),
    "h5": Reader(_read_h5, _good_h5, ["a.h5"], arrays.h5_cases),
    "safetensors": Reader(_load_model, _small_model, ["model.safetensors"], arrays.safetensors_cases),
    "shards": Reader(_read_shards, _good_text(SHARDS, '{"weight_map": {}}'), [SHARDS], arrays.shard_cases),
    "view index": Reader(_read_index, _good_text("index.json", INDEX), ["index.json"], settings.view_index_cases),
    "recipe": Reader(_read_recipe, _good_text("recipe.yaml", RECIPE), ["recipe.yaml"], settings.recipe_cases),
    "scene": Reader(
        _load_scene,
        settings.good_scene,
        ["scene.ply", "depth.npz", "transforms.json", "report.json"],
        settings.scene_cases,
    ),
    "work folder": Reader(_read_chunk, _good_chunk, ["chunk.safetensors", "recipe.json"], settings.chunk_cases),
    "training run": Reader(
        _load_run,
        lambda folder: _run("good").write(folder),
        ["run/nerfstudio_models/step-000000010.ckpt", "run/user_frame.json"],
        settings.run_cases,
    ),
    "labels": Reader(
        _read_quality,
        _good_text("quality.json", '{"settings": null, "frames": []}'),
        ["quality.json"],
        settings.quality_cases,
    ),
    "record": Reader(_read_record, _record_cases()[-1].write, ["scenes/world.json"], _record_cases),
}
