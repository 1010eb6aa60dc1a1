"""Depth maps and cameras as one compressed NumPy archive."""

from __future__ import annotations

import zipfile
from dataclasses import astuple
from pathlib import Path

import numpy as np
import torch

from da3_splat.io.files import replacing
from da3_splat.types import Cameras, Geometry, Window


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
    with replacing(path) as beside:
        np.savez_compressed(
            beside, **{name: (v if name == "windows" else v.float()).numpy() for name, v in arrays.items()}
        )


def load_geometry(path: str | Path) -> tuple[Geometry, tuple[Window, ...]]:
    """What `save_geometry` wrote, as batch size 1, and the windows. A pickle inside is refused."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name])[None] for name in file.files}
        depth = arrays["depth"]
        cameras = Cameras(
            world_to_camera=arrays["world_to_camera"],
            intrinsics=arrays["intrinsics"],
            height=depth.shape[2],
            width=depth.shape[3],
        )
        windows = ()
        if "windows" in arrays:
            windows = tuple(Window(int(h), int(w), *rest) for h, w, *rest in arrays["windows"][0].tolist())
        geometry = Geometry(depth=depth, confidence=arrays.get("confidence"), sky=arrays.get("sky"), cameras=cameras)
        return geometry, windows
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (KeyError, ValueError, TypeError, OSError, EOFError, IndexError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a geometry of da3_splat ({error})") from error
