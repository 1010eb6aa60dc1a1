"""How good a model is on synthetic worlds it was not trained on, beside the trivial answers.

    uv run python scripts/evaluate_mini.py                                   50 worlds, the embedded weights
    uv run python scripts/evaluate_mini.py --model outputs/mini/head/model.safetensors --count 10
    uv run python scripts/evaluate_mini.py --worlds DIR                      captures that bring depth maps

Novel views: 2, 4 or 8 posed contexts (nested, same targets), PSNR over whole pictures. Poses and depth: 4 views without
poses. Trivial answers: every context a plane at the mean of its scene's true depth; the picture (or the pose) of the
nearest context; for poses also a step to the side without a turn, which fits cameras on an arc. Depth of the network
alone is scored once more with the poses given, in the units of the true cameras (scaled by the distances between those
that it says).
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.progress import track
from torch.nn.functional import interpolate

from da3_splat import load_model, load_views, render
from da3_splat.data.synthetic import make_scenes
from da3_splat.data.view_selection import pose_distance
from da3_splat.fusion.fuse import FusionConfig, fuse
from da3_splat.geometry.frames import cameras_for_encoder
from da3_splat.heads.plain import PlainHead
from da3_splat.io.depth_maps import depth_files, read_depth
from da3_splat.metrics import absolute_relative_error, pose_auc, pose_errors, psnr
from da3_splat.training.fixed_worlds import error_in_units
from da3_splat.types import Geometry, Views

HEIGHT, WIDTH, FIRST_SEED = 168, 224, 20_000_000  # training uses seeds from 5 and 200 million on
VIEWS = 11  # on one arc
TARGETS = (2, 5, 8)
CONTEXTS = {2: [0, 10], 4: [0, 3, 7, 10], 8: [0, 1, 3, 4, 6, 7, 9, 10]}
POSES, DEPTH = "poses, 4 unposed views (AUC30)", "depth, 4 unposed views (AbsRel)"
UNITS = "depth in the cameras' units (AbsRel)"


@dataclass
class Settings:
    model: str = "mini"
    """weights: mini (embedded), or a file"""
    count: int = 50
    """worlds"""
    worlds: Path | None = None
    """folder of captures made by others (transforms.json each), instead of worlds made here"""
    json: Path | None = None
    """write the same numbers there"""


@torch.no_grad()
def novel_views(model, views: Views, contexts: list[int], truth: Geometry) -> dict[str, float]:
    """PSNR in dB of the targets: the model's, and those of the trivial answers."""
    given, targets = views.select(contexts), views.select(list(TARGETS))

    def score(pictures: torch.Tensor) -> float:
        return float(psnr(pictures, targets.images[0]).mean())

    scene = model.reconstruct(given)
    planes = replace(scene.geometry, depth=mean_depth(truth.select(contexts).depth), sky=None)
    lifted, _ = fuse(planes, given, lambda i: plain(planes, given, i), FusionConfig(consensus=None))
    near = pose_distance(views.cameras)[list(TARGETS)][:, contexts].argmin(dim=1)
    return {
        "model": score(render(scene.gaussians, targets.cameras).color[0]),
        "mean-depth planes": score(render(lifted, targets.cameras).color[0]),
        "nearest context": score(given.images[0, near]),
    }


def plain(geometry: Geometry, views: Views, index: int):
    """Gaussians of one view without a trained head."""
    return PlainHead()(None, views.images[:, [index]], geometry.select([index]))


def mean_depth(depth: torch.Tensor) -> torch.Tensor:
    return torch.full_like(depth, float(depth[depth > 0].mean()))


@torch.no_grad()
def unposed(model, views: Views, truth: Geometry) -> tuple[dict[str, torch.Tensor], dict[str, float], float]:
    """Pair errors in degrees and AbsRel of 4 views without poses, of the model and the trivial answers; seconds."""
    views, truth = views.select(CONTEXTS[4]), truth.select(CONTEXTS[4])
    began = time.perf_counter()
    geometry = model.reconstruct(replace(views, cameras=None)).geometry
    seconds = time.perf_counter() - began
    alone = model.network(views.images)
    nowhere = torch.eye(4).expand_as(truth.cameras.world_to_camera)
    aside = nowhere.clone()
    aside[0, :, 0, 3] = torch.arange(4.0)
    answers = {
        "model": geometry.cameras,
        "network alone": alone.cameras,
        "nearest context": replace(truth.cameras, world_to_camera=nowhere),
        "step to the side": replace(truth.cameras, world_to_camera=aside),
    }
    pairs = {name: pose_errors(cameras, truth.cameras)[0] for name, cameras in answers.items()}
    depths = {
        "model": geometry.depth,
        "network alone": alone.depth,
        "mean-depth planes": mean_depth(truth.depth),
    }
    return (
        pairs,
        {name: float(absolute_relative_error(depth, truth.depth)[0]) for name, depth in depths.items()},
        seconds,
    )


@torch.no_grad()
def told_poses(model, views: Views, truth: Geometry) -> dict[str, float]:
    """AbsRel of the network alone on 4 views in the units of the true cameras, without and with poses given."""
    views, truth = views.select(CONTEXTS[4]), truth.select(CONTEXTS[4])
    answers = {"without poses": None, "poses given": cameras_for_encoder(truth.cameras)}
    return {
        name: float(error_in_units(model.network(views.images, cameras), truth.cameras, truth.depth)[0])
        for name, cameras in answers.items()
    }


def given_worlds(folder: Path) -> Iterator[tuple[Views, Geometry]]:
    """Worlds of others: eleven evenly spaced views of each capture that brings depth maps."""
    found = sorted(folder.rglob("transforms.json"))
    if not found:
        raise SystemExit(f"{folder}: no transforms.json below this folder")
    for path in found:
        views = load_views(path, resolution=WIDTH)
        chosen = torch.linspace(0, len(views.names) - 1, VIEWS).round().int().tolist()
        files = depth_files(path)
        if len(views.names) < VIEWS or None in [files[i] for i in chosen]:
            raise SystemExit(f"{path}: expected at least {VIEWS} views, each with a depth_file_path")
        size = views.images.shape[-2:]
        depth = torch.stack([interpolate(read_depth(*files[i])[None, None], size)[0, 0] for i in chosen])[None]
        views = views.select(chosen)
        yield views, Geometry(depth=depth, cameras=views.cameras)


def main(settings: Settings) -> None:
    model = load_model(settings.model)
    if settings.worlds is None:
        worlds = (make_scenes(1, VIEWS, HEIGHT, WIDTH, FIRST_SEED + 2 * i) for i in range(settings.count))
    else:
        worlds = given_worlds(settings.worlds)
    seen: dict[str, dict[str, list]] = {}
    times: list[float] = []
    for views, truth in track(worlds, "worlds", settings.count, console=Console(stderr=True)):
        rows = {f"novel views, {n} contexts (dB)": novel_views(model, views, c, truth) for n, c in CONTEXTS.items()}
        pairs, depths, seconds = unposed(model, views, truth)
        times.append(seconds)
        rows |= {POSES: {name: float(pose_auc(error[None], 30)[0]) * 100 for name, error in pairs.items()}}
        rows |= {DEPTH: depths, UNITS: told_poses(model, views, truth)}
        for row, cells in rows.items():
            for name, value in cells.items():
                seen.setdefault(row, {}).setdefault(name, []).append(value)
    means = {row: {name: sum(v) / len(v) for name, v in cells.items()} for row, cells in seen.items()}
    print(f"{len(times)} worlds at {WIDTH}x{HEIGHT}, {settings.model}; 4 unposed photos to a splat: {min(times):.1f} s")
    missed = []
    for row, cells in means.items():
        print(f"{row:38}" + "".join(f"{name} {value:.3f}   " for name, value in cells.items()))
        if row == UNITS:
            if cells["poses given"] >= cells["without poses"]:
                missed.append("giving poses does not improve depth")
            continue
        others = [value for name, value in cells.items() if name not in ("model", "network alone")]
        if not (cells["model"] < min(others) if row == DEPTH else cells["model"] > max(others)):
            missed.append(f"{row}: not better than every trivial answer")
    rising = [means[f"novel views, {n} contexts (dB)"]["model"] for n in CONTEXTS]
    if rising != sorted(rising):
        missed.append("PSNR does not rise with the contexts")
    if settings.json:
        settings.json.write_text(json.dumps({"means": means, "worlds": seen, "seconds_4_photos": times}, indent=1))
    print(
        f"{settings.model}: {rising[1]:.2f} dB from 4 posed views, AUC30 {means[POSES]['model']:.1f}, "
        f"AbsRel {means[DEPTH]['model']:.3f}; missed: {missed or 'nothing'}"
    )
    sys.exit(1 if missed else 0)


main(tyro.cli(Settings, description=__doc__))
