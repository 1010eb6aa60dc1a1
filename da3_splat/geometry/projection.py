"""Pixels, rays and points. Pixel (row 0, column 0) has its centre at (0.5, 0.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from da3_splat.types import Cameras, RayMap


def pixel_grid(height: int, width: int, like: Tensor) -> Tensor:
    """Homogeneous pixel centres (height, width, 3) as (x, y, 1), in the device and dtype of `like`."""
    x = torch.arange(width, device=like.device, dtype=like.dtype) + 0.5
    y = torch.arange(height, device=like.device, dtype=like.dtype) + 0.5
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid_x, grid_y, torch.ones_like(grid_x)], dim=-1)


def inverse_intrinsics(intrinsics: Tensor) -> Tensor:
    """Inverse of upper-triangular intrinsics (...,3,3) in closed form; a zero focal length is an error."""
    fx, skew, cx = intrinsics[..., 0, 0], intrinsics[..., 0, 1], intrinsics[..., 0, 2]
    fy, cy = intrinsics[..., 1, 1], intrinsics[..., 1, 2]
    if not bool(((fx * fy).abs() > 0).all()):
        raise ValueError("intrinsics: expected non-zero focal lengths, got a singular matrix")
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    rows = [1 / fx, -skew / (fx * fy), (skew * cy - cx * fy) / (fx * fy), zero, 1 / fy, -cy / fy, zero, zero, one]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def rays_from_cameras(cameras: Cameras, height: int | None = None, width: int | None = None) -> RayMap:
    """The ray map (B,V,h,w) of the cameras, sampled at h x w pixel centres (default: the cameras' own size).

    direction = R K^-1 (x, y, 1) with R camera to world, so its component along the viewing axis is 1 and
    point = origin + depth * direction for z-depth (DA3 section 3.1).
    """
    height, width = height or cameras.height, width or cameras.width
    cameras = cameras.resized(height, width)
    pixels = pixel_grid(height, width, cameras.intrinsics)
    camera_to_world = cameras.camera_to_world
    matrix = camera_to_world[..., :3, :3] @ inverse_intrinsics(cameras.intrinsics)
    directions = torch.einsum("bvij,hwj->bvhwi", matrix, pixels)
    origins = camera_to_world[..., None, None, :3, 3].expand_as(directions)
    return RayMap(directions=directions, origins=origins)


def unproject(depth: Tensor, cameras: Cameras) -> Tensor:
    """World points (B,V,h,w,3) of z-depth (B,V,h,w) seen by the cameras."""
    rays = rays_from_cameras(cameras, *depth.shape[-2:])
    return rays.origins + depth[..., None] * rays.directions


def project(points: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Pixels (B,V,P,2) and z-depth (B,V,P) of world points (B,P,3) or (P,3); pixels mean nothing where z <= 0."""
    if points.ndim == 2:
        points = points[None].expand(cameras.intrinsics.shape[0], -1, -1)
    in_camera = transform(cameras.world_to_camera, points[:, None])
    depth = in_camera[..., 2]
    homogeneous = in_camera @ cameras.intrinsics.transpose(-1, -2)
    safe = torch.where(depth.abs() > 1e-12, depth, torch.full_like(depth, 1e-12))
    return homogeneous[..., :2] / safe[..., None], depth


def transform(matrix: Tensor, points: Tensor) -> Tensor:
    """Points (...,P,3) moved by matrices (...,4,4)."""
    return points @ matrix[..., :3, :3].transpose(-1, -2) + matrix[..., None, :3, 3]
