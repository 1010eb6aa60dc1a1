"""Rotations as matrices and quaternions (wxyz unless a name says otherwise)."""

from __future__ import annotations

import torch
from torch import Tensor


def quaternion_to_matrix(quats: Tensor) -> Tensor:
    """Rotation matrices (...,3,3) of quaternions (...,4) wxyz of any non-zero length."""
    w, x, y, z = torch.unbind(quats, dim=-1)
    scale = 2.0 / (quats * quats).sum(dim=-1)
    rows = [
        1 - scale * (y * y + z * z),
        scale * (x * y - z * w),
        scale * (x * z + y * w),
        scale * (x * y + z * w),
        1 - scale * (x * x + z * z),
        scale * (y * z - x * w),
        scale * (x * z - y * w),
        scale * (y * z + x * w),
        1 - scale * (x * x + y * y),
    ]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def matrix_to_quaternion(matrix: Tensor) -> Tensor:
    """Unit quaternions (...,4) wxyz with w >= 0 of rotation matrices (...,3,3).

    The largest of the four components is computed first (Shepperd's method), so nothing is divided by a small number.
    """
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = torch.unbind(matrix.flatten(-2), dim=-1)
    squares = torch.stack(
        [1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22], dim=-1
    )  # 4 w^2, 4 x^2, 4 y^2, 4 z^2
    by_w = torch.stack([squares[..., 0], m21 - m12, m02 - m20, m10 - m01], dim=-1)
    by_x = torch.stack([m21 - m12, squares[..., 1], m10 + m01, m02 + m20], dim=-1)
    by_y = torch.stack([m02 - m20, m10 + m01, squares[..., 2], m21 + m12], dim=-1)
    by_z = torch.stack([m10 - m01, m20 + m02, m21 + m12, squares[..., 3]], dim=-1)
    candidates = torch.stack([by_w, by_x, by_y, by_z], dim=-2)
    best = squares.argmax(dim=-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    quats = candidates.gather(-2, best).squeeze(-2)
    quats = quats / quats.norm(dim=-1, keepdim=True)
    return torch.where(quats[..., :1] < 0, -quats, quats)


def quaternion_multiply(left: Tensor, right: Tensor) -> Tensor:
    """Hamilton product (...,4) wxyz: the rotation `right` followed by `left`."""
    lw, lx, ly, lz = torch.unbind(left, dim=-1)
    rw, rx, ry, rz = torch.unbind(right, dim=-1)
    product = [
        lw * rw - lx * rx - ly * ry - lz * rz,
        lw * rx + lx * rw + ly * rz - lz * ry,
        lw * ry - lx * rz + ly * rw + lz * rx,
        lw * rz + lx * ry - ly * rx + lz * rw,
    ]
    return torch.stack(product, dim=-1)


def rotation_angle(first: Tensor, second: Tensor) -> Tensor:
    """Angle in radians (...) between rotation matrices (...,3,3), exact for small angles too."""
    relative = first.transpose(-1, -2) @ second
    skew = torch.stack(
        [
            relative[..., 2, 1] - relative[..., 1, 2],
            relative[..., 0, 2] - relative[..., 2, 0],
            relative[..., 1, 0] - relative[..., 0, 1],
        ],
        dim=-1,
    )
    trace = relative.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    return torch.atan2(skew.norm(dim=-1), trace - 1)


def rigid_motion(motion: Tensor) -> Tensor:
    """Matrices (...,4,4) of rotation vectors in radians and translations, (...,6); smooth at zero."""
    x, y, z = motion[..., :3].unbind(dim=-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    top = torch.cat([torch.linalg.matrix_exp(skew), motion[..., 3:, None]], dim=-1)
    bottom = torch.eye(4, device=motion.device, dtype=motion.dtype)[3:].expand(*top.shape[:-2], 1, 4)
    return torch.cat([top, bottom], dim=-2)
