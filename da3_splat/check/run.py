"""All checks of `da3-splat check`: each gives a figure that must not exceed its limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from da3_splat.check.parity import TOLERANCE, read_cases, run_cases
from da3_splat.geometry.poses import cameras_from_rays, intrinsics_matrix
from da3_splat.geometry.projection import rays_from_cameras
from da3_splat.geometry.rotations import quaternion_to_matrix, rotation_angle
from da3_splat.rendering import render
from da3_splat.types import Cameras, Gaussians

NETWORKS = ("mini", "da3-small", "da3-base")
_INSTALLED, _CLONED = Path(__file__).parent / "goldens", Path(__file__).parents[2] / "tests" / "data" / "goldens"


@dataclass(frozen=True)
class Check:
    """`figure` (in `unit`) of what was compared; it passes up to `limit`."""

    name: str
    figure: float
    unit: str
    limit: float

    @property
    def passed(self) -> bool:
        return self.figure <= self.limit


def run_checks() -> Iterator[Check]:
    """Network parity (mini, small, base), the CPU rasterizer against the oracle, cameras recovered from rays."""
    goldens = _INSTALLED if _INSTALLED.is_dir() else _CLONED
    cases = [case for case in read_cases(goldens) if case.config in NETWORKS]
    for case, errors in run_cases(cases):
        against = "recorded by this project" if case.config == "mini" else "official network"
        yield Check(f"{case.name} against {against}", max(errors.values()), "relative L2", TOLERANCE)
    yield from _rendering()
    yield from _rays()


def _posed(views: int, height: int, width: int, seed: int) -> Cameras:
    """Cameras that look at the origin from about 4 away, principal points off by up to a fifth of the half size."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.rand(views, 10, generator=generator, dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64).repeat(1, views, 1, 1)
    pose[0, :, :3, :3] = quaternion_to_matrix(torch.tensor([1.0, 0, 0, 0]) + 0.3 * random[:, :4])
    pose[0, :, :3, 3] = torch.tensor([0.0, 0.0, 4.0]) + 0.4 * (random[:, 4:7] - 0.5)
    focal = width * (0.8 + 0.4 * random[:, 7])
    off = 1 + 0.2 * (2 * random[:, 8:] - 1)
    intrinsics = intrinsics_matrix(focal, 1.05 * focal, off[:, 0] * width / 2, off[:, 1] * height / 2)
    return Cameras(world_to_camera=pose, intrinsics=intrinsics[None], height=height, width=width)


def _rendering() -> Iterator[Check]:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(1, 150, 32, generator=generator, dtype=torch.float64)
    exact = Gaussians(
        means=normal[..., :3],
        quats=normal[..., 3:7],
        scales=0.15 * normal[..., 7:10].exp(),
        opacities=normal[..., 10].sigmoid(),
        sh=0.5 * normal[..., 11:23].unflatten(-1, (4, 3)),
    )
    cameras = _posed(2, 37, 50, seed=1)
    pictures, gradients = [], []
    for backend, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
        means = exact.means.to(dtype).clone().requires_grad_()
        rendering = render(replace(exact.to(dtype), means=means), cameras.to(dtype), backend=backend)
        (rendering.color.square().sum() + rendering.depth.sum()).backward()
        pictures.append(rendering.color.detach().double())
        assert means.grad is not None, "backward has filled it"
        gradients.append(means.grad.double())
    difference = (pictures[0] - pictures[1]).abs().max()
    yield Check("cpu rasterizer, colour against oracle", float(difference), "maximum difference", 1e-5)
    error = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    yield Check("cpu rasterizer, gradient against oracle", float(error), "relative L2", 1e-4)


def _rays() -> Iterator[Check]:
    cameras = _posed(4, 280, 504, seed=2)
    rays = rays_from_cameras(cameras, 24, 32)
    for share, limit in ((0.0, 0.01), (0.15, 0.1)):
        generator = torch.Generator().manual_seed(3)
        bad = torch.rand(rays.directions.shape[:-1], generator=generator) < share
        noise = torch.randn(rays.directions.shape, generator=generator, dtype=torch.float64)
        found = cameras_from_rays(
            replace(rays, directions=torch.where(bad[..., None], noise, rays.directions)), 280, 504
        )
        angle = rotation_angle(found.world_to_camera[..., :3, :3], cameras.world_to_camera[..., :3, :3])
        yield Check(f"cameras from rays, {share:.0%} outliers", float(torch.rad2deg(angle).max()), "degrees", limit)
