"""A stand-in for the network on synthetic sequences: true geometry with errors that add up along the views it is
given, so that what aligns chunks and closes loops can be measured apart from any weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from da3_splat.backbone.network import Features
from da3_splat.data.disturbance import Disturbance, disturb
from da3_splat.geometry.alignment import Similarity, transform_cameras, umeyama
from da3_splat.geometry.rotations import quaternion_to_matrix
from da3_splat.geometry.user_frame import camera_similarity
from da3_splat.types import Cameras, Geometry


@dataclass(frozen=True)
class Drift:
    """Standard deviations of what each step from a view to the next is off by: turn in degrees, motion as a share of
    the median depth, and of scale; `growth` is by how much the scale grows at every step, always the same way."""

    rotation: float = 0.1
    translation: float = 0.001
    scale: float = 0.001
    growth: float = 0.0


@dataclass(frozen=True)
class _Shown(Features):
    """Features that only say which views were shown."""

    index: tuple[int, ...] = ()


class SimulatedBackbone(nn.Module):
    """Answers for pictures (1,S,3,H,W) of a known world with its geometry (1,S), drifting from the first view given on,
    disturbed view by view, in a frame and scale of its own. The errors depend on the views given and `seed` alone."""

    predicts_cameras = True

    def __init__(self, images: Tensor, truth: Geometry, drift: Drift, noise: Disturbance, seed: int = 0):
        super().__init__()
        self.register_parameter("place", nn.Parameter(torch.zeros(()), False))  # of the device alone
        self.truth, self.drift, self.noise, self.seed = truth, drift, noise, seed
        self.known = {_mark(image): index for index, image in enumerate(images[0])}

    def encode(self, images: Tensor, cameras: Cameras | None = None, reference_view: str | int = 0) -> _Shown:
        index = tuple(self.known[_mark(image)] for image in images[0])
        nothing = images.new_zeros(1, len(index), 0)
        height, width = images.shape[-2:]
        return _Shown([], nothing, {}, torch.zeros(1, dtype=torch.long), height, width, index=index)

    def decode(self, features: _Shown) -> Geometry:
        seed = self.seed + 7919 * features.index[0] + features.index[-1]
        truth = disturb(self.truth.select(list(features.index)), self.noise, seed)
        generator = torch.Generator().manual_seed(seed)
        geometry = drifted(truth, self.drift, generator)
        turn = quaternion_to_matrix(torch.randn(1, 4, generator=generator))
        scale = torch.exp(0.5 * torch.randn(1, generator=generator))
        cameras = transform_cameras(
            Similarity(scale, turn, torch.randn(1, 3, generator=generator)), geometry.known_cameras
        )
        depth = geometry.depth * scale
        return replace(geometry, depth=depth, cameras=cameras, confidence=torch.ones_like(depth))


def drifted(geometry: Geometry, drift: Drift, generator: torch.Generator) -> Geometry:
    """The geometry (1,S) with every step from a view to the next a little off, depth and steps by a walking scale."""
    poses = geometry.known_cameras.camera_to_world[0].double()
    count = len(poses)
    unit = geometry.depth[geometry.depth > 0].median().double()
    steps = drift.scale * torch.randn(count, generator=generator, dtype=torch.float64) + drift.growth
    scale = torch.exp(steps.cumsum(0))
    angle = torch.deg2rad(drift.rotation * torch.randn(count, 3, generator=generator, dtype=torch.float64))
    shift = drift.translation * unit * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    found = [poses[0]]
    for view in range(1, count):
        step = torch.linalg.inv(poses[view - 1]) @ poses[view]
        error = torch.eye(4, dtype=torch.float64)
        half = torch.cat([torch.ones(1, dtype=torch.float64), angle[view] / 2])
        error[:3, :3] = quaternion_to_matrix(half / half.norm())
        step[:3, 3] = scale[view] * step[:3, 3] + shift[view]
        found.append(found[-1] @ step @ error)
    cameras = replace(geometry.known_cameras, world_to_camera=torch.linalg.inv(torch.stack(found)).float()[None])
    return replace(geometry, depth=geometry.depth * scale.float()[None, :, None, None], cameras=cameras)


def trajectory_error(found: Cameras, true: Cameras) -> float:
    """Root mean square distance of camera positions (1,S) after the best similarity, as a share of the true path."""
    a, b = found.centers[0].double(), true.centers[0].double()
    off = (umeyama(a, b).apply(a) - b).square().sum(dim=-1).mean().sqrt()
    return float(off / b.diff(dim=0).norm(dim=-1).sum())


def end_drift(found: Cameras, true: Cameras, first: int = 10) -> float:
    """How far the last camera (1,S) is from its place where the `first` ones are laid on theirs, as a share of the true
    path."""
    some = slice(0, first)
    laid = camera_similarity(found.select(some), true.select(some)).apply(found.centers)
    off = (laid[0, -1] - true.centers[0, -1]).norm()
    return float(off / true.centers[0].diff(dim=0).norm(dim=-1).sum())


def _mark(image: Tensor) -> bytes:
    """What tells one picture (3,H,W) from another."""
    return image.flatten()[::61].cpu().numpy().tobytes()
