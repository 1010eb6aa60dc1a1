"""True geometry made wrong as a network's is: smooth depth errors, poses off, depth bleeding over edges."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d, normalize

from da3_splat.geometry.rotations import quaternion_to_matrix
from da3_splat.types import Geometry

FAR = 1e9


@dataclass(frozen=True)
class Disturbance:
    """Standard deviations and sizes. Lengths of the poses are shares of the median depth."""

    depth: float = 0.0  # smooth relative error of each view's depth
    rotation: float = 0.0  # degrees, about a random axis
    translation: float = 0.0
    scale: float = 0.0  # relative error of each view's depth as a whole
    bleed: int = 0  # pixels by which what is near grows over what is behind it
    one_view: float = 0.0  # degrees by which the middle view is turned away


def disturb(geometry: Geometry, disturbance: Disturbance, seed: int) -> Geometry:
    """`geometry` (B,S) with the errors of `seed`; depth 0 (sky) stays 0."""
    generator = torch.Generator().manual_seed(seed)
    batch, views, height, width = geometry.depth.shape
    depth = geometry.depth
    if disturbance.bleed:
        depth = _bled(depth, disturbance.bleed)
    depth = depth * torch.exp(disturbance.depth * _smooth(batch, views, height, width, generator))
    depth = depth * torch.exp(disturbance.scale * torch.randn(batch, views, 1, 1, generator=generator))
    axis = normalize(torch.randn(batch, views, 3, generator=generator), dim=-1)
    angle = torch.full((batch, views), math.radians(disturbance.rotation))
    if disturbance.one_view:
        angle[:, views // 2] = math.radians(disturbance.one_view)
    turn = quaternion_to_matrix(
        torch.cat([torch.cos(angle / 2)[..., None], torch.sin(angle / 2)[..., None] * axis], -1)
    )
    unit = geometry.depth[geometry.depth > 0].median()
    shift = disturbance.translation * unit * normalize(torch.randn(batch, views, 3, generator=generator), dim=-1)
    motion = torch.eye(4, dtype=torch.float64).repeat(batch, views, 1, 1)
    motion[..., :3, :3], motion[..., :3, 3] = turn.double(), shift.double()
    world_to_camera = torch.linalg.inv(motion) @ geometry.known_cameras.world_to_camera.double()
    cameras = replace(geometry.known_cameras, world_to_camera=world_to_camera.to(depth.dtype))
    return replace(geometry, depth=depth, cameras=cameras)


def _smooth(batch: int, views: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Smooth noise (B,S,H,W) of standard deviation 1: a few bumps across each picture."""
    nodes = torch.randn(batch * views, 1, 3, 4, generator=generator)
    noise = interpolate(nodes, (height, width), mode="bicubic", align_corners=True)[:, 0]
    return (noise / noise.std()).unflatten(0, (batch, views))


def _bled(depth: Tensor, pixels: int) -> Tensor:
    far = torch.where(depth > 0, depth, torch.full_like(depth, FAR))
    nearest = -max_pool2d(-far.flatten(0, 1)[:, None], 2 * pixels + 1, 1, pixels)[:, 0].unflatten(0, depth.shape[:2])
    return torch.where((depth > 0) & (nearest < FAR), nearest, depth)
