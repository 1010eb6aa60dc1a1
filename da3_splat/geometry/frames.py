"""Moving cameras between frames: the user's, the network's."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from da3_splat.types import Cameras


def camera_at_origin(focal: float, height: int, width: int) -> Cameras:
    """One camera (1,1) that defines the world, focal length in pixels, principal point in the centre."""
    intrinsics = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    return Cameras(
        world_to_camera=torch.eye(4)[None, None], intrinsics=intrinsics[None, None], height=height, width=width
    )


def known_poses(cameras: Cameras) -> Tensor:
    """(B,V) bool: which cameras have a pose; a pose with a NaN or infinite number is not known."""
    return cameras.world_to_camera.isfinite().all(dim=-1).all(dim=-1)


def relative_to_first(cameras: Cameras) -> Cameras:
    """The same cameras in a world where the first one with a known pose is the origin."""
    first = known_poses(cameras).float().argmax(dim=1)
    anchor = cameras.camera_to_world[torch.arange(len(first), device=first.device), first]
    return replace(cameras, world_to_camera=cameras.world_to_camera @ anchor[:, None])


def scaled(cameras: Cameras, scale: Tensor) -> Cameras:
    """Camera positions times scale (B)."""
    factor = torch.ones_like(cameras.world_to_camera)
    factor[..., :3, 3] = scale[:, None, None]
    return replace(cameras, world_to_camera=cameras.world_to_camera * factor)


def cameras_for_encoder(cameras: Cameras) -> Cameras:
    """Given cameras as DA3's encoder wants them: relative to the first, median distance 1 (divided by >= 0.1)."""
    cameras = relative_to_first(cameras)
    distance = cameras.centers.norm(dim=-1).nanmedian(dim=1).values.clamp_min(0.1)
    return scaled(cameras, 1 / distance)


def baseline_scale(source: Cameras, target: Cameras) -> Tensor:
    """Factor (B) from distances between camera positions in `source` to those in `target`, over all pairs; NaN where
    the positions of either coincide (or there is one camera)."""
    first, second = (torch.cdist(c.centers.double(), c.centers.double()).flatten(1) for c in (source, target))
    moved = (first.amax(dim=1) > 1e-9) & (second.amax(dim=1) > 1e-9)
    factor = (first * second).sum(dim=1) / first.square().sum(dim=1).clamp_min(1e-30)
    return torch.where(moved, factor, torch.full_like(factor, float("nan"))).to(source.intrinsics.dtype)
