"""Depth maps on disk as Nerfstudio keeps them: NumPy arrays, or 16-bit pictures in a unit of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from da3_splat.io.transforms_json import inside, json_number, load_json


def read_depth(path: str | Path, unit: float = 1.0) -> Tensor:
    """z-depth (H,W) float32, 0 where there is none. Integer pictures are multiplied by `unit`.

    ValueError names a file that is neither .npy nor 16-bit .png.
    """
    path = Path(path)
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as picture:
                values = np.asarray(picture)
            if values.dtype not in (np.uint16, np.int32):
                raise ValueError("expected 16 bits a pixel")
            values = values * unit
        values = np.asarray(values, dtype=np.float32)
        if values.ndim != 2:
            raise ValueError(f"expected (H,W), got shape {values.shape}")
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: not a readable depth map ({error})") from error
    return torch.from_numpy(np.where(np.isfinite(values) & (values > 0), values, 0))


def depth_files(transforms: str | Path) -> list[tuple[Path, float] | None]:
    """The `depth_file_path` of each frame of a transforms.json and its unit, in the order of the file; Nerfstudio's
    integer maps are in thousandths unless `depth_unit_scale_factor` says otherwise."""
    transforms = Path(transforms)
    content = load_json(transforms)
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list):
        raise ValueError(f"{transforms}: no list of frames")
    unit = json_number(content.get("depth_unit_scale_factor", 1e-3), f"{transforms}: depth_unit_scale_factor")
    files = []
    for frame in content["frames"]:
        name = frame.get("depth_file_path")
        files.append(None if name is None else (inside(transforms.parent, name, str(transforms)), unit))
    return files
