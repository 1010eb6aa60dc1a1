"""The oracle: gsplat 1.5.3's rules in plain torch, any dtype, differentiable by autograd, one Gaussian after the other.

Slow on purpose; its only virtue is that it can be believed by reading it beside the rules.
"""

from __future__ import annotations

import torch
from torch import Tensor

from da3_splat.geometry.rotations import quaternion_to_matrix
from da3_splat.rendering.constants import FOV_MARGIN, MAX_ALPHA, MAX_EXTENT, MIN_ALPHA, MIN_TRANSMITTANCE
from da3_splat.spherical_harmonics import evaluate_sh


def rasterize(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, sh: Tensor, world_to_camera: Tensor,
    intrinsics: Tensor, height: int, width: int, near: float, far: float, eps2d: float, radius_clip: float,
    antialiased: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """One picture (H,W,4) = colour and sum(w z), alpha (H,W), means2d (N,2) and radii (N,2) int32 (0: not visible), of
    Gaussians (N,...) and one camera (4,4), (3,3)."""
    rotation, translation = world_to_camera[:3, :3], world_to_camera[:3, 3]
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    center = means @ rotation.T + translation
    x, y, z = center.unbind(-1)
    inside = (z >= near) & (z <= far)
    safe_z = torch.where(inside, z, torch.ones_like(z))
    means2d = torch.stack([fx * x / safe_z + cx, fy * y / safe_z + cy], dim=-1)

    margin_x, margin_y = FOV_MARGIN * 0.5 * width / fx, FOV_MARGIN * 0.5 * height / fy
    tx = safe_z * torch.clamp(x / safe_z, -(cx / fx + margin_x), (width - cx) / fx + margin_x)
    ty = safe_z * torch.clamp(y / safe_z, -(cy / fy + margin_y), (height - cy) / fy + margin_y)
    zero = torch.zeros_like(x)
    row_x = torch.stack([fx / safe_z, zero, -fx * tx / safe_z**2], dim=-1)
    row_y = torch.stack([zero, fy / safe_z, -fy * ty / safe_z**2], dim=-1)
    jacobian = torch.stack([row_x, row_y], dim=-2) @ rotation
    factor = jacobian @ (quaternion_to_matrix(quats) * scales[:, None, :])
    sharp = factor @ factor.transpose(-1, -2)
    blurred = sharp + eps2d * torch.eye(2, dtype=means.dtype, device=means.device)
    det = blurred[:, 0, 0] * blurred[:, 1, 1] - blurred[:, 0, 1] ** 2
    if antialiased:
        ratio = (sharp[:, 0, 0] * sharp[:, 1, 1] - sharp[:, 0, 1] ** 2) / det
        positive = ratio > 0  # the square root has no slope at 0
        opacities = opacities * torch.where(positive, torch.where(positive, ratio, 1.0).sqrt(), 0.0)

    extent = torch.clamp((2 * (opacities.detach() / MIN_ALPHA).clamp_min(1).log()).sqrt(), max=MAX_EXTENT)
    radius_x = (extent * blurred[:, 0, 0].detach().sqrt()).ceil()
    radius_y = (extent * blurred[:, 1, 1].detach().sqrt()).ceil()
    visible = inside & (det > 0) & (opacities >= MIN_ALPHA) & ~((radius_x <= radius_clip) & (radius_y <= radius_clip))
    u, v = means2d.detach().unbind(-1)
    visible &= (u + radius_x > 0) & (u - radius_x < width) & (v + radius_y > 0) & (v - radius_y < height)

    a, b, c = blurred[:, 1, 1] / det, -blurred[:, 0, 1] / det, blurred[:, 0, 0] / det
    eye = -rotation.T @ translation
    away = means - eye
    directions = away / away.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    colors = (evaluate_sh(sh, directions) + 0.5).clamp_min(0)
    values = torch.cat([colors, z[:, None]], dim=-1)

    pixel_y, pixel_x = torch.meshgrid(
        torch.arange(height, dtype=means.dtype, device=means.device) + 0.5,
        torch.arange(width, dtype=means.dtype, device=means.device) + 0.5,
        indexing="ij",
    )
    picture = means.new_zeros(height, width, 4)
    light = means.new_ones(height, width)
    running = torch.ones(height, width, dtype=torch.bool, device=means.device)
    order = torch.argsort(z.detach().float(), stable=True)
    for n in order[visible[order]].tolist():
        dx, dy = pixel_x - means2d[n, 0], pixel_y - means2d[n, 1]
        sigma = 0.5 * (a[n] * dx * dx + c[n] * dy * dy) + b[n] * dx * dy
        alpha = (opacities[n] * torch.exp(-sigma)).clamp(max=MAX_ALPHA)
        counts = running & (sigma >= 0) & (alpha >= MIN_ALPHA)
        after = light * (1 - alpha)
        running = running & ~(counts & (after <= MIN_TRANSMITTANCE))
        takes = counts & running
        weight = torch.where(takes, alpha * light, 0.0)
        picture = picture + weight[..., None] * values[n]
        light = torch.where(takes, after, light)
    radii = torch.stack([radius_x, radius_y], dim=-1) * visible[:, None]
    return picture, 1 - light, means2d, radii.int()
