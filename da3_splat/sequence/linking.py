"""How two reconstructions of some of the same views lie to each other: a robust similarity of points and poses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from da3_splat.geometry.alignment import Similarity, ransac_similarity, umeyama
from da3_splat.types import Cameras, Geometry

POINTS = 4000  # that are compared, spread over all shared views
POSE_SHARE = 0.3  # of the weight: what the cameras count beside the points
INLIER = 0.05  # of the median depth, within which two points are one
ROUNDS = 10


@dataclass(frozen=True)
class Link:
    """`similarity` takes the frame of chunk `second` to that of chunk `first` (float64); `unit` is the median depth in
    the frame of `first`, `error` the median distance of shared points as a share of it, `inliers` their share within
    INLIER of it."""

    first: int
    second: int
    similarity: Similarity
    unit: float
    error: float
    inliers: float


def link(first: int, second: int, a: Geometry, b: Geometry) -> Link:
    """From what both chunks say of the same views: a and b (1,S) in their own frames, pixel by pixel the same.

    RANSAC on the points, then least squares whose weights fall with distance (Geman and McClure) and grow with the
    confidence of both; the cameras' positions, and points before and beside them, take part.
    """
    points_a, points_b, confidence = _shared_points(a, b)
    unit = float(a.depth[a.depth > 0].median())
    start, _ = ransac_similarity(points_b, points_a, INLIER * unit, sample=4)
    scale = float(start.scale)
    markers_a, markers_b = _markers(a.known_cameras, unit), _markers(b.known_cameras, unit / max(scale, 1e-12))
    source, target = torch.cat([points_b, markers_b]), torch.cat([points_a, markers_a])
    base = torch.cat(
        [
            (1 - POSE_SHARE) * confidence / confidence.sum(),
            torch.full_like(markers_a[:, 0], POSE_SHARE / len(markers_a)),
        ]
    )
    found = start
    for _ in range(ROUNDS):
        distance = (found.apply(source) - target).norm(dim=-1)
        reach = (2 * distance.median()).clamp(1e-6 * unit, INLIER * unit)
        found = umeyama(source, target, base / (1 + (distance / reach).square()).square())
    apart = (found.apply(points_b) - points_a).norm(dim=-1)
    near = float((apart < INLIER * unit).double().mean())
    return Link(first, second, found, unit, float(apart.median()) / unit, near)


def _shared_points(a: Geometry, b: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """Points (P,3) of the same pixels by both, float64, and the geometric mean of their confidences (P)."""
    usable = (a.depth > 0) & (b.depth > 0) & a.depth.isfinite() & b.depth.isfinite()
    for geometry in (a, b):
        if geometry.sky is not None:
            usable &= ~geometry.sky_mask
    index = torch.nonzero(usable.flatten())[:, 0]
    if len(index) < 10:
        raise ValueError(f"link: expected 10 pixels or more with a depth in both chunks, got {len(index)}")
    index = index[:: max(1, len(index) // POINTS)]
    points = [geometry.points().reshape(-1, 3)[index].double() for geometry in (a, b)]
    weight = torch.ones(len(index), dtype=torch.float64)
    for geometry in (a, b):
        if geometry.confidence is not None:
            weight = weight * geometry.confidence.flatten()[index].double().clamp_min(1e-6).sqrt()
    return points[0], points[1], weight


def _markers(cameras: Cameras, unit: float) -> Tensor:
    """Positions of the cameras and points one unit along their axes (4S,3): their poses as points."""
    matrix = cameras.camera_to_world[0].double()
    tips = matrix[:, :3, 3, None] + unit * matrix[:, :3, :3]
    return torch.cat([matrix[:, :3, 3], tips.transpose(-1, -2).flatten(0, 1)])
