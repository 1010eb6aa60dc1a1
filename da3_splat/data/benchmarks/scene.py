"""What every data set gives: scenes by name, opened when their turn comes; and the rules that its scores follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from da3_splat.io.arrays import read_array
from da3_splat.io.frames import Frame
from da3_splat.io.images import picture_size

Task = Literal["novel-views", "poses", "depth", "reconstruction"]
Judged = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Picture:
    """One picture, and what reads its true z-depth (H,W), 0 where it is not known; None where the set has none."""

    frame: Frame
    depth: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class BenchmarkScene:
    """One scene of a data set. `listing` finds its pictures; `surface` is a PLY of the true mesh or cloud, in the frame
    of the cameras; `judged` leaves of found (P,3) and true points (Q,3) those that the set's protocol counts."""

    name: str
    listing: Callable[[], list[Picture]]
    surface: Path | None = None
    judged: Judged | None = None

    def frames(self) -> list[Frame]:
        """All frames; ValueError where there is none, or where a file that belongs to one is missing or broken."""
        return [picture.frame for picture in _pictures(self)]

    def has_depth(self, index: int) -> bool:
        """Whether there is a file with the depth of a frame, not opened yet."""
        return _pictures(self)[index].depth is not None

    def depth(self, index: int) -> Tensor | None:
        """True z-depth (H,W) float32 of a frame, 0 where it is not known; None where the set has none."""
        read = _pictures(self)[index].depth
        return None if read is None else read()


@lru_cache(maxsize=1)
def _pictures(scene: BenchmarkScene) -> list[Picture]:
    """What the scene's listing finds, of the last scene asked for: frames may hold pixels."""
    found = scene.listing()
    if not found:
        raise ValueError(f"{scene.name}: no picture with what belongs to it")
    return found


@dataclass(frozen=True)
class DepthRules:
    """Which pixels count: true depth within (minimum, maximum] metres, inside `crop` (top, bottom, left, right as
    shares of height and width). Predictions are clamped to the same range. `average`: over all pictures, or of scenes'
    means. `source` says whose rules these are."""

    minimum: float
    maximum: float
    source: str
    crop: tuple[float, float, float, float] | None = None
    average: Literal["pictures", "scenes"] = "pictures"

    def counted(self, truth: Tensor) -> Tensor:
        """The true depth (H,W) with 0 where the rules leave it out."""
        kept = (truth > self.minimum) & (truth <= self.maximum)
        if self.crop is not None:
            height, width = truth.shape
            sides = zip(self.crop, (height, height, width, width))
            top, bottom, left, right = (int(share * side + 1e-6) for share, side in sides)  # as published: rounded down
            inside = torch.zeros_like(kept)
            inside[top:bottom, left:right] = True
            kept &= inside
        return torch.where(kept, truth, 0)


@dataclass(frozen=True)
class ReconstructionRules:
    """How depth maps become a cloud, and clouds a score, in units of the scene: F1 at `threshold`; TSDF fusion with
    cubes of `voxel` and `truncation`, depth beyond `max_depth` left out; both clouds thinned to cubes of `thinned`;
    found points more than `margin` outside the box of the true ones not counted (None: all are); distances of more than
    `cap` counted in no mean (None: all are). fusion "points": every pixel a point, no TSDF."""

    threshold: float
    voxel: float
    truncation: float
    thinned: float
    max_depth: float = float("inf")
    margin: float | None = None
    cap: float | None = None
    fusion: Literal["tsdf", "points"] = "tsdf"


@dataclass(frozen=True)
class Benchmark:
    """A data set: `scenes` finds what lies in a folder, without opening it; `tasks` it can be scored on."""

    scenes: Callable[[Path], list[BenchmarkScene]]
    tasks: tuple[Task, ...]
    depth: DepthRules | None = None
    reconstruction: ReconstructionRules | None = None


def posed_frame(path: Path, world_to_camera: Tensor, intrinsics: Tensor, label: str | None = None) -> Frame:
    """A frame of a pinhole camera calibrated on the stored picture; both matrices float64."""
    height, width = picture_size(path)
    return Frame(
        path=path, height=height, width=width, world_to_camera=world_to_camera, intrinsics=intrinsics, label=label
    )


def single_frame(path: Path, intrinsics: Tensor | None, label: str | None = None) -> Frame:
    """A picture for itself: with known intrinsics its camera is at the origin, without it has none."""
    if intrinsics is None:
        return Frame(path=path, label=label)
    return posed_frame(path, torch.eye(4, dtype=torch.float64), intrinsics, label)


def read_matrix(path: Path, rows: int, columns: int) -> Tensor:
    """A matrix float64 of a text file of numbers, or a .npy; ValueError names the file."""
    try:
        values = read_array(path) if path.suffix == ".npy" else np.loadtxt(path, ndmin=2)
        values = np.asarray(values, np.float64).reshape(rows, columns)
    except (ValueError, OSError, EOFError, TypeError) as error:
        raise ValueError(f"{path}: expected {rows}x{columns} numbers ({error})") from error
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: expected finite numbers")
    return torch.from_numpy(values)


def rigid_inverse(camera_to_world: Tensor, path: Path) -> Tensor:
    """world_to_camera (4,4) of a camera_to_world; ValueError names the file where its rotation is none."""
    rotation = camera_to_world[:3, :3]
    if (rotation @ rotation.T - torch.eye(3, dtype=torch.float64)).abs().max() > 1e-2:
        raise ValueError(f"{path}: its rotation is not a rotation")
    return torch.linalg.inv(camera_to_world)


def folders(path: Path) -> list[Path]:
    """The folders in `path` by name, none where there is no such folder."""
    if not path.is_dir():
        return []
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def first_existing(*paths: Path) -> Path:
    """The first of the paths that there is, else the last: data sets lie a folder deeper in some downloads."""
    return next((path for path in paths if path.exists()), paths[-1])
