"""A reconstruction in the formats that other programs read."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from da3_splat.geometry.paths import fly_through
from da3_splat.geometry.projection import project
from da3_splat.io.files import replacing
from da3_splat.io.frames import PictureFile
from da3_splat.io.html import save_html
from da3_splat.io.ply import save_ply, save_points
from da3_splat.io.transforms_json import read_transforms, write_transforms
from da3_splat.rendering import render
from da3_splat.scene_folder import confident_pixels, confident_points, original_cameras
from da3_splat.types import Cameras, Gaussians, Geometry, Scene, Views

FORMATS = ("ply", "splat", "compressed", "glb", "npz", "colmap", "transforms", "video", "html")
# Everything that a reconstruction and its exports may write into their folder.
WRITTEN: tuple[str, ...] = (
    "transforms.json",
    "images",
    "depth",
    "masks",
    "depth.npz",
    "scene.ply",
    "points.ply",
    "report.json",
)
WRITTEN += ("sparse", "sparse_pc.ply", "scene.splat", "scene.compressed.ply", "points.glb", "flight.mp4", "scene.html")
SPARSE_POINTS = 30_000
SAME_SPOT = 0.02  # relative depth difference up to which a picture counts as having seen a point
FRAMES, FRAMES_PER_SECOND = 120, 30


def parse_formats(text: str) -> list[str]:
    """The formats of a list such as ply,colmap; ValueError names one that does not exist."""
    formats = [name.strip() for name in text.split(",") if name.strip()]
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"export: expected some of {', '.join(FORMATS)}, got {name!r}")
    return formats


def export_scene(
    scene: Scene,
    views: Views,
    source: str | Path,
    folder: str | Path,
    formats: Sequence[str],
    progress: Callable[[Iterable], Iterable] = lambda items: items,
) -> list[Path]:
    """Write a scene that lies in the folder `source` (see `save_scene`) into `folder`; the files that were written.

    ply: scene.ply; splat, compressed: scene.splat, scene.compressed.ply for web viewers; glb: points.glb with cameras;
    npz: depth.npz; transforms: transforms.json, sparse_pc.ply and images/, for Nerfstudio; colmap: sparse/0/ and
    images/, for COLMAP, gsplat's trainer and Nerfstudio; video: flight.mp4, a flight past the cameras; html:
    scene.html, a page with the scene in it.
    """
    source, folder = Path(source), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, file in (("ply", "scene.ply"), ("npz", "depth.npz")):
        if name in formats:
            written.append(_copied(source / file, folder / file))
    written += _export_splats(scene.gaussians, folder, formats)
    if "glb" in formats:
        from da3_splat.io.glb import save_glb  # trimesh, likewise

        save_glb(*confident_points(scene.geometry, views, 200_000), scene.cameras, folder / "points.glb")
        written.append(folder / "points.glb")
    if "transforms" in formats or "colmap" in formats:
        written += _export_capture(scene, views, source, folder, formats)
    if "html" in formats:
        save_html(scene.gaussians, folder / "scene.html", scene.cameras, source.resolve().name)
        written.append(folder / "scene.html")
    if "video" in formats:
        written.append(write_flight(scene.gaussians, scene.cameras, folder / "flight.mp4", progress))
    return written


def export_gaussians(gaussians: Gaussians, folder: str | Path, formats: Sequence[str]) -> list[Path]:
    """Write Gaussians (1,N) that come without views: ply, splat, compressed, html.

    ValueError for formats that need more.
    """
    more = [name for name in formats if name not in ("ply", "splat", "compressed", "html")]
    if more:
        raise ValueError(f"export: {more[0]} needs the views; a training run gives ply, splat, compressed, html")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if "ply" in formats:
        save_ply(gaussians, folder / "scene.ply")
        written.append(folder / "scene.ply")
    if "html" in formats:
        save_html(gaussians, folder / "scene.html", title=folder.resolve().name)
        written.append(folder / "scene.html")
    return written + _export_splats(gaussians, folder, formats)


def _export_splats(gaussians: Gaussians, folder: Path, formats: Sequence[str]) -> list[Path]:
    """The formats of web viewers."""
    written = []
    kinds: tuple[tuple[str, str, Literal["splat", "ply_compressed"]], ...] = (
        ("splat", "scene.splat", "splat"),
        ("compressed", "scene.compressed.ply", "ply_compressed"),
    )
    for name, file, kind in kinds:
        if name in formats:
            from da3_splat.io.compressed import save_compressed  # gsplat takes seconds to import

            save_compressed(gaussians, folder / file, kind)
            written.append(folder / file)
    return written


def _copied(source: PictureFile, target: Path) -> Path:
    source = Path(str(source))  # of a folder of ours, never of an archive
    if source.resolve() != target.resolve():
        with replacing(target) as beside:
            shutil.copyfile(source, beside)
    return target


def _export_capture(scene: Scene, views: Views, source: Path, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Pictures, cameras at their size, and sparse points with their tracks."""
    from da3_splat.io.colmap import write_colmap

    frames, _ = read_transforms(source / "transforms.json")
    pictures = [frame.path for frame in frames]
    (folder / "images").mkdir(exist_ok=True)
    for picture in pictures:
        _copied(picture, folder / "images" / picture.name)
    cameras = original_cameras(scene.cameras, views)
    points, colors, seen = tracked_points(scene.geometry, views, SPARSE_POINTS)
    names = [picture.name for picture in pictures]
    written = []
    if "colmap" in formats:
        write_colmap(folder / "sparse" / "0", cameras, names, points, colors, seen)
        written.append(folder / "sparse" / "0")
    if "transforms" in formats:
        save_points(points, colors, folder / "sparse_pc.ply")
        masks = [None if frame.mask is None else f"masks/{frame.mask.name}" for frame in frames]
        for frame in frames:
            if frame.mask is not None:
                _copied(frame.mask, folder / "masks" / frame.mask.name)
        names = [f"images/{name}" for name in names]
        write_transforms(folder / "transforms.json", cameras, names, "sparse_pc.ply", masks)
        written += [folder / "transforms.json", folder / "sparse_pc.ply"]
    return written


def tracked_points(geometry: Geometry, views: Views, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At most `count` points (P,3), the mean colour of their tracks (P,3), and which view saw which (S,P) bool.

    Points that two views agree on come first; only where they are fewer than `count` do others fill up.
    """
    index = confident_pixels(geometry, views, 4 * count)
    height, width = geometry.depth.shape[-2:]
    points = geometry.points()[0].detach().reshape(-1, 3)[index].cpu()
    own = (index // (height * width)).cpu()
    cameras = geometry.known_cameras.detach().to("cpu").resized(height, width)
    pixels, z = project(points, cameras)
    column, row = pixels[0, ..., 0], pixels[0, ..., 1]
    inside = (z[0] > 0) & (column >= 0) & (row >= 0) & (column < width) & (row < height)
    column, row = column.long().clamp(0, width - 1), row.long().clamp(0, height - 1)
    view = torch.arange(len(inside))[:, None]
    there = geometry.depth[0].detach().cpu()[view, row, column]
    seen = inside & ((z[0] / there.clamp_min(1e-12)).log().abs() < SAME_SPOT)
    seen[own, torch.arange(len(points))] = True
    colors = views.images[0].cpu().permute(0, 2, 3, 1)[view, row, column]
    colors = (colors * seen[..., None]).sum(dim=0) / seen.sum(dim=0)[:, None]
    tracks = seen.sum(dim=0)
    ranked = (tracks < 2).long().argsort(stable=True)
    agreed = ranked[: max(int((tracks >= 2).sum()), min(count, len(points)))]
    chosen = agreed[:: max(1, -(-len(agreed) // count))].sort().values
    return points[chosen].numpy(), colors[chosen].numpy(), seen[:, chosen].numpy()


@torch.no_grad()
def write_flight(
    gaussians: Gaussians,
    cameras: Cameras,
    path: Path,
    progress: Callable[[Iterable], Iterable] = lambda items: items,
    frames: int = FRAMES,
) -> Path:
    """A video of so many `frames` of a flight past the `cameras` (1,V), at FRAMES_PER_SECOND and the cameras' size."""
    from da3_splat.io.video import write_video  # PyAV takes a moment to import

    flight = fly_through(cameras, frames)

    def pictures():
        for index in progress(range(frames)):
            yield render(gaussians, flight.select([index])).color[0, 0].permute(1, 2, 0).cpu().numpy()

    write_video(path, pictures(), FRAMES_PER_SECOND)
    return path
