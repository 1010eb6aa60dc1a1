"""Training objectives as pure functions: DA3's student losses (section 3.3) and the image losses of the splats."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from da3_splat.geometry.poses import encode_cameras
from da3_splat.geometry.projection import rays_from_cameras
from da3_splat.metrics import ssim
from da3_splat.types import Cameras, Geometry, RayMap

CONFIDENCE_WEIGHT = 0.2  # lambda_c; the paper does not give it


def depth_loss(depth: Tensor, confidence: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean over the mask of confidence * |depth - target| - lambda_c * log confidence; all (B,S,H,W), mask bool."""
    error = confidence * (depth - target).abs() - CONFIDENCE_WEIGHT * confidence.log()
    return _masked_mean(error, mask)


def ray_loss(rays: RayMap, target: RayMap) -> Tensor:
    """Mean absolute difference of directions and origins; every ray has a true value, sky or not."""
    return (rays.directions - target.directions).abs().mean() + (rays.origins - target.origins).abs().mean()


def point_loss(depth: Tensor, rays: RayMap, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference between depth * direction + origin and true points (B,S,h,w,3) at the rays' size."""
    points = depth[..., None] * rays.directions + rays.origins
    return _masked_mean((points - target).abs().mean(dim=-1), mask)


def camera_loss(encoding: Tensor, target: Cameras) -> Tensor:
    """Mean absolute difference of the nine numbers (B,S,9), quaternions as unit vectors up to their sign."""
    truth = encode_cameras(target)
    quats, true_quats = normalize(encoding[..., 3:7], dim=-1), truth[..., 3:7]
    sign = torch.where((quats * true_quats).sum(dim=-1, keepdim=True) < 0, -1.0, 1.0)
    parts = [
        (encoding[..., :3] - truth[..., :3]).abs().mean(),
        (sign * quats - true_quats).abs().mean(),
        (encoding[..., 7:] - truth[..., 7:]).abs().mean(),
    ]
    return sum(parts)


def gradient_loss(depth: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference of finite differences in x and y, where both neighbours are in the mask."""
    error = depth - target
    dx, dy = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    return _masked_mean(dx.abs(), mask[..., 1:] & mask[..., :-1]) + _masked_mean(
        dy.abs(), mask[..., 1:, :] & mask[..., :-1, :]
    )


def student_loss(prediction: Geometry, truth: Geometry) -> dict[str, Tensor]:
    """All five terms of the student objective by name, each with weight 1 (alpha = beta = 1).

    `truth` is normalised (see `training.geometry.normalise_truth`); its sky has no depth, point or gradient loss.
    """
    mask = truth.depth > 0
    height, width = prediction.ray_map.directions.shape[2:4]
    true_rays = rays_from_cameras(truth.cameras, height, width)
    small_depth, small_true = _nearest(prediction.depth, height, width), _nearest(truth.depth, height, width)
    true_points = true_rays.origins + small_true[..., None] * true_rays.directions
    return {
        "depth": depth_loss(prediction.depth, prediction.confidence, truth.depth, mask),
        "ray": ray_loss(prediction.ray_map, true_rays),
        "point": point_loss(small_depth, prediction.ray_map, true_points, small_true > 0),
        "camera": camera_loss(prediction.camera_encoding, truth.cameras),
        "gradient": gradient_loss(prediction.depth, truth.depth, mask),
    }


def image_loss(rendered: Tensor, target: Tensor, ssim_weight: float = 0.2) -> Tensor:
    """(1 - w) * L1 + w * (1 - SSIM) of pictures (N,3,H,W) in [0,1], one number."""
    absolute = (rendered - target).abs().mean()
    return (1 - ssim_weight) * absolute + ssim_weight * (1 - ssim(rendered, target).mean())


def _nearest(maps: Tensor, height: int, width: int) -> Tensor:
    """(B,S,H,W) sampled at the pixels that hold the centres of an h x w grid; depth is not averaged over edges."""
    rows = ((torch.arange(height, device=maps.device) + 0.5) * maps.shape[-2] / height).long()
    columns = ((torch.arange(width, device=maps.device) + 0.5) * maps.shape[-1] / width).long()
    return maps[..., rows[:, None], columns]


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp_min(1)
