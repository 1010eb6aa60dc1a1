"""One step of DA3's student training: ground truth in the network's own frame and scale, loss, cameras as input."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from da3_splat.backbone import DepthAnything3
from da3_splat.geometry.projection import unproject
from da3_splat.losses import student_loss
from da3_splat.types import Cameras, Geometry


def normalise_truth(truth: Geometry) -> Geometry:
    """`truth` (B,S) in the frame of its first camera, divided by the mean norm of its valid points (section 3.3)."""
    cameras = relative_to_first(truth.cameras)
    points = unproject(truth.depth, cameras)
    valid = truth.depth > 0
    scale = (points.norm(dim=-1) * valid).sum(dim=(1, 2, 3)) / valid.sum(dim=(1, 2, 3)).clamp_min(1)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return replace(truth, depth=truth.depth / scale[:, None, None, None], cameras=scaled(cameras, 1 / scale))


def relative_to_first(cameras: Cameras) -> Cameras:
    """The same cameras in a world where the first one is the origin."""
    return replace(cameras, world_to_camera=cameras.world_to_camera @ cameras.camera_to_world[:, :1])


def scaled(cameras: Cameras, scale: Tensor) -> Cameras:
    """Camera positions times scale (B)."""
    factor = torch.ones_like(cameras.world_to_camera)
    factor[..., :3, 3] = scale[:, None, None]
    return replace(cameras, world_to_camera=cameras.world_to_camera * factor)


def cameras_for_encoder(cameras: Cameras) -> Cameras:
    """Given cameras as DA3's encoder wants them: relative to the first, median distance 1 (at least 0.1 is divided by)."""
    cameras = relative_to_first(cameras)
    distance = cameras.centers.norm(dim=-1).median(dim=1).values.clamp_min(0.1)
    return scaled(cameras, 1 / distance)


def geometry_step(
    network: DepthAnything3, images: Tensor, truth: Geometry, give_cameras: bool
) -> tuple[Tensor, dict[str, float], Geometry]:
    """Loss to differentiate, its parts as numbers, and the prediction, for one batch in the frame of its first view."""
    truth = normalise_truth(truth)
    cameras = cameras_for_encoder(truth.cameras) if give_cameras else None
    prediction = network(images, cameras, reference_view="first", rays=True)
    parts = student_loss(prediction, truth)
    return sum(parts.values()), {name: float(value.detach()) for name, value in parts.items()}, prediction
