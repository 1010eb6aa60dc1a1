"""Cameras as DA3 states them: the 9-number encoding of the camera head, and the ray map."""

from __future__ import annotations

import torch
from torch import Tensor

from da3_splat.geometry.projection import pixel_grid
from da3_splat.geometry.rotations import matrix_to_quaternion, quaternion_to_matrix
from da3_splat.types import Cameras, RayMap


def encode_cameras(cameras: Cameras) -> Tensor:
    """DA3's encoding (B,V,9): camera position, camera-to-world quaternion xyzw (w >= 0), field of view (y, x).

    The principal point is not encoded; the field of view is that of a centred camera of the same focal length.
    """
    camera_to_world = cameras.camera_to_world
    quats = matrix_to_quaternion(camera_to_world[..., :3, :3])
    fov_y = 2 * torch.atan(cameras.height / 2 / cameras.intrinsics[..., 1, 1])
    fov_x = 2 * torch.atan(cameras.width / 2 / cameras.intrinsics[..., 0, 0])
    return torch.cat(
        [camera_to_world[..., :3, 3], quats[..., 1:], quats[..., :1], fov_y[..., None], fov_x[..., None]], dim=-1
    )


def decode_cameras(encoding: Tensor, height: int, width: int) -> Cameras:
    """Cameras of DA3's encoding (B,V,9); the principal point is the image centre."""
    rotation = quaternion_to_matrix(encoding[..., [6, 3, 4, 5]]).transpose(-1, -2)
    translation = -rotation @ encoding[..., :3, None]
    bottom = encoding.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*encoding.shape[:2], 1, 4)
    world_to_camera = torch.cat([torch.cat([rotation, translation], dim=-1), bottom], dim=-2)
    fy = height / 2 / torch.tan(encoding[..., 7] / 2).clamp_min(1e-6)
    fx = width / 2 / torch.tan(encoding[..., 8] / 2).clamp_min(1e-6)
    return Cameras(
        world_to_camera=world_to_camera,
        intrinsics=intrinsics_matrix(fx, fy, torch.full_like(fx, width / 2), torch.full_like(fy, height / 2)),
        height=height,
        width=width,
    )


def intrinsics_matrix(fx: Tensor, fy: Tensor, cx: Tensor, cy: Tensor) -> Tensor:
    """Pinhole matrices (...,3,3) from four tensors (...)."""
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    return torch.stack([fx, zero, cx, zero, fy, cy, zero, zero, one], dim=-1).unflatten(-1, (3, 3))


def cameras_from_rays(rays: RayMap, height: int, width: int, iterations: int = 12) -> Cameras:
    """The cameras (B,S) of height x width pictures whose rays are `rays` (B,S,h,w): pose, focal lengths, centre.

    Directions are d ~ H p with H = R K^-1 (DA3 section 3.1), p the pixel in half-image units. H is the least squares
    solution of (H p) x d = 0, all rays at once, reweighted (Geman-McClure on the angle, with a scale that shrinks to
    the median residual), so that outliers lose their say; it starts from the best of a fixed set of minimal
    solutions. K^-1 is upper triangular, so a QR decomposition of H splits it exactly, whatever the principal point.
    Everything is float64, batched over views and without randomness that is not seeded here.
    """
    batch, views, rows, columns = rays.directions.shape[:4]
    flat = batch * views
    directions = torch.nn.functional.normalize(rays.directions.reshape(flat, -1, 3).double(), dim=-1)
    confidence = torch.ones_like(directions[..., 0])
    if rays.confidence is not None:
        confidence = rays.confidence.reshape(flat, -1).double().clamp_min(0)
    confidence = confidence / confidence.mean(dim=-1, keepdim=True).clamp_min(1e-30)
    grid = pixel_grid(rows, columns, directions)
    pixels = torch.stack([grid[..., 0] * 2 / columns - 1, grid[..., 1] * 2 / rows - 1, grid[..., 2]], dim=-1)
    pixels = pixels.reshape(-1, 3)

    homography = _best_minimal_homography(pixels, directions, confidence)
    floor = 1e-7
    for _ in range(iterations):
        residual = _angles(homography, pixels, directions)
        scale = (1.5 * residual.median(dim=-1, keepdim=True).values).clamp_min(floor)
        weights = confidence / (1 + (residual / scale).square()).square()
        homography = _fit_homography(pixels, directions, weights)
    residual = _angles(homography, pixels, directions)
    inlier = residual <= 6 * residual.median(dim=-1, keepdim=True).values.clamp_min(floor)
    homography = _fit_homography(pixels, directions, confidence * inlier)

    rotation, upper = torch.linalg.qr(homography)
    sign = torch.sign(upper.diagonal(dim1=-2, dim2=-1))
    rotation, upper = rotation * sign[:, None, :], upper * sign[..., None]
    upper = upper / upper[:, 2:, 2:]
    fx, fy = 1 / upper[:, 0, 0], 1 / upper[:, 1, 1]
    cx = -upper[:, 0, 2] * fx  # a skew, if the rays have one, is left out
    cy = -upper[:, 1, 2] * fy
    intrinsics = intrinsics_matrix(fx * width / 2, fy * height / 2, (cx + 1) * width / 2, (cy + 1) * height / 2)

    center = _robust_mean(rays.origins.reshape(flat, -1, 3).double(), confidence)
    world_to_camera = torch.eye(4, dtype=torch.float64, device=center.device).repeat(flat, 1, 1)
    world_to_camera[:, :3, :3] = rotation.transpose(-1, -2)
    world_to_camera[:, :3, 3] = -(rotation.transpose(-1, -2) @ center[..., None])[..., 0]
    dtype = rays.directions.dtype
    return Cameras(
        world_to_camera=world_to_camera.reshape(batch, views, 4, 4).to(dtype),
        intrinsics=intrinsics.reshape(batch, views, 3, 3).to(dtype),
        height=height,
        width=width,
    )


def _fit_homography(pixels: Tensor, directions: Tensor, weights: Tensor) -> Tensor:
    """H (F,3,3) with det > 0 that minimises sum w |(H p) x d|^2, |H| = 1; the 9x9 normal matrix, not the tall one.

    |(H p) x d|^2 = |H p|^2 - (d . H p)^2, so the normal matrix is kron(I, sum w p p^T) - sum w kron(d d^T, p p^T).
    """
    count = directions.shape[0]
    outer_p = (pixels[:, :, None] * pixels[:, None, :]).reshape(-1, 9)
    outer_d = (directions[..., :, None] * directions[..., None, :]).flatten(-2)
    coupled = torch.einsum("fna,nb->fab", outer_d * weights[..., None], outer_p).reshape(count, 3, 3, 3, 3)
    plain = (weights @ outer_p).reshape(count, 3, 3)
    identity = torch.eye(3, dtype=pixels.dtype, device=pixels.device)
    normal = torch.einsum("ij,fkl->fikjl", identity, plain) - coupled.permute(0, 1, 3, 2, 4)
    _, vectors = torch.linalg.eigh(normal.reshape(count, 9, 9))
    homography = vectors[..., 0].reshape(count, 3, 3)
    # Directions point forward along H p: of the two signs of the null vector take the one that most rays agree with.
    agreement = (torch.einsum("fij,nj->fni", homography, pixels) * directions).sum(dim=-1)
    sign = torch.sign((torch.sign(agreement) * weights).sum(dim=-1))
    return homography * torch.where(sign == 0, torch.ones_like(sign), sign)[:, None, None]


def _angles(homography: Tensor, pixels: Tensor, directions: Tensor) -> Tensor:
    """Sine of the angle (F,N) between H p and the ray, 1 and above where they point away from each other."""
    predicted = torch.nn.functional.normalize(torch.einsum("fij,nj->fni", homography, pixels), dim=-1)
    sine = torch.linalg.cross(predicted, directions, dim=-1).norm(dim=-1)
    return torch.where((predicted * directions).sum(dim=-1) > 0, sine, 2 - sine)


def _best_minimal_homography(pixels: Tensor, directions: Tensor, confidence: Tensor, hypotheses: int = 96) -> Tensor:
    """The best (F,3,3) of `hypotheses` fits to 5 rays each, by the truncated angle over a subset of the rays."""
    views, count = directions.shape[:2]
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(count, (hypotheses, 5), generator=generator).to(pixels.device)
    subset = torch.linspace(0, count - 1, min(count, 512), device=pixels.device).long()
    found, scores = [], []
    for pick in picks:
        homography = _fit_homography(pixels[pick], directions[:, pick], confidence[:, pick].clamp_min(1e-6))
        residual = _angles(homography, pixels[subset], directions[:, subset])
        found.append(homography)
        scores.append((residual.clamp_max(0.05) * confidence[:, subset]).sum(dim=-1))
    best = torch.stack(scores).argmin(dim=0)
    return torch.stack(found)[best, torch.arange(views, device=pixels.device)]


def _robust_mean(values: Tensor, weights: Tensor, iterations: int = 10) -> Tensor:
    """Weighted mean (F,3) of (F,N,3) that starts at the median and down-weights what lies far from it."""
    mean = values.median(dim=1).values
    for _ in range(iterations):
        distance = (values - mean[:, None]).norm(dim=-1)
        scale = (1.5 * distance.median(dim=-1, keepdim=True).values).clamp_min(1e-12)
        robust = weights / (1 + (distance / scale).square()).square()
        mean = (robust[..., None] * values).sum(dim=1) / robust.sum(dim=1, keepdim=True).clamp_min(1e-30)
    return mean
