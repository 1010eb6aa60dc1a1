"""Scores: one value per item, averaging is the caller's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from da3_splat.geometry.rotations import rotation_angle
from da3_splat.types import Cameras


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Peak signal to noise ratio (N) in dB of pictures (N,3,H,W) in [0,1]."""
    return -10 * torch.log10((image - target).square().mean(dim=(1, 2, 3)).clamp_min(1e-12))


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity (N) with an 11x11 Gaussian window, sigma 1.5, data range 1."""
    from torchmetrics.functional.image import structural_similarity_index_measure  # takes seconds to import

    scores = structural_similarity_index_measure(
        image, target, data_range=1.0, sigma=1.5, kernel_size=11, reduction="none"
    )
    assert isinstance(scores, Tensor), "a pair only where the whole map is asked for"
    return scores


def absolute_relative_error(depth: Tensor, target: Tensor, scale: Tensor | None = None) -> Tensor:
    """Mean |s depth - target| / target (B) over pixels with target > 0; s is `scale` (B), or without one the median
    ratio of each item (B,...)."""
    scores = []
    for item, (predicted, true) in enumerate(zip(depth, target)):
        valid = true > 0
        ratio = (true[valid] / predicted[valid]).median() if scale is None else scale[item]
        scores.append(((ratio * predicted[valid] - true[valid]).abs() / true[valid]).mean())
    return torch.stack(scores)


def relative_pose_errors(predicted: Cameras, true: Cameras) -> tuple[Tensor, Tensor]:
    """Errors in degrees of the relative poses of all pairs of views, both (B,V*(V-1)/2): of the rotation, and of the
    direction of the translation up to its sign, as the DA3 benchmark takes it.

    A direction that is missing from the prediction is 90 degrees off; one that is missing from the truth, where two
    cameras stand at the same place, cannot be wrong. Both are independent of the frame and of the scale.
    """
    if predicted.world_to_camera.shape != true.world_to_camera.shape or predicted.world_to_camera.shape[1] < 2:
        shapes = " and ".join(str(tuple(cameras.world_to_camera.shape[:2])) for cameras in (predicted, true))
        raise ValueError(f"relative_pose_errors: expected (B,V) cameras twice, V of 2 or more, got {shapes}")
    views = predicted.world_to_camera.shape[1]
    first, second = torch.triu_indices(views, views, offset=1)
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


def pose_errors(predicted: Cameras, true: Cameras) -> Tensor:
    """The larger of both errors of `relative_pose_errors` (B,P) in degrees, as the benchmarks count a pair."""
    return torch.maximum(*relative_pose_errors(predicted, true))


def error_histogram(errors: Tensor, degrees: int = 30) -> Tensor:
    """How many of the pair errors (B,P) lie in [0,1), [1,2), ... degrees: (B,degrees) int; those beyond in none."""
    bins = torch.arange(degrees, device=errors.device)
    return (errors.floor()[:, None] == bins[:, None]).sum(dim=-1)


@dataclass(frozen=True)
class DepthErrors:
    """Per item (B): mean |d-t|/t, mean (d-t)^2/t, root of the mean (d-t)^2, and the shares of pixels whose ratio
    max(d/t, t/d) is below 1.25, 1.25^2 and 1.25^3 (Eigen 2014). A depth that is not positive is beyond each of them."""

    absolute_relative: Tensor
    squared_relative: Tensor
    root_mean_square: Tensor
    delta1: Tensor
    delta2: Tensor
    delta3: Tensor


def depth_errors(depth: Tensor, target: Tensor) -> DepthErrors:
    """Errors of z-depth (B,...) over the pixels of each item with target > 0, in the units of the target.

    ValueError where an item has no such pixel, or a depth that is not finite there.
    """
    rows = []
    for predicted, true in _valid_pixels(depth, target):
        ratio = torch.maximum(predicted / true, true / predicted)
        ratio = torch.where(predicted > 0, ratio, torch.inf)
        off = predicted - true
        shares = [(ratio < 1.25**power).double().mean() for power in (1, 2, 3)]
        rows.append([(off.abs() / true).mean(), (off.square() / true).mean(), off.square().mean().sqrt(), *shares])
    return DepthErrors(*(torch.stack(column) for column in zip(*rows)))


def aligned_depth(depth: Tensor, target: Tensor, alignment: Literal["none", "scale", "scale-shift"]) -> Tensor:
    """Depth (B,...) brought to the target's scale, each item by itself, over the pixels with target > 0.

    none: as it is, for metric models. scale: times the median of target / depth. scale-shift: the a and b that minimise
    the sum of (a depth + b - target)^2.
    """
    if alignment == "none":
        return depth
    aligned = []
    for item, (predicted, true) in zip(depth.double(), _valid_pixels(depth, target)):
        if alignment == "scale":
            scale, shift = (true / predicted).median(), true.new_zeros(())
        else:
            spread = predicted - predicted.mean()
            scale = (spread * (true - true.mean())).sum() / spread.square().sum().clamp_min(1e-30)
            shift = true.mean() - scale * predicted.mean()
        aligned.append(scale * item + shift)
    return torch.stack(aligned).to(depth)


def _valid_pixels(depth: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Predicted and true values (P) float64 of each item, where there is truth."""
    if depth.shape != target.shape:
        raise ValueError(f"depth: expected the shape of the target {tuple(target.shape)}, got {tuple(depth.shape)}")
    pairs = [(predicted[true > 0].double(), true[true > 0].double()) for predicted, true in zip(depth, target)]
    for index, (predicted, _) in enumerate(pairs):
        if len(predicted) == 0 or not bool(predicted.isfinite().all()):
            what = "no pixel has a true depth" if len(predicted) == 0 else "the depth is not finite"
            raise ValueError(f"depth of item {index}: {what}")
    return pairs
