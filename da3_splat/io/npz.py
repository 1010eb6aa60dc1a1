"""Depth maps and cameras as one compressed NumPy archive."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import torch

from da3_splat.io.arrays import UNREADABLE, open_archive
from da3_splat.io.files import replacing
from da3_splat.io.frames import check_camera
from da3_splat.limits import DEPTH_PIXELS, SIDE, check_pixels, check_views
from da3_splat.types import Cameras, Geometry, Window

KINDS = {"depth": "f4", "confidence": "f4", "sky": "f4", "world_to_camera": "f4", "intrinsics": "f4", "windows": "f8"}


def save_geometry(geometry: Geometry, path: str | Path, windows: tuple[Window, ...] = ()) -> None:
    """depth, confidence, sky (S,H,W), world_to_camera (S,4,4) and intrinsics (S,3,3) of one scene, float32; windows
    (S,6), the fields of each view's `Window`, where the pictures beside it are larger."""
    arrays = {"depth": geometry.depth[0]}
    for name in ("confidence", "sky"):
        if getattr(geometry, name) is not None:
            arrays[name] = getattr(geometry, name)[0]
    if geometry.cameras is not None:
        arrays["world_to_camera"] = geometry.cameras.world_to_camera[0]
        arrays["intrinsics"] = geometry.cameras.intrinsics[0]
    if windows:
        arrays["windows"] = torch.tensor([astuple(window) for window in windows], dtype=torch.float64)
    arrays = {name: value.detach().cpu() for name, value in arrays.items()}
    stored: dict[str, Any] = {name: (v if name == "windows" else v.float()).numpy() for name, v in arrays.items()}
    with replacing(path) as beside:
        np.savez_compressed(beside, **stored)


def load_geometry(path: str | Path) -> tuple[Geometry, tuple[Window, ...]]:
    """What `save_geometry` wrote, as batch size 1, and the windows. A pickle inside is refused."""
    try:
        with open_archive(path) as file:
            arrays = {name: _numbers(name, file[name])[None] for name in KINDS if name in file}
        depth = arrays["depth"]
        check_views(depth.shape[1], "depth")
        check_pixels(depth.shape[2], depth.shape[3], "depth", DEPTH_PIXELS)
        cameras = Cameras(
            world_to_camera=arrays["world_to_camera"],
            intrinsics=arrays["intrinsics"],
            height=depth.shape[2],
            width=depth.shape[3],
        )
        for pose, intrinsics in zip(cameras.world_to_camera[0], cameras.intrinsics[0]):
            check_camera(pose, intrinsics, cameras.height, cameras.width, "cameras")
        windows: tuple[Window, ...] = tuple(map(_window, arrays["windows"][0].tolist())) if "windows" in arrays else ()
        geometry = Geometry(depth=depth, confidence=arrays.get("confidence"), sky=arrays.get("sky"), cameras=cameras)
        return geometry, windows
    except UNREADABLE as error:
        raise ValueError(f"{path}: not a geometry of da3_splat ({error})") from error


def _numbers(name: str, values: np.ndarray) -> torch.Tensor:
    """An array as float32, windows as float64, whatever kind of number it was."""
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{name}: expected numbers, got {values.dtype}")
    with np.errstate(over="ignore"):
        return torch.from_numpy(values.astype(KINDS[name]))


def _window(values: list[float]) -> Window:
    """A row of `windows`; ValueError where it does not lie in its picture."""
    height, width, top, left, tall, wide = values
    sizes = 1 <= height <= SIDE and 1 <= width <= SIDE and tall > 0 and wide > 0 and top >= 0 and left >= 0
    if not sizes or top + tall > height * (1 + 1e-6) or left + wide > width * (1 + 1e-6):
        raise ValueError(f"windows: expected part of a picture, got {values}")
    return Window(int(height), int(width), top, left, tall, wide)
