"""Similarity transforms: fit them (Umeyama, RANSAC), apply them to everything that lives in the world."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from da3_splat.geometry.rotations import matrix_to_quaternion, quaternion_multiply
from da3_splat.spherical_harmonics import rotate_sh
from da3_splat.types import Cameras, Gaussians


@dataclass(frozen=True)
class Similarity:
    """target = scale * rotation @ source + translation; scale (...), rotation (...,3,3), translation (...,3)."""

    scale: Tensor
    rotation: Tensor
    translation: Tensor

    @staticmethod
    def rigid(pose: Tensor) -> Similarity:
        """That of a pose (...,4,4), with scale 1."""
        return Similarity(pose.new_ones(pose.shape[:-2]), pose[..., :3, :3], pose[..., :3, 3])

    def apply(self, points: Tensor) -> Tensor:
        """Moved points (...,P,3)."""
        return self.scale[..., None, None] * points @ self.rotation.transpose(-1, -2) + self.translation[..., None, :]

    def inverse(self) -> Similarity:
        scale, rotation = 1 / self.scale, self.rotation.transpose(-1, -2)
        return Similarity(scale, rotation, -scale[..., None] * (rotation @ self.translation[..., None])[..., 0])


def umeyama(source: Tensor, target: Tensor, weights: Tensor | None = None) -> Similarity:
    """The least-squares similarity (...) that takes source (...,P,3) to target (...,P,3) (Umeyama 1991).

    `weights` (...,P) are non-negative. The rotation is proper even for points on a line or a plane, where the free
    angle is arbitrary. All source points in one place leave the scale undefined: it is then 1.
    """
    if source.shape != target.shape or source.shape[-1] != 3:
        raise ValueError(f"umeyama: expected two (...,P,3) of one shape, got {source.shape} and {target.shape}")
    weights = torch.ones_like(source[..., 0]) if weights is None else weights
    weights = (weights / weights.sum(dim=-1, keepdim=True).clamp_min(1e-30))[..., None]
    source_mean, target_mean = (weights * source).sum(dim=-2), (weights * target).sum(dim=-2)
    source, target = source - source_mean[..., None, :], target - target_mean[..., None, :]
    covariance = (weights * target).transpose(-1, -2) @ source
    u, singular, vh = torch.linalg.svd(covariance)
    sign = torch.ones_like(singular)
    sign[..., 2] = torch.sign(torch.linalg.det(u @ vh))
    rotation = u @ (sign[..., None] * vh)
    variance = (weights * source.square()).sum(dim=(-1, -2))
    defined = variance > 1e-20 * source_mean.square().sum(dim=-1).clamp_min(1e-20)
    scale = torch.where(defined, (singular * sign).sum(dim=-1) / variance.clamp_min(1e-38), torch.ones_like(variance))
    translation = target_mean - scale[..., None] * (rotation @ source_mean[..., None])[..., 0]
    return Similarity(scale, rotation, translation)


def ransac_similarity(
    source: Tensor, target: Tensor, threshold: float, iterations: int = 256, seed: int = 0, sample: int = 3
) -> tuple[Similarity, Tensor]:
    """A similarity from source to target (P,3) that ignores outliers, and the inlier mask (P).

    All hypotheses (`sample` points each, drawn from `seed`) are fitted in one batch, scored by the truncated distance,
    and the best one is refitted on its inliers until they no longer change.
    """
    count = source.shape[0]
    if count < 3:
        raise ValueError(f"ransac_similarity: expected at least 3 points, got {count}")
    generator = torch.Generator().manual_seed(seed)
    picks = torch.rand(iterations, count, generator=generator).topk(sample, dim=1).indices.to(source.device)
    hypotheses = umeyama(source[picks], target[picks])
    distance = (hypotheses.apply(source.expand(iterations, -1, -1)) - target).norm(dim=-1)
    best = distance.clamp_max(threshold).sum(dim=1).argmin()
    inliers = distance[best] < threshold
    similarity = umeyama(source, target, inliers.to(source.dtype))
    for _ in range(10):
        updated = (similarity.apply(source) - target).norm(dim=-1) < threshold
        if updated.sum() < 3 or torch.equal(updated, inliers):
            break
        inliers = updated
        similarity = umeyama(source, target, inliers.to(source.dtype))
    return similarity, inliers


def transform_cameras(similarity: Similarity, cameras: Cameras) -> Cameras:
    """Cameras (B,V) of the world moved by `similarity` (batch shape () or (B,)): they see the same pictures."""
    rotation, translation = similarity.rotation, similarity.translation
    scale = similarity.scale
    if scale.ndim:
        rotation, translation, scale = rotation[:, None], translation[:, None], scale[:, None]
    world_to_camera = cameras.world_to_camera.clone()
    turned = cameras.world_to_camera[..., :3, :3] @ rotation.transpose(-1, -2)
    world_to_camera[..., :3, :3] = turned
    moved = scale[..., None] * cameras.world_to_camera[..., :3, 3] - (turned @ translation[..., None])[..., 0]
    world_to_camera[..., :3, 3] = moved
    return replace(cameras, world_to_camera=world_to_camera)


def transform_gaussians(similarity: Similarity, gaussians: Gaussians) -> Gaussians:
    """Gaussians (B,N) moved by `similarity` (batch shape () or (B,)): means, orientations, sizes and SH."""
    batch = gaussians.means.shape[0]
    scale = similarity.scale.expand(batch)[:, None, None]
    rotation = similarity.rotation.expand(batch, 3, 3)
    turn = matrix_to_quaternion(rotation)[:, None].expand_as(gaussians.quats)
    return replace(
        gaussians,
        means=similarity.apply(gaussians.means),
        quats=quaternion_multiply(turn, gaussians.quats),
        scales=gaussians.scales * scale,
        sh=rotate_sh(gaussians.sh, rotation[:, None]),
    )


def scaled_about(gaussians: Gaussians, center: Tensor, factor: Tensor) -> Gaussians:
    """Gaussians (B,N) moved along the rays from `center` (B,1,3): distance and size times factor (B,N)."""
    factor = factor[..., None].to(gaussians.means.dtype)
    means = center + (gaussians.means - center) * factor
    return replace(gaussians, means=means, scales=gaussians.scales * factor)
