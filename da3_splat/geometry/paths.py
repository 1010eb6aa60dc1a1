"""A smooth flight past the cameras of a scene."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from scipy.spatial.transform import Rotation, RotationSpline

from da3_splat.types import Cameras


def fly_through(cameras: Cameras, count: int) -> Cameras:
    """`count` cameras (1,count) on a spline through those of `cameras` (1,V), at an even pace, no jumps in rotation.

    Views are visited in the order of a tour from one end to its nearest neighbour and so on, so that pictures in any
    order give a path. Intrinsics are the mean. One camera alone sways a little from side to side.
    """
    poses = cameras.camera_to_world[0].detach().double().cpu().numpy()
    order = _tour(poses[:, :3, 3])
    positions, turns = poses[order, :3, 3], Rotation.from_matrix(poses[order, :3, :3])
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    moving = np.concatenate([[True], steps > 1e-6 * max(steps.sum(), 1e-12)])  # a spline needs distinct knots
    positions, turns, steps = positions[moving], turns[moving], steps[moving[1:]]
    times = np.concatenate([[0.0], np.cumsum(steps)]) if len(positions) > 1 else np.zeros(1)
    at = np.linspace(0, times[-1], count)
    if len(positions) == 1:
        sway = 0.05 * np.sin(np.linspace(0, 2 * np.pi, count))
        turn = turns[0] * Rotation.from_rotvec(np.stack([0 * sway, sway, 0 * sway], axis=1))
        place = np.repeat(positions, count, axis=0)
    else:
        place = make_interp_spline(times, positions, k=min(3, len(positions) - 1))(at)
        turn = RotationSpline(times, turns)(at)
    pose = np.tile(np.eye(4), (count, 1, 1))
    pose[:, :3, :3], pose[:, :3, 3] = turn.as_matrix(), place
    world_to_camera = torch.from_numpy(np.linalg.inv(pose)).to(cameras.world_to_camera)[None]
    intrinsics = cameras.intrinsics.mean(dim=1, keepdim=True).expand(-1, count, -1, -1)
    return replace(cameras, world_to_camera=world_to_camera, intrinsics=intrinsics)


def _tour(positions: np.ndarray) -> list[int]:
    """From a far end always on to the nearest position not yet visited."""
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    here = int(distance.sum(axis=1).argmax())
    order, left = [here], set(range(len(positions))) - {here}
    while left:
        here = min(left, key=lambda other: (distance[here, other], other))
        order.append(here)
        left.remove(here)
    return order
