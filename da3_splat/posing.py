"""Unposed pictures -> a posed capture on disk, by DA3 or by COLMAP: what other methods train on."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from da3_splat.acceleration import accelerate
from da3_splat.data.captures import find_frames
from da3_splat.data.views import read_frames
from da3_splat.export import export_scene
from da3_splat.fusion.fuse import Progress
from da3_splat.io.frames import Frame
from da3_splat.io.ply import save_points
from da3_splat.io.transforms_json import write_transforms
from da3_splat.model import load_model
from da3_splat.scene_folder import original_cameras, picture_names, save_scene, write_original


def posed_capture(
    source: Path,
    cache: Path,
    poses: Literal["da3", "colmap"] = "da3",
    network: str = "mini",
    resolution: int = 504,
    max_views: int | None = None,
    fps: float = 2.0,
    device: str = "cpu",
    progress: Progress = lambda title: lambda items: items,
) -> Path:
    """A folder under `cache` with transforms.json, images/ and sparse_pc.ply of the photos or the video at `source`.

    It is made once for these settings and these files and found again later; cameras that the source brings are not
    used. Frame: that of the reference view (da3) or COLMAP's. ValueError where nothing can be posed.
    """
    settings = [poses, network if poses == "da3" else "", resolution, max_views, fps]
    folder = cache / _key(source, settings)
    if (folder / "transforms.json").is_file():
        return folder
    frames = [_unposed(frame) for frame in find_frames(source, max_views, fps, progress("choosing frames")).frames]
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".part") as work:
        if poses == "colmap":
            _by_colmap(frames, Path(work), resolution, progress)
        else:
            views = read_frames(frames, resolution=resolution, progress=progress("reading"))
            scene = accelerate(load_model(network, device)).reconstruct(views, progress=progress).to("cpu")
            save_scene(scene, views, work, progress("writing"), frames)
            export_scene(scene, views, work, work, ["transforms"])
        shutil.rmtree(folder, ignore_errors=True)
        shutil.move(work, folder)
        Path(work).mkdir()  # for TemporaryDirectory to remove
    folder.chmod(0o755)
    return folder


def _by_colmap(frames: list[Frame], folder: Path, resolution: int, progress: Progress) -> None:
    from da3_splat.io.colmap import run_colmap

    frames, points, colors = run_colmap(frames, lambda stage: None)
    views = read_frames(frames, resolution=resolution, progress=progress("reading"))
    written = []
    for frame, name in zip(frames, picture_names(views)):
        written.append(f"images/{write_original(frame, folder / 'images', name)}")
    save_points(points, colors, folder / "sparse_pc.ply")
    write_transforms(folder / "transforms.json", original_cameras(views.known_cameras, views), written, "sparse_pc.ply")


def _unposed(frame: Frame) -> Frame:
    return replace(frame, world_to_camera=None, intrinsics=None, lens=None, height=None, width=None)


def _key(source: Path, settings: list) -> str:
    """A name for these settings and the files at `source`, by their names, sizes and times."""
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    files = [source] if source.is_file() else sorted(path for path in source.iterdir() if path.is_file())
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    text = json.dumps([settings, stamps, torch.__version__])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
