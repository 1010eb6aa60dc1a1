"""Training objectives as pure functions: DA3's student losses (section 3.3) and the image losses of the splats."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from da3_splat.geometry.poses import encode_cameras
from da3_splat.geometry.projection import rays_from_cameras
from da3_splat.metrics import ssim
from da3_splat.types import Cameras, Geometry, RayMap

CONFIDENCE_WEIGHT = 0.2  # lambda_c of L_D, which the paper does not give


def depth_loss(depth: Tensor, confidence: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """L_D (section 3.3): mean over the mask of c |D^ - D| - lambda_c log c; all (B,S,H,W), mask bool."""
    error = confidence * (depth - target).abs() - CONFIDENCE_WEIGHT * confidence.log()
    return _masked_mean(error, mask)


def ray_loss(rays: RayMap, target: RayMap) -> Tensor:
    """L_M (section 3.3): mean absolute difference of directions, plus that of origins; sky has rays, too.

    The paper does not write it out. By default the confidence of rays is not used.
    """
    return (rays.directions - target.directions).abs().mean() + (rays.origins - target.origins).abs().mean()


def point_loss(depth: Tensor, rays: RayMap, target: Tensor, mask: Tensor) -> Tensor:
    """L_P (section 3.3): mean absolute difference between D^ * d + t, all three predicted, and true points (B,S,h,w,3).

    `depth` and `mask` (B,S,h,w) have the rays' size.
    """
    points = depth[..., None] * rays.directions + rays.origins
    return _masked_mean((points - target).abs().mean(dim=-1), mask)


def camera_loss(encoding: Tensor, target: Cameras) -> Tensor:
    """L_C (section 3.3): mean absolute differences of translation, quaternion and field of view (B,S,9), their sum.

    Quaternions count as unit vectors up to their sign, and the three parts alike; the paper leaves both open.
    """
    truth = encode_cameras(target)
    quats, true_quats = normalize(encoding[..., 3:7], dim=-1), truth[..., 3:7]
    sign = torch.where((quats * true_quats).sum(dim=-1, keepdim=True) < 0, -1.0, 1.0)
    parts = [
        (encoding[..., :3] - truth[..., :3]).abs().mean(),
        (sign * quats - true_quats).abs().mean(),
        (encoding[..., 7:] - truth[..., 7:]).abs().mean(),
    ]
    return parts[0] + parts[1] + parts[2]


def gradient_loss(depth: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """L_grad (section 3.3): mean absolute difference of finite differences in x, plus that in y, over pairs of
    neighbours that are both in the mask."""
    error = depth - target
    dx, dy = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    return _masked_mean(dx.abs(), mask[..., 1:] & mask[..., :-1]) + _masked_mean(
        dy.abs(), mask[..., 1:, :] & mask[..., :-1, :]
    )


def student_loss(prediction: Geometry, truth: Geometry) -> dict[str, Tensor]:
    """L_D + L_M + L_P + beta L_C + alpha L_grad (section 3.3) by name, alpha = beta = 1.

    `truth` is normalised (see `training.geometry.normalise_truth`); its sky has no depth, point or gradient loss.
    """
    mask = truth.depth > 0
    rays, confidence, encoding = prediction.ray_map, prediction.confidence, prediction.camera_encoding
    if rays is None or confidence is None or encoding is None:
        raise ValueError(
            "prediction: expected confidence, rays and cameras, as an any-view network gives with rays=True"
        )
    height, width = rays.directions.shape[2:4]
    true_rays = rays_from_cameras(truth.known_cameras, height, width)
    small_depth, small_true = _nearest(prediction.depth, height, width), _nearest(truth.depth, height, width)
    true_points = true_rays.origins + small_true[..., None] * true_rays.directions
    return {
        "depth": depth_loss(prediction.depth, confidence, truth.depth, mask),
        "ray": ray_loss(rays, true_rays),
        "point": point_loss(small_depth, rays, true_points, small_true > 0),
        "camera": camera_loss(encoding, truth.known_cameras),
        "gradient": gradient_loss(prediction.depth, truth.depth, mask),
    }


def image_loss(rendered: Tensor, target: Tensor, ssim_weight: float = 0.2) -> Tensor:
    """(1 - w) * L1 + w * (1 - SSIM) of pictures (N,3,H,W) in [0,1], one number."""
    absolute = (rendered - target).abs().mean()
    return (1 - ssim_weight) * absolute + ssim_weight * (1 - ssim(rendered, target).mean())


def scale_shift_invariant_depth_loss(depth: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean over pictures (N,H,W) of |s depth + t - target| / spread, with the s and t of least squares in each picture.

    `spread` is the mean absolute deviation of the target from its mean, so the unit of depth does not matter. Pictures
    with fewer than two pixels in the mask, or of one depth, count as 0.
    """
    weight = mask.flatten(1).to(depth.dtype)
    x, y = depth.flatten(1), torch.where(mask, target, 0).flatten(1)
    count = weight.sum(dim=1, keepdim=True).clamp_min(1)
    x, y = x - (weight * x).sum(1, keepdim=True) / count, y - (weight * y).sum(1, keepdim=True) / count
    scale = (weight * x * y).sum(1, keepdim=True) / (weight * x * x).sum(1, keepdim=True).clamp_min(1e-12)
    spread = (weight * y.abs()).sum(1, keepdim=True) / count
    error = (weight * (scale * x - y).abs()).sum(1, keepdim=True) / count
    return torch.where(spread > 1e-6, error / spread.clamp_min(1e-6), 0).mean()


def log_depth_loss(depth: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean over the mask of |log depth - log target - m|, all (N,H,W), where m is the median of their difference in
    each picture: a target of unknown scale fits as it is."""
    terms = []
    for ours, theirs, kept in zip(depth, target, mask):
        off = ours[kept].clamp_min(1e-6).log() - theirs[kept].clamp_min(1e-6).log()
        terms.append((off - off.detach().median()).abs().mean() if len(off) else ours.sum() * 0)
    return torch.stack(terms).mean()


def fit_colors(rendered: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Pictures (N,3,H,W) after the affine change of colour (3x3 and offset, one a picture) that fits the target best.

    For photos of one place that differ in exposure, white balance and hour. The fit is not differentiated: it says
    what the camera did, the Gaussians answer for the rest.
    """
    with torch.no_grad():
        colors = torch.cat([rendered, torch.ones_like(rendered[:, :1])], dim=1).flatten(2).double()  # (N,4,P)
        weights = 1.0 if mask is None else mask.flatten(1)[:, None].double()
        normal = (colors * weights) @ colors.transpose(1, 2)
        # A little pull towards no change, for pictures of one colour.
        pull = 1e-4 * colors.shape[-1] * torch.eye(4, dtype=normal.dtype, device=normal.device)
        right = (colors * weights) @ target.flatten(2).double().transpose(1, 2) + pull[:, :3]
        change = torch.linalg.solve(normal + pull, right).to(rendered)  # (N,4,3)
    return torch.einsum("nchw,ncd->ndhw", rendered, change[:, :3]) + change[:, 3, :, None, None]


def static_pixels(rendered: Tensor, target: Tensor, share: float) -> Tensor:
    """(N,H,W) bool: the `share` of each picture's pixels that fits best, differences averaged over 7x7 neighbours.

    What moves or stands there in one photo only fits badly however the rest is (compare RobustNeRF, Sabour 2023).
    """
    error = (rendered - target).detach().abs().mean(dim=1, keepdim=True)
    error = avg_pool2d(error, 7, stride=1, padding=3, count_include_pad=False)[:, 0]
    limit = error.flatten(1).quantile(share, dim=1)
    return error <= limit[:, None, None]


def _nearest(maps: Tensor, height: int, width: int) -> Tensor:
    """(B,S,H,W) sampled at the pixels that hold the centres of an h x w grid; depth is not averaged over edges."""
    rows = ((torch.arange(height, device=maps.device) + 0.5) * maps.shape[-2] / height).long()
    columns = ((torch.arange(width, device=maps.device) + 0.5) * maps.shape[-1] / width).long()
    return maps[..., rows[:, None], columns]


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp_min(1)
