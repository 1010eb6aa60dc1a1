"""Depth maps and cameras as one compressed NumPy archive."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from da3_splat.io.files import replacing
from da3_splat.types import Cameras, Geometry


def save_geometry(geometry: Geometry, path: str | Path) -> None:
    """depth, confidence, sky (S,H,W), world_to_camera (S,4,4) and intrinsics (S,3,3) of one scene, float32."""
    arrays = {"depth": geometry.depth[0]}
    for name in ("confidence", "sky"):
        if getattr(geometry, name) is not None:
            arrays[name] = getattr(geometry, name)[0]
    if geometry.cameras is not None:
        arrays["world_to_camera"] = geometry.cameras.world_to_camera[0]
        arrays["intrinsics"] = geometry.cameras.intrinsics[0]
    with replacing(path) as beside:
        np.savez_compressed(beside, **{name: value.detach().cpu().float().numpy() for name, value in arrays.items()})


def load_geometry(path: str | Path) -> Geometry:
    """What `save_geometry` wrote, as batch size 1. A pickle inside is refused."""
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
        return Geometry(depth=depth, confidence=arrays.get("confidence"), sky=arrays.get("sky"), cameras=cameras)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (KeyError, ValueError, OSError, EOFError, IndexError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a geometry of da3_splat ({error})") from error
