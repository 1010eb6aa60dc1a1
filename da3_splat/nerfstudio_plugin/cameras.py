"""The OpenGL border: Nerfstudio's cameras (camera to world, y up, z backward) <-> ours."""

from __future__ import annotations

import torch
from nerfstudio.cameras.cameras import Cameras as NerfstudioCameras
from torch import Tensor

from da3_splat.io.transforms_json import opengl_to_world_to_camera, world_to_camera_to_opengl
from da3_splat.types import Cameras


def from_nerfstudio(cameras: NerfstudioCameras, camera_to_worlds: Tensor | None = None) -> Cameras:
    """Our cameras (1,V) of Nerfstudio's (V), all of one size; `camera_to_worlds` (V,3,4) replaces their poses."""
    poses = cameras.camera_to_worlds if camera_to_worlds is None else camera_to_worlds
    bottom = poses.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(poses), 1, 4)
    heights, widths = cameras.height.flatten(), cameras.width.flatten()
    if bool((heights != heights[0]).any() | (widths != widths[0]).any()):
        raise ValueError("cameras: expected one picture size")
    return Cameras(
        world_to_camera=opengl_to_world_to_camera(torch.cat([poses, bottom], dim=1))[None],
        intrinsics=cameras.get_intrinsics_matrices().to(poses.device)[None],
        height=int(heights[0]),
        width=int(widths[0]),
    )


def to_nerfstudio(cameras: Cameras) -> NerfstudioCameras:
    """Nerfstudio's cameras (V) of ours (1,V)."""
    k = cameras.intrinsics[0].detach().cpu()
    return NerfstudioCameras(
        camera_to_worlds=world_to_camera_to_opengl(cameras.world_to_camera[0].detach().cpu())[:, :3],
        fx=k[:, 0, 0],
        fy=k[:, 1, 1],
        cx=k[:, 0, 2],
        cy=k[:, 1, 2],
        height=cameras.height,
        width=cameras.width,
    )
