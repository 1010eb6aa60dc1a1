"""Depth maps on disk: NumPy arrays, 16-bit pictures in a unit of their own, Sintel's .dpt, .pfm, and bare floats."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from da3_splat.io.arrays import read_array
from da3_splat.io.images import FORMATS, UNREADABLE
from da3_splat.io.json_files import json_number, load_json
from da3_splat.limits import DEPTH_PIXELS, check_pixels, inside, regular_file

SINTEL_TAG = np.float32(202021.25)  # the first four bytes of Sintel's binary files


def read_depth(path: str | Path, unit: float = 1.0) -> Tensor:
    """z-depth (H,W) float32, 0 where there is none, of a .npy (H,W) or (H,W,1), a .dpt, a .pfm or a 16-bit .png, whose
    integers are multiplied by `unit`. ValueError names a file that is none of them."""
    path = Path(path)
    read = {".npy": _read_numpy, ".dpt": _read_sintel, ".pfm": _read_pfm}.get(path.suffix)
    try:
        values = read_integers(path) * unit if read is None else read(path)
        return _known(np.asarray(values, dtype=np.float32))
    except UNREADABLE as error:
        raise ValueError(f"{path}: not a readable depth map ({error})") from error


def read_integers(path: Path) -> np.ndarray:
    """What a 16-bit grey picture (H,W) holds, before any unit."""
    try:
        with Image.open(regular_file(path), formats=FORMATS) as picture:
            check_pixels(picture.height, picture.width, "it has", DEPTH_PIXELS)
            values = np.asarray(picture)
    except UNREADABLE as error:
        raise ValueError(f"{path}: not a readable depth map ({error})") from error
    if values.dtype not in (np.uint16, np.int32):
        raise ValueError(f"{path}: expected 16 bits a pixel")
    return values


def read_raw_depth(path: Path, height: int, width: int) -> Tensor:
    """z-depth (height, width) float32 of a file that is nothing but little-endian float32, row by row (ETH3D's)."""
    check_pixels(height, width, str(path), DEPTH_PIXELS)
    regular_file(path, most=4 * DEPTH_PIXELS)
    values = np.fromfile(path, "<f4")
    if len(values) != height * width:
        raise ValueError(f"{path}: expected {height}x{width} float32 numbers, got {len(values)}")
    return _known(values.reshape(height, width).astype(np.float32))


def _known(values: np.ndarray) -> Tensor:
    if values.ndim != 2:
        raise ValueError(f"expected (H,W), got shape {values.shape}")
    check_pixels(values.shape[0], values.shape[1], "it has", DEPTH_PIXELS)
    return torch.from_numpy(np.where(np.isfinite(values) & (values > 0), values, 0))


def _read_numpy(path: Path) -> np.ndarray:
    values = read_array(path)
    if values.dtype.kind not in "fiu":
        raise ValueError(f"expected numbers, got {values.dtype}")
    return values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values


def _read_sintel(path: Path) -> np.ndarray:
    """A tag, width and height as int32, then float32 row by row."""
    data = regular_file(path, most=4 * DEPTH_PIXELS + 12).read_bytes()
    if len(data) < 12 or np.frombuffer(data, "<f4", 1)[0] != SINTEL_TAG:
        raise ValueError("not one of Sintel's depth files")
    width, height = np.frombuffer(data, "<i4", 2, offset=4).tolist()
    if min(width, height) < 1 or len(data) != 12 + 4 * width * height:
        raise ValueError(f"says {width}x{height} pixels, but has {len(data)} bytes")
    return np.frombuffer(data, "<f4", offset=12).reshape(height, width)


def _read_pfm(path: Path) -> np.ndarray:
    """`Pf`, width and height, a scale whose sign says the order of bytes, then float32 from the bottom row up."""
    data = regular_file(path, most=4 * DEPTH_PIXELS + 200).read_bytes()
    found = re.match(rb"Pf\s+(\d{1,6})\s+(\d{1,6})\s+(-?\d{1,20}(?:\.\d{0,20})?)\s", data[:200])
    if found is None:
        raise ValueError("expected the header of a grey .pfm")
    width, height, scale = int(found[1]), int(found[2]), float(found[3])
    if scale == 0 or len(data) != found.end() + 4 * width * height:
        raise ValueError(f"says {width}x{height} pixels and a scale of {scale:g}, but has {len(data)} bytes")
    values = np.frombuffer(data, "<f4" if scale < 0 else ">f4", offset=found.end())
    return values.reshape(height, width)[::-1] * np.float32(abs(scale))


def depth_files(transforms: str | Path) -> list[tuple[Path, float] | None]:
    """The `depth_file_path` of each frame of a transforms.json and its unit, in the order of the file; Nerfstudio's
    integer maps are in thousandths unless `depth_unit_scale_factor` says otherwise."""
    transforms = Path(transforms)
    content = load_json(transforms)
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list):
        raise ValueError(f"{transforms}: no list of frames")
    unit = json_number(content.get("depth_unit_scale_factor", 1e-3), f"{transforms}: depth_unit_scale_factor")
    files = []
    for number, frame in enumerate(content["frames"]):
        name = frame.get("depth_file_path") if isinstance(frame, dict) else frame
        if name is not None and not isinstance(name, str):
            raise ValueError(f"{transforms}: frame {number}: depth_file_path: expected a file name, got {name!r:.80}")
        files.append(None if name is None else (inside(transforms.parent, name, str(transforms)), unit))
    return files
