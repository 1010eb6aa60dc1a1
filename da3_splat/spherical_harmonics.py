"""Real spherical harmonics in gsplat's order and signs, degree 0 to 4: evaluate and rotate."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

DC = 0.28209479177387814  # the constant basis function


def sh_basis(directions: Tensor, degree: int) -> Tensor:
    """Basis values (...,K), K = (degree + 1)^2, at unit directions (...,3)."""
    if not 0 <= degree <= 4:
        raise ValueError(f"sh degree: expected 0 to 4, got {degree}")
    x, y, z = torch.unbind(directions, dim=-1)
    basis = [torch.full_like(x, DC)]
    if degree >= 1:
        basis += [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        basis += [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (2 * zz - xx - yy),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
        ]
    if degree >= 3:
        basis += [
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (4 * zz - xx - yy),
            0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
            -0.4570457994644658 * x * (4 * zz - xx - yy),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ]
    if degree >= 4:
        basis += [
            2.5033429417967046 * x * y * (xx - yy),
            -1.7701307697799304 * y * z * (3 * xx - yy),
            0.9461746957575601 * x * y * (7 * zz - 1),
            -0.6690465435572892 * y * z * (7 * zz - 3),
            0.10578554691520431 * (zz * (35 * zz - 30) + 3),
            -0.6690465435572892 * x * z * (7 * zz - 3),
            0.47308734787878004 * (xx - yy) * (7 * zz - 1),
            -1.7701307697799304 * x * z * (xx - 3 * yy),
            0.6258357354491761 * (xx * (xx - 3 * yy) - yy * (3 * xx - yy)),
        ]
    return torch.stack(basis, dim=-1)


def evaluate_sh(sh: Tensor, directions: Tensor) -> Tensor:
    """Values (...,C) of coefficients (...,K,C) at unit directions (...,3)."""
    degree = int(sh.shape[-2] ** 0.5) - 1
    return (sh_basis(directions, degree)[..., None] * sh).sum(dim=-2)


def rotate_sh(sh: Tensor, rotation: Tensor) -> Tensor:
    """Coefficients (...,K,C) of the same function turned by rotation (...,3,3): f'(R d) = f(d).

    A rotation mixes the bases of one degree only; each block is solved exactly from the basis at fixed directions.
    """
    degree = int(sh.shape[-2] ** 0.5) - 1
    if degree == 0:
        return sh
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(64, 3, generator=generator, dtype=torch.float64), dim=-1)
    directions = directions.to(sh.device)
    turned_back = directions @ rotation.double()  # R^T d
    still, turned = sh_basis(directions, degree), sh_basis(turned_back, degree)
    blocks = [sh[..., :1, :]]
    for band in range(1, degree + 1):
        part = slice(band * band, (band + 1) ** 2)
        mixing = torch.linalg.pinv(still[:, part]) @ turned[..., part]
        blocks.append(mixing.to(sh.dtype) @ sh[..., part, :])
    return torch.cat(blocks, dim=-2)


def rgb_to_dc(rgb: Tensor) -> Tensor:
    """Degree-0 coefficient of a colour in [0,1] (rendering adds 0.5)."""
    return (rgb - 0.5) / DC


def dc_to_rgb(dc: Tensor) -> Tensor:
    """The colour that a degree-0 coefficient shows."""
    return dc * DC + 0.5


def colors_from(means: Tensor, sh: Tensor, eye: Tensor | None) -> Tensor:
    """Colours (N,3), not clamped, of Gaussians at means (N,3) with coefficients (N,K,3), seen from `eye` (3); those of
    degree 0 where there is no eye."""
    if eye is None:
        return dc_to_rgb(sh[:, 0])
    return evaluate_sh(sh, normalize(means - eye.to(means), dim=-1)) + 0.5
