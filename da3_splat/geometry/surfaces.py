"""What depth maps say of surfaces: tangents, frames, areas, jumps. Depth is (B,S,H,W), cameras are (B,S)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from da3_splat.geometry.projection import unproject
from da3_splat.geometry.rotations import matrix_to_quaternion
from da3_splat.types import Cameras

MAX_STRETCH = 6.0  # a surface seen at a grazing angle is stretched by no more: its slope is not known better


def tangents(depth: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """How far the surface point moves in the world per pixel in x and in y: two (B,S,H,W,3).

    Of the differences to both neighbours the shorter one counts, so that a jump of depth is no slope.
    """
    points = unproject(depth, cameras)
    return _shorter_difference(points, 3), _shorter_difference(points, 2)


def _shorter_difference(points: Tensor, axis: int) -> Tensor:
    if points.shape[axis] == 1:
        return torch.zeros_like(points)
    step = points.diff(dim=axis)
    first, last = step.narrow(axis, 0, 1), step.narrow(axis, step.shape[axis] - 1, 1)
    forward, backward = torch.cat([step, last], axis), torch.cat([first, step], axis)
    longer = forward.norm(dim=-1, keepdim=True) > backward.norm(dim=-1, keepdim=True)
    return torch.where(longer, backward, forward)


def surface_frames(depth: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """The disc that a pixel covers of its surface: quaternion wxyz (B,S,H,W,4) from its axes to the world, the third
    one along the normal, and how long a pixel is along the first two (B,S,H,W,2).

    The discs' covariance is that of a pixel spread over the tangent plane, so from its own camera each looks round.
    """
    along_x, along_y = tangents(depth, cameras)
    a, b, c = (along_x * along_x).sum(-1), (along_x * along_y).sum(-1), (along_y * along_y).sum(-1)
    angle = 0.5 * torch.atan2(2 * b, a - c)[..., None]
    cos, sin = angle.cos(), angle.sin()
    major, minor = cos * along_x + sin * along_y, cos * along_y - sin * along_x
    longest, shortest = major.norm(dim=-1, keepdim=True), minor.norm(dim=-1, keepdim=True)
    first = major / longest.clamp_min(1e-30)
    second = minor - (first * minor).sum(dim=-1, keepdim=True) * first
    second = second / second.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    frame = torch.stack([first, second, torch.linalg.cross(first, second, dim=-1)], dim=-1)
    pixel = pixel_widths(depth, cameras)[..., None]
    flat = (shortest > 1e-3 * pixel) & (pixel > 0)  # else the camera's own axes
    upright = cameras.camera_to_world[:, :, None, None, :3, :3].expand_as(frame)
    frame = torch.where(flat[..., None], frame, upright)
    sizes = torch.where(flat, torch.cat([longest, shortest], dim=-1), pixel)
    return matrix_to_quaternion(frame), torch.minimum(sizes, MAX_STRETCH * pixel)


def in_pieces(function: Callable[..., Tensor], *maps: Tensor, views: int = 8) -> Tensor:
    """`function` of maps (B,S,...), each view's answer its own, taken a few views at a time: (B,S,...)."""
    parts = [function(*few) for few in zip(*(values.split(views, dim=1) for values in maps))]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def pixel_widths(depth: Tensor, cameras: Cameras) -> Tensor:
    """How wide a pixel is at its depth, across the viewing axis (B,S,H,W)."""
    cameras = cameras.resized(*depth.shape[-2:])
    per_pixel = (1 / cameras.intrinsics.diagonal(dim1=-2, dim2=-1)[..., :2]).mean(dim=-1)
    return depth * per_pixel[..., None, None]


def pixel_areas(depth: Tensor, cameras: Cameras) -> Tensor:
    """Area (B,S,H,W) of the surface that each pixel covers: small where a view sees sharply."""
    along_x, along_y = tangents(depth, cameras)
    return torch.linalg.cross(along_x, along_y, dim=-1).norm(dim=-1)


def steep(depth: Tensor, limit: float) -> Tensor:
    """(B,S,H,W) bool: pixels beside which depth changes by a factor of more than exp(limit) in x or y."""
    log_depth, found = depth.clamp_min(1e-12).log(), torch.zeros_like(depth, dtype=torch.bool)
    for axis in (2, 3):
        jump = log_depth.diff(dim=axis).abs() > limit
        shape = list(depth.shape)
        shape[axis] = 1
        none = found.new_zeros(shape)
        found |= torch.cat([jump, none], axis) | torch.cat([none, jump], axis)
    return found
