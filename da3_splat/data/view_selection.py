"""Which pictures of a scene go in and which are held out: pure functions, deterministic but for a generator given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from da3_splat.types import Cameras


def pose_distance(cameras: Cameras, rotation_weight: float = 1.0) -> Tensor:
    """Distances (V,V) float64 between the poses of one scene: how far apart and how differently turned two views are.

    distance = |centre - centre| / extent + rotation_weight * angle / pi, where extent is the largest distance between
    two centres, so both terms lie in [0,1]. DA3 (section 6.1) combines translation and rotation too but does not say
    how: the equal weight is our choice.
    """
    if cameras.world_to_camera.shape[0] != 1 or not bool(cameras.world_to_camera.isfinite().all()):
        raise ValueError("cameras: expected the cameras of one scene with finite poses")
    centers = cameras.centers[0].double()
    rotations = cameras.world_to_camera[0, :, :3, :3].double().flatten(1)
    translation = (centers[:, None] - centers[None]).norm(dim=-1)
    extent = translation.max()
    if extent > 0:  # a tripod turns, and stays where it is
        translation = translation / extent
    angle = torch.acos(((rotations @ rotations.T - 1) / 2).clamp(-1, 1))
    angle.fill_diagonal_(0)
    return translation + rotation_weight * angle / torch.pi


def farthest_point_views(
    cameras: Cameras,
    count: int,
    candidates: Sequence[int] | None = None,
    first: int | None = None,
    rotation_weight: float = 1.0,
) -> list[int]:
    """`count` of the `candidates` (default: all views), each the farthest from those before it by `pose_distance`.

    The first is `first`, else the candidate in the middle of all (least summed distance). Ties go to the lower index.
    In the order chosen, so that the first n of them are what n views would have been.
    """
    pool = sorted(set(range(cameras.world_to_camera.shape[1]) if candidates is None else candidates))
    if not 1 <= count <= len(pool):
        raise ValueError(f"count: expected 1 to {len(pool)} views (so many candidates), got {count}")
    if pool[0] < 0 or pool[-1] >= cameras.world_to_camera.shape[1]:
        raise ValueError(f"candidates: expected views 0 to {cameras.world_to_camera.shape[1] - 1}, got {pool}")
    if first is not None and first not in pool:
        raise ValueError(f"first: expected one of the candidates, got {first}")
    # Rounded, so that ties are ties on every machine.
    distance = pose_distance(cameras, rotation_weight)[pool][:, pool].cpu().numpy().round(9)
    chosen = [int(distance.sum(axis=1).round(6).argmin()) if first is None else pool.index(first)]
    nearest = distance[chosen[0]].copy()
    while len(chosen) < count:
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distance[chosen[-1]])
    return [pool[index] for index in chosen]


def hold_out(count: int, every: int = 8) -> list[int]:
    """The targets of the usual protocol: frames 0, 8, 16, ... of `count`; the others may be contexts."""
    if every < 2:
        raise ValueError(f"every: expected at least 2 (1 leaves no contexts), got {every}")
    return list(range(0, count, every))


def nested_contexts(cameras: Cameras, counts: Sequence[int], targets: Sequence[int]) -> dict[int, list[int]]:
    """Contexts (sorted) for each of `counts` (2, 4, 8, ...), each containing the smaller ones; no targets."""
    held_out = set(targets)
    candidates = [view for view in range(cameras.world_to_camera.shape[1]) if view not in held_out]
    order = farthest_point_views(cameras, max(counts), candidates)
    return {count: sorted(order[:count]) for count in counts}


def bounded_gap_views(
    count_frames: int, views: int, min_gap: int, max_gap: int, generator: torch.Generator, targets: int = 4
) -> tuple[list[int], list[int]]:
    """A random window of a video: `views` contexts, min_gap to max_gap frames apart, and `targets` frames between them.

    Both sorted; no target is a context. Gaps shrink to what a short video holds and grow, up to max_gap, to make room
    for the targets; ValueError where that cannot be.
    """
    if views < 2 or not 1 <= min_gap <= max_gap:
        raise ValueError(f"expected 2 views or more, 1 <= min_gap <= max_gap, got {views}, {min_gap}, {max_gap}")
    largest = min(max_gap, (count_frames - 1) // (views - 1))
    if largest < min_gap or (views - 1) * (largest - 1) < targets:
        raise ValueError(
            f"{count_frames} frames hold no {views} contexts {min_gap} to {max_gap} frames apart "
            f"with {targets} targets between them"
        )
    gaps = torch.randint(min_gap, largest + 1, (views - 1,), generator=generator)
    while int((gaps - 1).sum()) < targets:
        gaps[gaps.argmin()] += 1
    start = int(torch.randint(0, count_frames - int(gaps.sum()), (1,), generator=generator))
    contexts = [start, *(start + gaps.cumsum(0)).tolist()]
    between = sorted(set(range(contexts[0], contexts[-1])) - set(contexts))
    drawn = torch.randperm(len(between), generator=generator)[:targets].tolist()
    return contexts, sorted(between[index] for index in drawn)


def pairs_by_overlap(overlap: Tensor, low: float, high: float) -> Tensor:
    """Pairs (P,2), i < j, whose `overlap` (N,N) lies in [low, high] seen from the side that shares less."""
    return torch.nonzero(torch.triu(_linked(overlap, low, high), diagonal=1))


def views_by_overlap(overlap: Tensor, count: int, low: float, high: float, generator: torch.Generator) -> list[int]:
    """`count` views that hang together: each but the first shares [low, high] with one before it. In order of growth.

    ValueError where no group of views is that large.
    """
    linked = _linked(overlap, low, high)
    groups = torch.from_numpy(connected_components(linked.numpy(), directed=False)[1]).long()
    sizes = groups.bincount()
    starts = torch.nonzero(sizes[groups] >= count)[:, 0]
    if count < 1 or len(starts) == 0:
        raise ValueError(
            f"count: expected 1 to {int(sizes.max())} views (the largest group with overlaps of {low} to {high}), "
            f"got {count}"
        )
    chosen = [int(starts[torch.randint(len(starts), (1,), generator=generator)])]
    while len(chosen) < count:
        border = linked[chosen].any(dim=0)
        border[chosen] = False
        border = torch.nonzero(border)[:, 0]
        chosen.append(int(border[torch.randint(len(border), (1,), generator=generator)]))
    return chosen


def _linked(overlap: Tensor, low: float, high: float) -> Tensor:
    if overlap.ndim != 2 or overlap.shape[0] != overlap.shape[1] or len(overlap) == 0:
        raise ValueError(f"overlap: expected a square matrix, got {tuple(overlap.shape)}")
    least = torch.minimum(overlap, overlap.T)
    linked = (least >= low) & (least <= high)
    return linked.fill_diagonal_(False)
