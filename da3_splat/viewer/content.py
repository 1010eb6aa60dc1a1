"""What there is to look at in a file or a folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from da3_splat.data.captures import load_views
from da3_splat.io.ply import load_ply
from da3_splat.scene_folder import load_scene
from da3_splat.trained_run import is_run, load_run
from da3_splat.types import Gaussians, Geometry, Scene, Views

CAPTURE_RESOLUTION = 504  # longest side of the photos of a capture that nobody has reconstructed yet


@dataclass(frozen=True)
class Content:
    """What is shown (all of batch size 1): Gaussians, posed views, the geometry behind them, each where there is one.

    `unit` is what one unit of the scene is called.
    """

    gaussians: Gaussians | None = None
    views: Views | None = None
    geometry: Geometry | None = None
    unit: str = "units"

    def middle_of_cameras(self) -> torch.Tensor | None:
        """The mean position (3) of the cameras, from where colours are taken; None without cameras."""
        return None if self.views is None else self.views.known_cameras.centers[0].mean(dim=0)


def content_of(scene: Scene, views: Views) -> Content:
    """A scene and the views it was made from, on the CPU."""
    scene, views = scene.to("cpu").detach(), views.to("cpu")
    metric = scene.report.get("scale_source") == "metric model"
    posed = replace(views, cameras=scene.cameras.resized(*views.images.shape[-2:]))
    return Content(scene.gaussians, posed, scene.geometry, "m" if metric else "units")


def load_content(source: Path) -> Content:
    """A scene folder, a Gaussian PLY, the folder of a training run, or a posed capture (photos and sparse points).

    ValueError says what is wrong with `source`; a capture without cameras has nothing to show yet.
    """
    if source.suffix == ".ply":
        return Content(load_ply(source))
    if (source / "scene.ply").is_file() and (source / "depth.npz").is_file():
        return content_of(*load_scene(source))
    if (source / "scene.ply").is_file():
        return Content(load_ply(source / "scene.ply"))
    if is_run(source):
        return Content(load_run(source))
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    views = load_views(source, resolution=CAPTURE_RESOLUTION)
    if views.cameras is None:
        raise ValueError(f"{source}: these photos have no cameras yet; run `da3-splat reconstruct` on them first")
    return Content(views=views)
