"""A picture of a capture before it is read: its file, and what is known of its camera."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from da3_splat.limits import COORDINATE, FOCAL_SHARES, SIDE
from da3_splat.types import Cameras

PictureFile = Path | zipfile.Path
PINHOLE_MODELS = ("SIMPLE_PINHOLE", "PINHOLE")


@dataclass(frozen=True)
class Lens:
    """A camera with distortion in COLMAP's words: the name of a camera model and its parameters in COLMAP's order."""

    model: str
    params: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One picture of a capture. What is None is not known.

    height, width: size in pixels of the picture that the camera was calibrated on (the stored one may be smaller).
    world_to_camera (4,4) and intrinsics (3,3) are float64; `lens` says how the stored picture is distorted, None for
    a pinhole. `mask` is a picture of the same view whose black pixels are not part of the scene. `picture` holds the
    pixels of a frame that is no file of its own (a video's).
    """

    path: PictureFile
    height: int | None = None
    width: int | None = None
    world_to_camera: Tensor | None = None
    intrinsics: Tensor | None = None
    lens: Lens | None = None
    mask: PictureFile | None = None
    picture: Image.Image | None = None
    label: str | None = None

    @property
    def pose(self) -> Tensor:
        """`world_to_camera`; ValueError where it is not known."""
        if self.world_to_camera is None:
            raise ValueError(f"{self.path}: has no camera, where a posed picture is needed")
        return self.world_to_camera

    @property
    def camera(self) -> Cameras:
        """Its camera (1,1) float64 without the lens; ValueError where it is not known."""
        pose = self.pose
        if self.intrinsics is None or self.height is None or self.width is None:
            raise ValueError(f"{self.path}: has a pose, but its intrinsics and size are not known")
        return Cameras(
            world_to_camera=pose[None, None],
            intrinsics=self.intrinsics[None, None],
            height=self.height,
            width=self.width,
        )

    @property
    def name(self) -> str:
        """What the view is called: its label, else the name of its file."""
        return self.label or self.path.name


def poses_of(frames: Sequence[Frame]) -> Cameras:
    """The poses of frames as cameras (1,V) of no particular lens; ValueError where one has none."""
    poses = torch.stack([frame.pose for frame in frames])[None]
    intrinsics = torch.eye(3, dtype=poses.dtype).expand(1, len(frames), 3, 3)
    return Cameras(world_to_camera=poses, intrinsics=intrinsics, height=1, width=1)


def check_camera(world_to_camera: Tensor, intrinsics: Tensor, height: int, width: int, where: str) -> None:
    """ValueError where a camera (4,4), (3,3) of a height x width picture is none that anybody could compute with."""
    if not 0 < min(height, width) <= max(height, width) <= SIDE:
        raise ValueError(f"{where}: a picture of {width}x{height} pixels; expected sides of 1 to {SIDE}")
    if not bool(world_to_camera.isfinite().all() & intrinsics.isfinite().all()):
        raise ValueError(f"{where}: its camera is not finite")
    if float(world_to_camera[:3, 3].abs().max()) > COORDINATE:
        raise ValueError(f"{where}: its camera is further than {COORDINATE:.0e} from the origin")
    low, high = (share * max(height, width) for share in FOCAL_SHARES)
    if not low <= float(intrinsics[0, 0]) <= high or not low <= float(intrinsics[1, 1]) <= high:
        found = f"{float(intrinsics[0, 0]):g}, {float(intrinsics[1, 1]):g}"
        raise ValueError(f"{where}: a focal length of {found} pixels; expected {low:g} to {high:g}")
    if float(intrinsics[:2, 2].abs().max()) > high:
        raise ValueError(f"{where}: its principal point is {high:g} pixels away from the picture, or more")
