"""A picture of a capture before it is read: its file, and what is known of its camera."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

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
    def name(self) -> str:
        """What the view is called: its label, else the name of its file."""
        return self.label or self.path.name
