"""`--refine` of `da3-splat reconstruct`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from da3_splat.commands.terminal import refining_bar

if TYPE_CHECKING:
    from da3_splat.refinement import RefinementConfig
    from da3_splat.types import Scene, Views
    from da3_splat.viewer.server import SceneViewer

REFINED_GAUSSIANS = 100_000  # to refine, unless told otherwise
SECONDS_BETWEEN_WRITES = 5.0


def asked_refinement(asked: str) -> RefinementConfig | None:
    """How long to refine: `30s`, `2m`, a number of steps; nothing where nothing is asked."""
    import re

    from da3_splat.refinement import RefinementConfig

    if not asked:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m)|(\d+)", asked)
    if match is None:
        raise ValueError(f"--refine: expected a time such as 30s or 2m, or a number of steps, got {asked!r}")
    if match[3]:
        return RefinementConfig(steps=int(match[3]))
    return RefinementConfig(steps=None, seconds=float(match[1]) * (60 if match[2] == "m" else 1))


def refined(
    scene: Scene,
    views: Views,
    config: RefinementConfig,
    max_gaussians: int | None,
    device: str,
    output: Path,
    window: SceneViewer | None,
) -> Scene:
    """The scene after refinement; meanwhile scene.ply is always the best so far."""
    import time

    from da3_splat.io.ply import save_ply
    from da3_splat.refinement import Refined, refine
    from da3_splat.starting_points import starting_gaussians

    posed = replace(views, cameras=scene.cameras.resized(*views.images.shape[-2:]))
    start = starting_gaussians(scene, posed, max_gaussians or REFINED_GAUSSIANS)
    began, written = time.perf_counter(), [time.perf_counter()]

    def keep(best: Refined) -> None:
        if time.perf_counter() - written[0] > SECONDS_BETWEEN_WRITES:
            save_ply(best.gaussians, output / "scene.ply")
            if window is not None:
                window.show_gaussians(best.gaussians, best.cameras.centers[0].mean(dim=0))
            written[0] = time.perf_counter()

    with refining_bar() as watch:
        found = refine(start.gaussians.to(device), posed, config, watch=watch, keep=keep).to("cpu")
    cameras = found.cameras.resized(scene.cameras.height, scene.cameras.width)
    report = {
        "start": start.source,
        "refine_steps": found.steps,
        "refine_seconds": time.perf_counter() - began,
        "refined_psnr_db": found.psnr,
        "doubtful_views": list(found.doubtful),
    }
    return replace(
        scene,
        gaussians=found.gaussians,
        cameras=cameras,
        geometry=replace(scene.geometry, cameras=cameras),
        report=scene.report | report,
    )
