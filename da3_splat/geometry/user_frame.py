"""Bringing a prediction into the user's frame and scale: by given cameras, by sparse points, by nothing."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from da3_splat.geometry.alignment import Similarity, transform_cameras, umeyama
from da3_splat.geometry.frames import baseline_scale, known_poses
from da3_splat.geometry.projection import project
from da3_splat.types import Cameras, Geometry, RayMap, Views

MIN_SPARSE_HITS = 20  # sparse points in the pictures below which they do not fix the scale


def in_user_frame(geometry: Geometry, views: Views) -> tuple[Geometry, str]:
    """`geometry` with the given cameras and its depth in their scale, and what fixed that scale.

    Cameras that are not known (NaN) are the predicted ones, moved by the similarity that fits the known ones.
    """
    known = known_poses(views.known_cameras)[0]
    predicted, given = geometry.known_cameras.select(known), views.known_cameras.select(known)
    source, scale = "none", geometry.depth.new_ones(1)
    if geometry.metric_scale is not None:
        source = "metric model"
    baselines = baseline_scale(predicted, given)
    if not bool(baselines.isnan()):
        source, scale = "camera baselines", baselines
    if views.points is not None:
        hits = sparse_depth_ratios(geometry.depth[:, known], views.select(known))
        ratios = torch.cat([ratio for ratio, _, _ in hits])
        if len(ratios) >= MIN_SPARSE_HITS:
            source, scale = "sparse points", ratios.median()[None]
    motion = camera_similarity(predicted, given, scale)
    moved = transform_cameras(motion, geometry.known_cameras)
    cameras = replace(
        views.known_cameras,
        world_to_camera=torch.where(
            known[None, :, None, None], views.known_cameras.world_to_camera, moved.world_to_camera
        ),
        intrinsics=torch.where(
            views.known_cameras.intrinsics.isfinite(), views.known_cameras.intrinsics, moved.intrinsics
        ),
    )
    depth = geometry.depth * scale[:, None, None, None]
    return replace(geometry, depth=depth, cameras=cameras, ray_map=_moved_rays(motion, geometry.ray_map)), source


def _moved_rays(motion: Similarity, ray_map: RayMap | None) -> RayMap | None:
    """Rays (1,S) of the world moved by `motion`; depth takes the scale, so directions only turn."""
    if ray_map is None:
        return None
    origins = motion.apply(ray_map.origins.flatten(1, 3)).reshape(ray_map.origins.shape)
    directions = ray_map.directions @ motion.rotation.reshape(3, 3).T
    return replace(ray_map, directions=directions, origins=origins)


def at_origin(geometry: Geometry, reference: int) -> Geometry:
    """The same geometry in a world where camera `reference` is the origin."""
    motion = Similarity.rigid(geometry.known_cameras.world_to_camera[0, reference])
    rays = _moved_rays(motion, geometry.ray_map)
    return replace(geometry, cameras=transform_cameras(motion, geometry.known_cameras), ray_map=rays)


def camera_similarity(source: Cameras, target: Cameras, scale: Tensor | None = None) -> Similarity:
    """The similarity (B) that takes camera positions, and points a unit before and beside them, to those of `target`.

    The extra points carry the orientations, so one camera or two are enough. A `scale` (B) given is kept.
    """
    fixed, scale = scale, baseline_scale(source, target).nan_to_num(1.0) if scale is None else scale

    def markers(cameras: Cameras, unit: Tensor) -> Tensor:
        matrix = cameras.camera_to_world
        tips = matrix[..., :3, 3, None] + unit[:, None, None, None] * matrix[..., :3, :3]
        return torch.cat([cameras.centers, tips.transpose(-1, -2).flatten(1, 2)], dim=1)

    spread = source.centers.std(dim=1, correction=0).norm(dim=-1).clamp_min(0.1)
    similarity = umeyama(markers(source, spread), markers(target, spread * scale))
    if fixed is None:
        return similarity
    middle, target_middle = source.centers.mean(dim=1), target.centers.mean(dim=1)
    turned = (similarity.rotation @ middle[..., None])[..., 0]
    return Similarity(fixed, similarity.rotation, target_middle - fixed[:, None] * turned)


def sparse_depth_ratios(depth: Tensor, views: Views) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each view: true over predicted depth (P) of the sparse points it shows, their pixels (P,2), their indices.

    A point that another one hides by more than a fifth, in a neighbourhood of a twentieth of the picture, is left out.
    """
    assert views.points is not None, "asked for only where there are some"
    pixels, z = project(views.points, views.known_cameras)
    height, width = depth.shape[-2:]
    answers = []
    for view in range(depth.shape[1]):
        x, y = pixels[0, view].unbind(-1)
        inside = (z[0, view] > 1e-6) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        index = torch.nonzero(inside)[:, 0]
        cell = (y[index] * 20 / height).long() * 20 + (x[index] * 20 / width).long()
        nearest = torch.full((400,), float("inf"), device=z.device)
        nearest = nearest.scatter_reduce(0, cell, z[0, view, index], "amin")
        index = index[z[0, view, index] <= 1.2 * nearest[cell]]
        found = depth[0, view, y[index].long(), x[index].long()]
        answers.append((z[0, view, index] / found, pixels[0, view, index], index))
    return answers
