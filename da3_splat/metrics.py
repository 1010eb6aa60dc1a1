"""Scores: one value per item, averaging is the caller's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics.functional.image import structural_similarity_index_measure

from da3_splat.geometry.rotations import rotation_angle
from da3_splat.types import Cameras


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Peak signal to noise ratio (N) in dB of pictures (N,3,H,W) in [0,1]."""
    return -10 * torch.log10((image - target).square().mean(dim=(1, 2, 3)).clamp_min(1e-12))


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity (N) with an 11x11 Gaussian window, sigma 1.5, data range 1."""
    return structural_similarity_index_measure(
        image, target, data_range=1.0, sigma=1.5, kernel_size=11, reduction="none"
    )


def absolute_relative_error(depth: Tensor, target: Tensor) -> Tensor:
    """Mean |s depth - target| / target (B) over pixels with target > 0, s the median ratio of each item (B,...)."""
    scores = []
    for predicted, true in zip(depth, target):
        valid = true > 0
        ratio = (true[valid] / predicted[valid]).median()
        scores.append(((ratio * predicted[valid] - true[valid]).abs() / true[valid]).mean())
    return torch.stack(scores)


def relative_pose_errors(predicted: Cameras, true: Cameras) -> tuple[Tensor, Tensor]:
    """Errors in degrees of the relative poses of all pairs of views, both (B,V*(V-1)/2): of the rotation, and of the
    direction of the translation up to its sign, as the DA3 benchmark takes it.

    A direction that is missing from the prediction is 90 degrees off; one that is missing from the truth, where two
    cameras stand at the same place, cannot be wrong. Both are independent of the frame and of the scale.
    """
    first, second = torch.triu_indices(*predicted.world_to_camera.shape[1:2] * 2, offset=1)
    between = [
        c.world_to_camera.double()[:, second] @ torch.linalg.inv(c.world_to_camera.double()[:, first])
        for c in (predicted, true)
    ]
    rotation = torch.rad2deg(rotation_angle(between[0][..., :3, :3], between[1][..., :3, :3]))
    steps = [pose[..., :3, 3] for pose in between]
    # Relative to the whole camera path, so that rounding is not taken for a direction.
    extent = [step.norm(dim=-1).amax(dim=-1, keepdim=True).clamp_min(1e-30) for step in steps]
    stands = [step.norm(dim=-1) < 1e-6 * size for step, size in zip(steps, extent)]
    ours, theirs = (normalize(step, dim=-1, eps=1e-30) for step in steps)
    aligned = (ours * theirs).sum(dim=-1).abs()
    direction = torch.rad2deg(torch.atan2(torch.linalg.cross(ours, theirs, dim=-1).norm(dim=-1), aligned))
    direction = direction.masked_fill(stands[0], 90.0).masked_fill(stands[1], 0.0)
    return rotation, direction


def pose_auc(errors: Tensor, threshold: int) -> Tensor:
    """Area (B) under the curve of recall over error up to `threshold` degrees, in [0,1], for pair errors (B,P).

    As published: the mean over 1-degree steps of the share of pairs below the step's end.
    """
    steps = torch.arange(1, threshold + 1, device=errors.device)
    return (errors[:, None] < steps[:, None]).double().mean(dim=(1, 2))
