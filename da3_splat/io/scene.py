"""A reconstruction as a folder that opens everywhere: splats, points, depth, and a capture Nerfstudio can train on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from da3_splat.io.images import color_of_depth, write_image
from da3_splat.io.npz import save_geometry
from da3_splat.io.ply import save_ply, save_points
from da3_splat.io.transforms_json import write_transforms
from da3_splat.types import Scene, Views

MAX_POINTS = 200_000


def save_scene(
    scene: Scene, views: Views, folder: str | Path, progress: Callable[[Iterable], Iterable] = lambda items: items
) -> int:
    """Write one scene (batch size 1) into `folder`; returns the number of Gaussians in scene.ply.

    scene.ply (3DGS), points.ply (the confident half of the pixels, thinned), transforms.json + images/ (a Nerfstudio
    capture of the cameras used), depth/NAME.png (near is bright), depth.npz (depth, confidence, cameras).
    """
    folder = Path(folder)
    given = views.names or tuple(f"view_{index:04d}" for index in range(views.images.shape[1]))
    names = [f"{Path(name).stem}.png" for name in given]
    if len(set(names)) < len(names):
        names = [f"{index:04d}_{name}" for index, name in enumerate(names)]
    depth = scene.geometry.depth[0].detach().cpu().numpy()
    images = views.images[0].permute(0, 2, 3, 1).cpu().numpy()
    for name, picture, image in progress(list(zip(names, color_of_depth(depth), images))):
        write_image(folder / "depth" / name, picture)
        write_image(folder / "images" / name, image)
    save_geometry(scene.geometry, folder / "depth.npz")
    points, colors = _points(scene, images)
    save_points(points, colors, folder / "points.ply")
    write_transforms(folder / "transforms.json", scene.cameras, [f"images/{name}" for name in names], "points.ply")
    return save_ply(scene.gaussians, folder / "scene.ply")


def _points(scene: Scene, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    points = scene.geometry.points()[0].detach().cpu().numpy().reshape(-1, 3)
    colors = images.reshape(-1, 3)
    keep = np.isfinite(points).all(axis=1)
    if scene.geometry.confidence is not None:
        confidence = scene.geometry.confidence[0].detach().cpu().numpy().reshape(-1)
        keep &= confidence >= np.median(confidence)
    kept = np.flatnonzero(keep)
    kept = kept[:: max(1, -(-len(kept) // MAX_POINTS))]
    return points[kept], colors[kept]
