"""One step of DA3's student training: ground truth in the network's own frame and scale, loss, cameras as input."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from da3_splat.backbone import DepthAnything3
from da3_splat.geometry.frames import cameras_for_encoder, relative_to_first, scaled
from da3_splat.geometry.projection import unproject
from da3_splat.losses import student_loss
from da3_splat.types import Geometry


def normalise_truth(truth: Geometry) -> Geometry:
    """`truth` (B,S) in the frame of its first camera, divided by the mean norm of its valid points (section 3.3)."""
    cameras = relative_to_first(truth.cameras)
    points = unproject(truth.depth, cameras)
    valid = truth.depth > 0
    scale = (points.norm(dim=-1) * valid).sum(dim=(1, 2, 3)) / valid.sum(dim=(1, 2, 3)).clamp_min(1)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return replace(truth, depth=truth.depth / scale[:, None, None, None], cameras=scaled(cameras, 1 / scale))


def geometry_step(
    network: DepthAnything3, images: Tensor, truth: Geometry, give_cameras: bool
) -> tuple[Tensor, dict[str, float], Geometry]:
    """Loss to differentiate, its parts as numbers, and the prediction, for one batch in the frame of its first view."""
    truth = normalise_truth(truth)
    cameras = cameras_for_encoder(truth.cameras) if give_cameras else None
    prediction = network(images, cameras, reference_view="first", rays=True)
    parts = student_loss(prediction, truth)
    return sum(parts.values()), {name: float(value.detach()) for name, value in parts.items()}, prediction
