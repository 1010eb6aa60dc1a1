"""Merging: of all Gaussians that describe one spot of a surface, the one whose view saw it sharpest stays.

Every pixel of a view is projected into the other views. Where the depth found there is the same, both describe one
spot, and the pixel that covers less of the surface (weighted by confidence) is kept; where it lies clearly behind, the
other view looks through the pixel. What is dropped is not lost: its depth moves the one that stays to the middle of
all, and makes it more opaque. Views are taken one after the other, so that memory grows with what is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from da3_splat.geometry.alignment import scaled_about
from da3_splat.geometry.projection import project, unproject
from da3_splat.geometry.surfaces import pixel_areas, steep
from da3_splat.ranks import Workers
from da3_splat.types import Cameras, Gaussians, Geometry


@dataclass(frozen=True)
class MergeConfig:
    """What counts as one spot, and what is dropped. Depths are compared as ratios."""

    tolerance: float = 0.02  # of depth, within which two views see the same spot, where they agree well
    largest_tolerance: float = 0.1  # where they do not: three times their median disagreement, up to this
    clearance: float = 2.5  # tolerances, from which on a view looks through a pixel
    copies: int = 1  # Gaussians that stay at each spot
    area_step: float = 1.25  # sharpness counts in steps of this factor, so that whole regions stay with one view
    neighbours: int = 24  # other views that a view is compared with, the nearest ones
    confidence_power: float = 1.0
    floating_margin: int = 1  # dropped: looked through by so many views more than see it, too


@dataclass(frozen=True)
class MergeCounts:
    """How many pixels there were, how many had no depth, were redundant, floated; and how many Gaussians stayed."""

    pixels: int
    invalid: int
    redundant: int
    floating: int
    kept: int
    tolerance: float


@dataclass(frozen=True)
class Spots:
    """For the pixels of one view (H,W): keep bool, log depth factor to the middle of all views that see the spot, and
    how many these are, the view itself included."""

    keep: Tensor
    log_factor: Tensor
    seen_by: Tensor
    redundant: int
    floating: int


def merge_pixels(geometry: Geometry, gaussians: Gaussians) -> tuple[Gaussians, MergeCounts]:
    """`merge` of pixel-aligned Gaussians (1,S*H*W) that are all there already, view after view in row order."""
    pixels = geometry.depth.shape[-2] * geometry.depth.shape[-1]
    return merge(geometry, lambda view: gaussians.select(slice(view * pixels, (view + 1) * pixels)))


def merge(
    geometry: Geometry,
    gaussians_of_view: Callable[[int], Gaussians],
    config: MergeConfig = MergeConfig(),
    usable: Tensor | None = None,
    progress: Callable[[Iterable], Iterable] = lambda items: items,
    workers: Workers = map,
    available: Tensor | None = None,
) -> tuple[Gaussians, MergeCounts]:
    """The merged Gaussians (1,N) of one scene and what became of the others.

    `gaussians_of_view(i)` gives the H*W pixel-aligned Gaussians of view i in row order; they are asked for one view at
    a time, by `workers` (see ranks.py).
    Pixels outside `usable` (1,S,H,W) neither stay nor speak; those outside `available` (1,S,H,W), whose Gaussians are
    not there, speak but leave the place to others. A Gaussian that n views agree on becomes as opaque as n copies of
    it. Differentiable in the Gaussians. ValueError for a batch.
    """
    if geometry.depth.shape[0] != 1:
        raise ValueError(f"merge: expected one scene, got a batch of {geometry.depth.shape[0]}")
    maps = SurfaceMaps.of(geometry, config, usable, available)
    tolerance = maps.tolerance(config)

    def kept_of(view: int) -> tuple[Gaussians, int, int]:
        spots = maps.spots(view, config, tolerance)
        index = torch.nonzero(spots.keep.flatten())[:, 0]
        part = gaussians_of_view(view).select(index)
        part = scaled_about(
            part, maps.cameras.centers[:, view : view + 1], spots.log_factor.flatten()[index].exp()[None]
        )
        seen_by = spots.seen_by.flatten()[index][None].to(part.opacities.dtype)
        part = replace(part, opacities=1 - (1 - part.opacities).pow(seen_by))
        return part, spots.redundant, spots.floating

    every = range(maps.depth.shape[0])
    parts, redundant, floating = zip(*(found for _, found in zip(progress(every), workers(kept_of, every))))
    invalid, redundant, floating = int((~maps.valid).sum()), sum(redundant), sum(floating)
    merged = Gaussians.concatenate(list(parts))
    return merged, MergeCounts(maps.depth.numel(), invalid, redundant, floating, merged.means.shape[1], tolerance)


def kept_pixels(
    geometry: Geometry, config: MergeConfig, usable: Tensor | None = None, available: Tensor | None = None
) -> list[Tensor]:
    """Of each view of one scene the pixels, as indices into H*W, that `merge` would keep."""
    maps = SurfaceMaps.of(geometry, config, usable, available)
    tolerance = maps.tolerance(config)
    views = range(maps.depth.shape[0])
    return [torch.nonzero(maps.spots(view, config, tolerance).keep.flatten())[:, 0] for view in views]


@dataclass(frozen=True)
class SurfaceMaps:
    """What all views say of the surfaces: depth, its logarithm, valid, rank (lower is sharper, infinite where there is
    no Gaussian), smooth (S,H,W)."""

    depth: Tensor
    log_depth: Tensor
    valid: Tensor
    rank: Tensor
    smooth: Tensor
    cameras: Cameras
    order: Tensor  # (S,S) other views by distance

    @staticmethod
    def of(
        geometry: Geometry, config: MergeConfig, usable: Tensor | None = None, available: Tensor | None = None
    ) -> SurfaceMaps:
        depth = geometry.depth[0].detach().float()
        height, width = depth.shape[1:]
        valid = depth.isfinite() & (depth > 0)
        if usable is not None:
            valid &= usable[0]
        depth = torch.where(valid, depth, torch.ones_like(depth))
        cameras = geometry.known_cameras.detach().resized(height, width)
        confidence = None if geometry.confidence is None else geometry.confidence[0].detach().clamp_min(1e-6)
        typical = depth.new_ones(()) if confidence is None else confidence.median()
        # The unit of length is arbitrary.
        unit = depth[valid].median().square() if bool(valid.any()) else depth.new_ones(())
        step = torch.log(torch.tensor(config.area_step))
        rank, smooth = torch.empty_like(depth), torch.empty_like(valid)
        for view in range(len(depth)):  # areas take fifty bytes a pixel, of one view at a time
            area = pixel_areas(depth[None, view : view + 1], cameras.select([view]))[0, 0]
            if confidence is not None:
                area = area / (confidence[view] / typical).pow(config.confidence_power)
            rank[view] = ((area / unit).clamp_min(1e-30).log() / step).floor()
            smooth[view] = valid[view] & ~steep(depth[None, view : view + 1], 0.05)[0, 0]
        if available is not None:
            rank = torch.where(available[0], rank, torch.inf)
        centers = cameras.centers[0]
        return SurfaceMaps(
            depth=depth,
            log_depth=depth.log(),
            valid=valid,
            rank=rank,
            smooth=smooth,
            cameras=cameras,
            order=torch.cdist(centers, centers).argsort(dim=1, stable=True),
        )

    def tolerance(self, config: MergeConfig) -> float:
        """How far depths of one spot may differ here, from how far those of some hundred pixels a view do."""
        found = []
        for view in range(len(self.depth)):
            points, valid = self._points(view)
            every = max(1, len(valid) // 400)
            for other in self._others(view, config)[:4]:
                look = self._look(points[:, ::every], valid[::every], other)
                found.append(look.apart[look.inside & (look.apart.abs() < 0.3)].abs())
        steps = torch.cat(found) if found else self.depth.new_zeros(0)
        typical = 3 * float(steps.median()) if len(steps) else 0.0
        return min(max(config.tolerance, typical), max(config.tolerance, config.largest_tolerance))

    def spots(self, view: int, config: MergeConfig, tolerance: float) -> Spots:
        """Compare the pixels of one view with all its neighbours."""
        rank, shape = self.rank[view].flatten(), self.depth.shape[1:]
        points, valid = self._points(view)
        better, through, total = torch.zeros_like(rank), torch.zeros_like(rank), torch.zeros_like(rank)
        seen_by = torch.ones_like(rank)
        for other in self._others(view, config):
            look = self._look(points, valid, other)
            same = look.inside & (look.apart.abs() < tolerance)
            through += look.inside & (look.apart > config.clearance * tolerance)
            better += same & ((look.rank < rank) | ((look.rank == rank) & (other < view)))
            total += torch.where(same, look.apart, torch.zeros_like(look.apart))
            seen_by += same
        floating = valid & (through >= seen_by + config.floating_margin)
        redundant = valid & ~floating & ((better >= config.copies) | rank.isinf())
        return Spots(
            keep=(valid & ~floating & ~redundant).reshape(shape),
            log_factor=(total / seen_by).reshape(shape),
            seen_by=seen_by.reshape(shape),
            redundant=int(redundant.sum()),
            floating=int(floating.sum()),
        )

    def _others(self, view: int, config: MergeConfig) -> list[int]:
        return [other for other in self.order[view].tolist() if other != view][: config.neighbours]

    def _points(self, view: int) -> tuple[Tensor, Tensor]:
        """The points (1,H*W,3) of one view in the world, and which of them count (H*W)."""
        points = unproject(self.depth[None, view : view + 1], self.cameras.select([view]))
        return points.reshape(1, -1, 3), self.valid[view].flatten()

    def _look(self, points: Tensor, valid: Tensor, other: int) -> _Look:
        """What view `other` shows where it sees points (1,N,3), of which `valid` (N) count."""
        height, width = self.depth.shape[1:]
        seen, z = project(points, self.cameras.select([other]))
        seen, z = seen[0, 0], z[0, 0]
        inside = valid & (z > 0) & (seen >= 0).all(dim=-1) & (seen[:, 0] < width) & (seen[:, 1] < height)
        column, row = seen[:, 0].long().clamp(0, width - 1), seen[:, 1].long().clamp(0, height - 1)
        # Where the surface is smooth the depth between pixels counts, else that of the pixel that was hit.
        between = _bilinear(self.log_depth[other], seen, height, width)
        there = torch.where(self.smooth[other, row, column], between, self.log_depth[other, row, column])
        apart = there - z.clamp_min(1e-12).log()
        return _Look(inside & self.valid[other, row, column], apart, self.rank[other, row, column])


@dataclass(frozen=True)
class _Look:
    """For N pixels: whether the other view shows their place, how much farther (logarithm) it sees there, its rank."""

    inside: Tensor
    apart: Tensor
    rank: Tensor


def _bilinear(values: Tensor, pixels: Tensor, height: int, width: int) -> Tensor:
    grid = pixels / pixels.new_tensor([width, height]) * 2 - 1
    return grid_sample(values[None, None], grid[None, None], padding_mode="border", align_corners=False)[0, 0, 0]
