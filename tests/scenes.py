"""Random Gaussians and cameras for tests: never square, never centred, never aligned with an axis."""

import torch

from da3_splat.geometry.poses import intrinsics_matrix
from da3_splat.geometry.rotations import quaternion_to_matrix
from da3_splat.types import Cameras, Gaussians


def random_cameras(batch=1, views=2, height=37, width=50, seed=0, dtype=torch.float32) -> Cameras:
    """Cameras some 4 units from the origin that look at it, off-centre principal points."""
    generator = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    rotation = quaternion_to_matrix(torch.tensor([1.0, 0, 0, 0], dtype=torch.float64) + 0.3 * random(batch, views, 4))
    world_to_camera = torch.eye(4, dtype=torch.float64).repeat(batch, views, 1, 1)
    world_to_camera[..., :3, :3] = rotation
    world_to_camera[..., :3, 3] = torch.tensor([0.0, 0.0, 4.0]) + 0.4 * (random(batch, views, 3) - 0.5)
    focal = width * (0.9 + 0.3 * random(batch, views))
    intrinsics = intrinsics_matrix(
        focal, focal * 1.07, width * (0.4 + 0.2 * random(batch, views)), height * (0.4 + 0.2 * random(batch, views))
    )
    return Cameras(
        world_to_camera=world_to_camera.to(dtype), intrinsics=intrinsics.to(dtype), height=height, width=width
    )


def random_gaussians(batch=1, count=60, degree=1, seed=0, dtype=torch.float32, size=0.15) -> Gaussians:
    """Gaussians around the origin: some behind the cameras and across the near plane, some huge, some below a pixel."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    means = normal(batch, count, 3)
    means[:, ::11, 2] -= 4.0
    scales = size * torch.exp(0.7 * normal(batch, count, 3))
    scales[:, 3::17] *= 12
    scales[:, 5::17] *= 0.01
    opacities = torch.sigmoid(2 * normal(batch, count))
    opacities[:, ::7] = 0.9999
    opacities[:, 1::13] = 0.002
    return Gaussians(
        means=means.to(dtype),
        quats=(normal(batch, count, 4) * 2).to(dtype),
        scales=scales.to(dtype),
        opacities=opacities.to(dtype),
        sh=(0.5 * normal(batch, count, (degree + 1) ** 2, 3)).to(dtype),
    )
