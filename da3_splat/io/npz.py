"""Depth maps and cameras as one compressed NumPy archive."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from da3_splat.io.files import replacing
from da3_splat.types import Geometry


def save_geometry(geometry: Geometry, path: str | Path) -> None:
    """depth, confidence (S,H,W), world_to_camera (S,4,4) and intrinsics (S,3,3) of one scene, float32."""
    arrays = {"depth": geometry.depth[0]}
    if geometry.confidence is not None:
        arrays["confidence"] = geometry.confidence[0]
    if geometry.cameras is not None:
        arrays["world_to_camera"] = geometry.cameras.world_to_camera[0]
        arrays["intrinsics"] = geometry.cameras.intrinsics[0]
    with replacing(path) as beside:
        np.savez_compressed(beside, **{name: value.detach().cpu().float().numpy() for name, value in arrays.items()})
