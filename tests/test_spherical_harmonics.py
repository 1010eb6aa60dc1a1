import numpy as np
import pytest
import torch

from da3_splat.geometry.rotations import quaternion_to_matrix
from da3_splat.spherical_harmonics import dc_to_rgb, evaluate_sh, rgb_to_dc, rotate_sh, sh_basis


def unit(*shape):
    return torch.nn.functional.normalize(torch.randn(*shape, 3, dtype=torch.float64), dim=-1)


def test_basis_is_orthonormal():
    """The mean of Y_i Y_j over the sphere times 4 pi is 1 or 0; a Fibonacci sphere averages low degrees well."""
    index = torch.arange(20000, dtype=torch.float64) + 0.5
    z = 1 - 2 * index / 20000
    angle = torch.pi * (1 + 5**0.5) * index
    radius = (1 - z * z).sqrt()
    basis = sh_basis(torch.stack([radius * angle.cos(), radius * angle.sin(), z], dim=-1), 4)
    gram = 4 * torch.pi * basis.T @ basis / 20000
    assert torch.allclose(gram, torch.eye(25).double(), atol=1e-3)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_rotation_turns_the_function(degree):
    sh = torch.randn(5, (degree + 1) ** 2, 3, dtype=torch.float64)
    rotation = quaternion_to_matrix(torch.randn(5, 4, dtype=torch.float64))
    directions = unit(5)
    turned = torch.einsum("nij,nj->ni", rotation, directions)
    assert torch.allclose(evaluate_sh(rotate_sh(sh, rotation), turned), evaluate_sh(sh, directions), atol=1e-9)


def test_colours_round_trip():
    rgb = torch.rand(4, 3)
    assert torch.allclose(dc_to_rgb(rgb_to_dc(rgb)), rgb, atol=1e-6)
    with pytest.raises(ValueError, match="0 to 4"):
        sh_basis(unit(2), 5)


def test_rotation_golden(golden_cases):
    g = np.load(golden_cases / "geom_sh_rotate.npz")
    ours = rotate_sh(torch.from_numpy(g["sh"]).transpose(-1, -2), torch.from_numpy(g["R"]))
    assert np.allclose(ours.transpose(-1, -2), g["out"], atol=1e-5)
