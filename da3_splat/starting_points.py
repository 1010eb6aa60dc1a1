"""Gaussians to start a per-scene optimisation from: of a feed-forward pass and, where there are any, sparse points."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from da3_splat.fusion.fuse import NO_FUSION
from da3_splat.fusion.pruning import thinned
from da3_splat.geometry.user_frame import MIN_SPARSE_HITS, sparse_depth_ratios
from da3_splat.heads.lifting import FOOTPRINT
from da3_splat.model import Da3Splat
from da3_splat.spherical_harmonics import rgb_to_dc
from da3_splat.types import Gaussians, Geometry, Scene, Views

STRONG_ERROR = (
    0.05  # median relative depth error at the sparse points up to which the network's depth is taken as it is
)
ENOUGH_POINTS = 1000  # sparse points that describe a scene by themselves
NEIGHBOURS = 8  # sparse points that a pixel's correction looks at
START_OPACITY = 0.5
POINT_SIZE = 0.6  # of a Gaussian at a point, in distances to its neighbours


@dataclass(frozen=True)
class Start:
    """Gaussians (1,N), in words what they were made from, and the depth (1,S,H,W) that they were laid on."""

    gaussians: Gaussians
    source: str
    depth: Tensor


def starting_gaussians(scene: Scene, views: Views, max_gaussians: int = 60_000, looks_right: bool = False) -> Start:
    """About `max_gaussians` at most to refine, from the feed-forward scene of posed or unposed `views`.

    Without sparse points they are the scene's own. With them, the median error of the network's depth there decides: up
    to 5 % the scene's Gaussians are kept; above, the points lead. Where there are ENOUGH_POINTS each becomes a cloud of
    Gaussians, which ends best under `refine` (on horns 24.5 dB after 150 steps; with half of them laid on depth 23.3).
    Else, or where the start itself has to look right, each view's depth is multiplied by a smooth correction that
    meets the sparse points, and the Gaussians are laid on that, together with the points themselves.
    """
    judged = _judged(scene.geometry, views)
    if isinstance(judged, str):
        return Start(thinned(scene.gaussians, max_gaussians), judged, scene.geometry.depth)
    return _from_points(scene.geometry, views, judged, max_gaussians, looks_right)


def start_from_network(
    model: Da3Splat, views: Views, max_gaussians: int = 60_000, looks_right: bool = False, **options
) -> Start:
    """Gaussians to refine from the pictures themselves, on the CPU: the network's depth, as it says it of each view, is
    held against the sparse points first. Where it is off, nothing is made to agree, laid or merged (of 21 views a
    tenth of the time); else this is `starting_gaussians` of `model.reconstruct(views)`, for which the network, a
    thirtieth of that, runs once more. `options` are those of `Da3Splat.reconstruct`."""
    views = views.to("cpu")
    if views.points is not None and views.cameras is not None:
        asked = {key: value for key, value in options.items() if key not in ("fusion", "progress", "watch")}
        geometry = model.observe(views, fusion=NO_FUSION, **asked).geometry.to("cpu")
        judged = _judged(geometry, views)
        if not isinstance(judged, str):
            return _from_points(geometry, views, judged, max_gaussians, looks_right)
    return starting_gaussians(model.reconstruct(views, **options).to("cpu"), views, max_gaussians, looks_right)


@dataclass(frozen=True)
class _AtPoints:
    """Ratios of true depth at the sparse points of every view (see `sparse_depth_ratios`), and their median error."""

    hits: list[tuple[Tensor, Tensor, Tensor]]
    error: float


def _judged(geometry: Geometry, views: Views) -> str | _AtPoints:
    """Why the network's Gaussians are taken; or, where the sparse points lead, what the depth is at them."""
    if views.points is None or views.cameras is None:
        return "network"
    hits = sparse_depth_ratios(geometry.depth, views)
    error = _median_error(hits)
    if error is None:
        return "network; too few sparse points are in view"
    if error <= STRONG_ERROR:
        return f"network; its depth is {100 * error:.1f} % off at the sparse points"
    return _AtPoints(hits, error)


def _from_points(geometry: Geometry, views: Views, found: _AtPoints, max_gaussians: int, looks_right: bool) -> Start:
    """A start that the sparse points lead, as `starting_gaussians` says."""
    assert views.points is not None, "judged by them"
    depth = torch.stack([_corrected(geometry.depth[0, i], hit) for i, hit in enumerate(found.hits)])[None]
    away = f"(the network's depth is {100 * found.error:.0f} % off there)"
    if len(views.points) >= ENOUGH_POINTS and not looks_right:
        around = gaussians_around_points(views.points, views.point_colors, max_gaussians)
        return Start(thinned(around, max_gaussians), f"sparse points {away}", depth)
    points = thinned(gaussians_at_points(views.points, views.point_colors), max_gaussians // 2)
    budget = max(1, max_gaussians - points.means.shape[1])
    laid = gaussians_on_depth(replace(geometry, depth=depth), views, budget)
    return Start(Gaussians.concatenate([points, laid]), f"sparse points and depth bent to them {away}", depth)


def error_at_points(scene: Scene, views: Views) -> float | None:
    """Median relative error of the scene's depth at the sparse points of its views; None where they bring too few."""
    if views.points is None:
        return None
    return _median_error(sparse_depth_ratios(scene.geometry.depth, replace(views, cameras=scene.cameras)))


def _median_error(hits: list[tuple[Tensor, Tensor, Tensor]]) -> float | None:
    ratios = torch.cat([ratio for ratio, _, _ in hits])
    return float(ratios.log().abs().median()) if len(ratios) >= MIN_SPARSE_HITS else None


def _corrected(depth: Tensor, hit: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Depth (H,W) times a smooth field that is close to the ratios at the sparse points' pixels."""
    ratio, pixels, _ = hit
    if len(ratio) == 0:
        return depth
    height, width = depth.shape
    tree = cKDTree(pixels.cpu().numpy())
    y, x = np.mgrid[0:height, 0:width] + 0.5
    count = min(NEIGHBOURS, len(ratio))
    distance, index = tree.query(np.stack([x, y], axis=-1).reshape(-1, 2), k=count, workers=-1)
    distance, index = distance.reshape(-1, count), index.reshape(-1, count)
    weight = 1 / (distance**2 + (0.01 * max(height, width)) ** 2)
    logs = ratio.log().cpu().numpy()[index]
    field = (weight * logs).sum(axis=1) / weight.sum(axis=1)
    return depth * torch.from_numpy(np.exp(field).reshape(height, width)).to(depth)


def gaussians_on_depth(geometry: Geometry, views: Views, count: int) -> Gaussians:
    """About `count` isotropic Gaussians on an even grid of pixels of all views, as wide as the grid's step there."""
    batch, number, height, width = geometry.depth.shape
    step = max(1.0, (number * height * width / count) ** 0.5)
    rows = (torch.arange(0.5 * step, height, step)).long().clamp_max(height - 1)
    columns = (torch.arange(0.5 * step, width, step)).long().clamp_max(width - 1)
    grid = (..., rows[:, None], columns)
    points = geometry.points().permute(0, 1, 4, 2, 3)[grid].permute(0, 1, 3, 4, 2).flatten(1, 3)
    colors = views.images[grid].permute(0, 1, 3, 4, 2).flatten(1, 3)
    per_pixel = (1 / geometry.known_cameras.intrinsics.diagonal(dim1=-2, dim2=-1)[..., :2]).mean(dim=-1)
    size = (geometry.depth[grid] * per_pixel[..., None, None] * step * FOOTPRINT).flatten(1)
    return _isotropic(points, colors, size)


def gaussians_at_points(points: Tensor, colors: Tensor | None) -> Gaussians:
    """One Gaussian a point (P,3), as wide as the mean distance to its three nearest neighbours (capped at the 95 %)."""
    distance = cKDTree(points.cpu().numpy()).query(points.cpu().numpy(), k=min(4, len(points)))[0]
    size = distance.reshape(len(points), -1)[:, 1:].mean(axis=1) if len(points) > 1 else np.ones(1)
    size = torch.from_numpy(np.clip(size, 1e-6, np.quantile(size, 0.95))).to(points)
    colors = torch.full_like(points, 0.5) if colors is None else colors
    return _isotropic(points[None], colors[None], POINT_SIZE * size[None])


def gaussians_around_points(points: Tensor, colors: Tensor | None, count: int) -> Gaussians:
    """About `count` Gaussians at most (each point once where there are more of these): every point (P,3) is repeated
    and scattered by half the distance to its neighbours."""
    copies = max(1, count // max(1, len(points)))
    if copies == 1:
        return gaussians_at_points(points, colors)
    apart = gaussians_at_points(points, None).scales[0, :, :1] / POINT_SIZE
    noise = torch.randn(len(points), copies, 3, generator=torch.Generator().manual_seed(0)).to(points)
    many = (points[:, None] + 0.5 * apart[:, None] * noise).flatten(0, 1)
    return gaussians_at_points(many, None if colors is None else colors.repeat_interleave(copies, dim=0))


def _isotropic(points: Tensor, colors: Tensor, size: Tensor) -> Gaussians:
    quats = torch.zeros(*points.shape[:-1], 4, device=points.device)
    quats[..., 0] = 1
    return Gaussians(
        means=points,
        quats=quats,
        scales=size[..., None].expand(*size.shape, 3),
        opacities=torch.full_like(size, START_OPACITY),
        sh=rgb_to_dc(colors)[..., None, :],
    )
