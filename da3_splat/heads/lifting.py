"""Raw maps of the pixel head -> Gaussians in the world: every activation and every frame change of the head is here.

A raw pixel (R = 11 + 3 K) is: offset in the picture 2, scale 3, quaternion 4, SH 3 K (all of red, green, blue), depth
offset 1, opacity 1. Two sets of rules read it: `lift` (ours: exact, unprojection is point = origin + depth * direction)
and `lift_released` (what the released Giant weights were trained with).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from da3_splat.geometry.alignment import umeyama
from da3_splat.geometry.projection import inverse_intrinsics, pixel_grid
from da3_splat.geometry.rotations import matrix_to_quaternion, quaternion_multiply, quaternion_to_matrix
from da3_splat.geometry.surfaces import pixel_widths, surface_frames
from da3_splat.spherical_harmonics import rgb_to_dc, rotate_sh
from da3_splat.types import Cameras, Gaussians, Geometry

FOOTPRINT = 0.4  # standard deviation of an untrained head's Gaussian along the surface, in pixels
THICKNESS = 0.04  # and across it
START_OPACITY = 2.5  # logit of an untrained head's opacity
RELEASED_SCALES = (1e-5, 30.0)


def raw_channels(sh_degree: int) -> int:
    return 11 + 3 * (sh_degree + 1) ** 2


def lift(raw: Tensor, images: Tensor, geometry: Geometry, rays: str = "cameras") -> Gaussians:
    """Gaussians (B,S*H*W) of raw maps (B,S,H,W,R) by our rules; raw = 0 is naive lifting of the pictures (B,S,3,H,W).

    The mean lies on the ray through the pixel, moved by at most a pixel, at depth * exp(raw / 10): on the ray of the
    camera, or with `rays="predicted"` on that of `geometry.ray_map`, upsampled, with the origin it has there. Sizes and
    turn are relative to the disc that the pixel covers of its surface (see geometry/surfaces.py); colour is the pixel's
    plus a correction, opacity starts at 0.92.
    """
    if rays not in ("cameras", "predicted"):
        raise ValueError(f"rays: expected cameras or predicted, got {rays!r}")
    cameras = geometry.known_cameras
    batch, views, height, width, _ = raw.shape
    offset, scale, turn, sh, depth_offset, opacity = raw.float().split([2, 3, 4, raw.shape[-1] - 11, 1, 1], dim=-1)
    stretch = torch.exp(0.1 * depth_offset.clamp(-10, 10))
    depth = geometry.depth[..., None] * stretch
    if rays == "predicted":
        means = _on_predicted_rays(depth, offset.tanh(), geometry)
    else:
        means = _unproject_with_offset(depth, offset.tanh(), cameras)
    frames, lengths = surface_frames(geometry.depth.float(), cameras.resized(height, width))
    thickness = THICKNESS * pixel_widths(geometry.depth, cameras)[..., None]
    scales = torch.cat([FOOTPRINT * lengths, thickness], dim=-1) * stretch * torch.exp(scale.clamp(-4, 4))
    quats = quaternion_multiply(frames, normalize(turn + turn.new_tensor([1.0, 0, 0, 0]), dim=-1))
    sh = sh.unflatten(-1, (3, -1)).transpose(-1, -2) * _band_damping(sh.shape[-1] // 3, like=sh)[:, None]
    pixel_color = rgb_to_dc(images.float()).permute(0, 1, 3, 4, 2)[..., None, :]
    sh = torch.cat([sh[..., :1, :] + pixel_color, sh[..., 1:, :]], dim=-2)
    sh = rotate_sh(sh, cameras.camera_to_world[:, :, None, None, :3, :3].float())
    view = torch.arange(views, device=raw.device)[None, :, None, None].expand(batch, views, height, width)
    return Gaussians(
        means=means.flatten(1, 3),
        quats=quats.flatten(1, 3),
        scales=scales.flatten(1, 3),
        opacities=torch.sigmoid(opacity + START_OPACITY).flatten(1),
        sh=sh.flatten(1, 3),
        confidence=None if geometry.confidence is None else geometry.confidence.flatten(1),
        source_view=view.flatten(1),
    )


def _unproject_with_offset(depth: Tensor, offset: Tensor, cameras: Cameras) -> Tensor:
    """World points (B,S,H,W,3) of pixels moved by `offset` (B,S,H,W,2) at depth (B,S,H,W,1)."""
    height, width = depth.shape[2:4]
    cameras = cameras.resized(height, width)
    pixels = pixel_grid(height, width, depth)
    pixels = torch.cat([pixels[..., :2] + offset, pixels[..., 2:].expand(*offset.shape[:-1], 1)], dim=-1)
    camera_to_world = cameras.camera_to_world
    matrix = camera_to_world[..., :3, :3] @ inverse_intrinsics(cameras.intrinsics)
    return torch.einsum("bsij,bshwj->bshwi", matrix, pixels) * depth + camera_to_world[:, :, None, None, :3, 3]


def _on_predicted_rays(depth: Tensor, offset: Tensor, geometry: Geometry) -> Tensor:
    """World points (B,S,H,W,3) origin + depth * direction of the network's own rays at pixels moved by `offset`.

    Rays change linearly over a picture, so bilinear interpolation between those of the smaller map is exact for a
    pinhole camera, and so is continuing their slope beyond the outermost ones.
    """
    if geometry.ray_map is None:
        raise ValueError("lift: rays='predicted' needs geometry.ray_map; run the network with rays=True")
    batch, views, height, width, _ = depth.shape
    rays = torch.cat([geometry.ray_map.directions, geometry.ray_map.origins], dim=-1).flatten(0, 1).float()
    rows, columns = rays.shape[1:3]
    pixels = pixel_grid(height, width, depth)[..., :2] + offset
    x = (pixels[..., 0] / width * columns - 0.5).flatten(0, 1)
    y = (pixels[..., 1] / height * rows - 0.5).flatten(0, 1)
    left, top = x.floor().clamp(0, max(0, columns - 2)).long(), y.floor().clamp(0, max(0, rows - 2)).long()
    right, bottom = (left + 1).clamp_max(columns - 1), (top + 1).clamp_max(rows - 1)
    item = torch.arange(batch * views, device=depth.device)[:, None, None]
    u, v = (x - left)[..., None], (y - top)[..., None]
    upper = rays[item, top, left] * (1 - u) + rays[item, top, right] * u
    lower = rays[item, bottom, left] * (1 - u) + rays[item, bottom, right] * u
    directions, origins = (upper * (1 - v) + lower * v).unflatten(0, (batch, views)).split(3, dim=-1)
    return origins + depth * directions


def _band_damping(bases: int, like: Tensor) -> Tensor:
    """(K): 1 for the constant, 0.1 / 4^l for degree l, so that view dependence starts small."""
    degree = torch.arange(bases).sqrt().floor()
    return torch.where(degree == 0, 1.0, 0.1 * 0.25**degree).to(like)


def lift_released(raw: Tensor, geometry: Geometry, given: Cameras | None = None) -> Gaussians:
    """Gaussians (B,S*H*W) of raw maps (B,S,H,W,38) by the rules the released Giant weights were trained with.

    They differ from `lift` where the official adapter does: depth multiplies *unit* ray directions, the depth offset is
    added, sizes run to 30 times a tenth of (1/fx + 1/fy), and the quaternion, reordered to wxyz, then passes through
    functions that read xyzw. Poses are the predicted ones; `given` cameras only lend their scale, within [1/3, 3].
    """
    cameras = geometry.known_cameras
    batch, views, height, width, _ = raw.shape
    offset, scale, turn, sh, depth_offset, opacity = raw.float().split([2, 3, 4, raw.shape[-1] - 11, 1, 1], dim=-1)
    camera_to_world = cameras.camera_to_world.clone()
    depth = geometry.depth[..., None] + depth_offset
    if given is not None:
        factor = umeyama(cameras.centers.double(), given.centers.double()).scale.clamp(1 / 3, 3).float()
        camera_to_world[..., :3, 3] *= factor[:, None, None]
        depth = depth * factor[:, None, None, None, None]
    pixels = pixel_grid(height, width, depth)
    pixels = torch.cat([pixels[..., :2] + offset, pixels[..., 2:].expand(*offset.shape[:-1], 1)], dim=-1)
    inverse = inverse_intrinsics(cameras.intrinsics)
    directions = normalize(torch.einsum("bsij,bshwj->bshwi", inverse, pixels), dim=-1)
    directions = torch.einsum("bsij,bshwj->bshwi", camera_to_world[..., :3, :3], directions)
    low, high = RELEASED_SCALES
    spread = 0.1 * (1 / cameras.intrinsics.diagonal(dim1=-2, dim2=-1)[..., :2]).sum(dim=-1)
    sizes = (low + (high - low) * scale.sigmoid()) * depth * spread[:, :, None, None, None]
    turn = turn / (turn.norm(dim=-1, keepdim=True) + 1e-8)
    # The official code calls the four numbers xyzw, makes them wxyz, and reads that as xyzw: so (z, w, x, y) is the
    # wxyz of its rotation matrix; the answer's xyzw is then stored as wxyz.
    turn_wxyz = turn[..., [2, 3, 0, 1]]
    world = camera_to_world[:, :, None, None, :3, :3] @ quaternion_to_matrix(turn_wxyz)
    quats = matrix_to_quaternion(world)[..., [1, 2, 3, 0]]
    sh = sh.unflatten(-1, (3, -1)).transpose(-1, -2) * _band_damping(sh.shape[-1] // 3, like=sh)[:, None]
    sh = rotate_sh(sh, camera_to_world[:, :, None, None, :3, :3])
    view = torch.arange(views, device=raw.device)[None, :, None, None].expand(batch, views, height, width)
    return Gaussians(
        means=(camera_to_world[:, :, None, None, :3, 3] + directions * depth).flatten(1, 3),
        quats=quats.flatten(1, 3),
        scales=sizes.flatten(1, 3),
        opacities=opacity.sigmoid().flatten(1),
        sh=sh.flatten(1, 3),
        confidence=None if geometry.confidence is None else geometry.confidence.flatten(1),
        source_view=view.flatten(1),
    )
