"""The demo: a small synthetic capture on disk, reconstructed, refined for a moment, and looked at from a new place."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from da3_splat.data.captures import load_views
from da3_splat.data.synthetic import make_scenes
from da3_splat.io.images import color_of_depth, write_image
from da3_splat.io.ply import save_points
from da3_splat.io.transforms_json import write_transforms
from da3_splat.metrics import psnr
from da3_splat.model import load_model
from da3_splat.refinement import Refinement, RefinementConfig, refine
from da3_splat.rendering import render
from da3_splat.scene_folder import save_scene
from da3_splat.starting_points import starting_gaussians
from da3_splat.types import Scene

VIEWS, HEIGHT, WIDTH, SEED = 13, 168, 224, 20
HELD_OUT = (3, 9)
SPARSE_POINTS = 1500


def write_capture(folder: Path, seed: int = SEED, views: int = VIEWS, height: int = HEIGHT, width: int = WIDTH) -> None:
    """A synthetic world as a Nerfstudio capture: pictures, transforms.json, and sparse points such as structure from
    motion finds (here: true surface points of random pixels)."""
    given, truth = make_scenes(1, views, height, width, seed, arc=60)
    names = [f"images/{name}.png" for name in given.names]
    for name, image in zip(names, given.images[0]):
        write_image(folder / name, image.permute(1, 2, 0).numpy())
    generator = torch.Generator().manual_seed(seed)
    on_surface = torch.nonzero(truth.depth.flatten() > 0)[:, 0]
    chosen = on_surface[torch.randperm(len(on_surface), generator=generator)[:SPARSE_POINTS]]
    points = truth.points().reshape(-1, 3)[chosen].numpy()
    colors = given.images.permute(0, 1, 3, 4, 2).reshape(-1, 3)[chosen].numpy()
    save_points(points, colors, folder / "sparse_pc.ply")
    write_transforms(folder / "transforms.json", truth.known_cameras, names, "sparse_pc.ply")


def run_demo(
    output: Path, steps: int, watch: Callable[[Refinement], None] = lambda refinement: None
) -> dict[str, float | int | str]:
    """Run all of it into `output`; returns the figures. `watch` sees the refinement after every step."""
    began = time.perf_counter()
    write_capture(output / "capture")
    views = load_views(output / "capture", resolution=WIDTH)
    held_out = views.select(list(HELD_OUT))
    context = views.select([index for index in range(VIEWS) if index not in HELD_OUT])
    scene = load_model("mini").reconstruct(context)
    feed_forward = _score(scene.gaussians, held_out)
    start = starting_gaussians(scene, context, max_gaussians=40_000)
    network_done = time.perf_counter()
    gaussians = refine(start.gaussians, context, RefinementConfig(steps=steps), watch=watch).gaussians
    refined = _score(gaussians, held_out)
    refined_scene = Scene(geometry=scene.geometry, gaussians=gaussians, cameras=scene.cameras, report=scene.report)
    count = save_scene(refined_scene, context, output)
    _picture(output / "demo.png", context, held_out, scene, gaussians)
    return {
        "psnr_feed_forward_db": feed_forward,
        "psnr_refined_db": refined,
        "start": start.source,
        "gaussians": count,
        "network_seconds": network_done - began,
        "seconds": time.perf_counter() - began,
    }


@torch.no_grad()
def _score(gaussians, views) -> float:
    return float(psnr(render(gaussians, views.cameras).color[0], views.images[0]).mean())


@torch.no_grad()
def _picture(path: Path, context, held_out, scene: Scene, gaussians) -> None:
    """Side by side: an input view, its predicted depth, the held-out view rendered, and as it really is."""
    rendering = render(gaussians, held_out.cameras.select([0])).color[0, 0]
    panels = [
        context.images[0, HELD_OUT[0]].permute(1, 2, 0).numpy(),
        color_of_depth(scene.geometry.depth[0, HELD_OUT[0]].numpy()),
        rendering.permute(1, 2, 0).numpy(),
        held_out.images[0, 0].permute(1, 2, 0).numpy(),
    ]
    gap = np.ones((panels[0].shape[0], 6, 3))
    row = [piece for panel in panels for piece in (panel, gap)][:-1]
    write_image(path, np.concatenate(row, axis=1))
