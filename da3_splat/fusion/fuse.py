"""From what each view says to one scene: consensus, merging, colours, pruning, and a report of what was done."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from da3_splat.fusion.consensus import ConsensusConfig, reach_consensus
from da3_splat.fusion.merging import MergeConfig, merge
from da3_splat.fusion.pruning import prune, thinned
from da3_splat.fusion.recoloring import recolor
from da3_splat.geometry.surfaces import steep
from da3_splat.ranks import Workers
from da3_splat.types import Gaussians, Geometry, Views

SHELL = 20.0  # the sky is so many times farther away than what is far, and than the cameras are apart
Progress = Callable[[str], Callable[[Iterable], Iterable]]


@dataclass(frozen=True)
class FusionConfig:
    """What is done to the Gaussians of many views. The defaults were found on a few other synthetic worlds, by hand;
    `scripts/benchmark_fusion.py --only ablation` changes them one at a time."""

    consensus: ConsensusConfig | None = ConsensusConfig()
    merge: MergeConfig | None = MergeConfig()
    recolor_passes: int = 2
    recolor_views: int = 200
    """pictures that colours are fitted to, evenly spaced, where there are more: each costs a rendering of all"""
    sky: Literal["shell", "drop"] = "shell"
    """sky pixels, where the model finds some: Gaussians far away, or none (the background shows)"""
    max_gaussians: int | None = None
    """thin evenly to so many; those that stay grow to cover the rest"""
    min_confidence: float = 0.0
    """leave out the pixels of each view whose confidence is below this quantile"""
    edge_limit: float | None = None
    """leave out pixels beside which depth changes by more than this (logarithm of the ratio)"""


NO_FUSION = FusionConfig(consensus=None, merge=None, recolor_passes=0)


def agree(geometry: Geometry, views: Views, fixed: Tensor, config: FusionConfig) -> tuple[Geometry, dict[str, object]]:
    """Geometry of one scene after consensus, and what that did; cameras that are `fixed` (S) bool stay."""
    geometry = _with_sky(geometry, config)
    if config.consensus is None or geometry.depth.shape[1] < 2:
        return geometry, {}
    found = reach_consensus(geometry, views.images, fixed, config.consensus, usable_pixels(geometry, views, config))
    numbers = {item.name: getattr(found, item.name) for item in fields(found) if item.name != "geometry"}
    # Views that share nothing have no mean difference: None, which JSON can say.
    return found.geometry, {
        f"consensus_{name}": value if math.isfinite(value) else None for name, value in numbers.items()
    }


def fuse(
    geometry: Geometry,
    views: Views,
    gaussians_of_view: Callable[[int], Gaussians],
    config: FusionConfig,
    progress: Progress = lambda title: lambda items: items,
    workers: Workers = map,
    available: Tensor | None = None,
) -> tuple[Gaussians, dict[str, object]]:
    """The Gaussians (1,N) of one scene whose views agree already, and how many were dropped for what.

    `gaussians_of_view(i)` gives the pixel-aligned Gaussians of view i; only what stays of them is kept in memory.
    `views` bring pictures and masks, and are posed by the geometry. `workers` share out the views (see ranks.py).
    Pixels outside `available` (1,S,H,W) have no Gaussian there, and another takes their place.
    """
    usable = usable_pixels(geometry, views, config)
    count = geometry.depth.shape[1]

    def of_view(view: int) -> Gaussians:
        gaussians = gaussians_of_view(view)
        return replace(gaussians, source_view=torch.full_like(gaussians.opacities, view, dtype=torch.long))

    report: dict[str, object] = {"pixels": geometry.depth.numel()}
    if config.merge is not None and count > 1:
        gaussians, counts = merge(geometry, of_view, config.merge, usable, progress("merging"), workers, available)
        report |= {f"dropped_{name}": getattr(counts, name) for name in ("invalid", "redundant", "floating")}
        report["merge_tolerance"] = counts.tolerance
    else:
        parts = []
        for view in progress("lifting")(range(count)):
            parts.append(of_view(view).select(torch.nonzero(usable[0, view].flatten())[:, 0]))
        gaussians = Gaussians.concatenate(parts)
        report["dropped_invalid"] = int((~usable).sum())
    merged = gaussians.means.shape[1]
    gaussians = prune(gaussians)
    report["dropped_invisible"] = merged - gaussians.means.shape[1]
    if config.max_gaussians is not None:
        before = gaussians.means.shape[1]
        gaussians = thinned(gaussians, config.max_gaussians)
        report["dropped_over_limit"] = before - gaussians.means.shape[1]
    if config.recolor_passes:
        posed = replace(views, cameras=geometry.known_cameras.resized(*views.images.shape[-2:]))
        if count > config.recolor_views:
            posed = posed.select(torch.linspace(0, count - 1, config.recolor_views).round().long())
        gaussians = recolor(gaussians, posed, config.recolor_passes, progress("colouring"), workers)
    report["gaussians"] = gaussians.means.shape[1]
    return gaussians, report


def usable_pixels(geometry: Geometry, views: Views, config: FusionConfig) -> Tensor:
    """(1,S,H,W) bool: pixels that have a depth and are masked by nothing."""
    usable = geometry.depth.isfinite() & (geometry.depth > 0)
    if views.masks is not None:
        usable &= views.masks
    if geometry.sky is not None and config.sky == "drop":
        usable &= ~geometry.sky_mask
    if config.min_confidence > 0:
        if geometry.confidence is None:
            raise ValueError("min_confidence: this model predicts no confidence to leave pixels out by")
        limit = torch.quantile(geometry.confidence.flatten(2), config.min_confidence, dim=2)
        usable &= geometry.confidence >= limit[..., None, None]
    if config.edge_limit is not None:
        usable &= ~steep(geometry.depth, config.edge_limit)
    return usable


def _with_sky(geometry: Geometry, config: FusionConfig) -> Geometry:
    """Sky pixels on a shell far behind everything, where the model finds sky and it is wanted."""
    if geometry.sky is None or config.sky != "shell" or not bool(geometry.sky_mask.any()):
        return geometry
    ground = geometry.depth[~geometry.sky_mask]
    if ground.numel() == 0:
        return geometry
    centers = geometry.known_cameras.centers[0]
    apart = (centers - centers.mean(dim=0)).norm(dim=-1).max()
    far = SHELL * torch.maximum(ground[:: max(1, ground.numel() // 100_000)].quantile(0.95), apart)
    return replace(geometry, depth=torch.where(geometry.sky_mask, far, geometry.depth))
