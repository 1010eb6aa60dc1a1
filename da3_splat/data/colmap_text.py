"""COLMAP's text files as MegaDepth ships them, read line by line: cameras.txt, images.txt, points3D.txt.

`io/colmap.py` reads whole models through pycolmap; the models here have up to a gigabyte of 2D points that nobody
needs, and belong to pictures of another size than the ones on disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from da3_splat.geometry.rotations import quaternion_to_matrix

MODELS = {"SIMPLE_RADIAL": 4, "SIMPLE_PINHOLE": 3, "PINHOLE": 4}  # and how many parameters they have


@dataclass(frozen=True)
class RawCamera:
    """The camera of a picture before undistortion, in pixels with centres at +0.5; radial is k of SIMPLE_RADIAL."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    radial: float


@dataclass(frozen=True)
class PosedImage:
    """A line of images.txt: world_to_camera (4,4) float64."""

    name: str
    camera: int
    world_to_camera: Tensor


def read_cameras(path: Path) -> dict[int, RawCamera]:
    """The cameras by their number."""
    cameras = {}
    for where, line in _lines(path):
        if not line:
            continue
        fields = line.split()
        number, kind = fields[0], fields[1] if len(fields) > 1 else ""
        if kind not in MODELS or len(fields) != 4 + MODELS[kind]:
            raise ValueError(f"{where}: expected a camera of {', '.join(MODELS)} with its parameters, got {line:.80}")
        width, height, *values = _numbers(fields[2:], where)
        fy, radial = values[0], 0.0
        if kind == "PINHOLE":
            fy = values.pop(1)
        elif kind == "SIMPLE_RADIAL":
            radial = values.pop()
        if min(width, height, values[0], fy) <= 0:
            raise ValueError(f"{where}: expected a positive size and focal length, got {line:.80}")
        camera = RawCamera(int(width), int(height), values[0], fy, values[1], values[2], radial)
        cameras[int(_numbers([number], where)[0])] = camera
    if not cameras:
        raise ValueError(f"{path}: no cameras in this file")
    return cameras


def read_images(path: Path) -> list[PosedImage]:
    """The pictures in the order of the file. Each has two lines; the second, its 2D points, may be blank."""
    images = []
    lines = _lines(path)
    for where, line in lines:
        if not line:
            continue
        fields = line.split(maxsplit=9)  # a name may have spaces
        if len(fields) != 10:
            raise ValueError(f"{where}: expected ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, got {line:.80}")
        _, qw, qx, qy, qz, tx, ty, tz, camera = _numbers(fields[:9], where)
        quaternion = torch.tensor([qw, qx, qy, qz], dtype=torch.float64)
        if not quaternion.norm() > 1e-6:
            raise ValueError(f"{where}: its rotation is no quaternion: {line:.80}")
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3, :3] = quaternion_to_matrix(quaternion)
        matrix[:3, 3] = torch.tensor([tx, ty, tz])
        images.append(PosedImage(fields[9], int(camera), matrix))
        where, points = next(lines, (where, ""))
        last = points.rsplit(maxsplit=1)[-1] if points else "0"
        if not last.lstrip("-").isdigit():  # this is the next picture: an editor has dropped the blank lines
            raise ValueError(f"{where}: expected the 2D points of {fields[9]}, got {points:.80}")
    if not images:
        raise ValueError(f"{path}: no images in this file")
    return images


def read_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Sparse points (P,3) float32 and colours (P,3) float32 in [0,1]."""
    rows = []
    for where, line in _lines(path):
        fields = line.split(maxsplit=7)[1:7]
        if fields:
            if len(fields) < 6:
                raise ValueError(f"{where}: expected ID X Y Z R G B ..., got {line:.80}")
            rows.append(_numbers(fields, where))
    table = np.array(rows, np.float32).reshape(-1, 6)
    return table[:, :3], table[:, 3:] / 255


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Lines without comments, each with where it stands; blank ones are kept."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.startswith("#"):
                    yield f"{path}: line {number}", line.strip()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable text file ({error})") from error


def _numbers(fields: list[str], where: str) -> list[float]:
    try:
        values = [float(field) for field in fields]
    except ValueError:
        raise ValueError(f"{where}: expected numbers, got {' '.join(fields):.80}") from None
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{where}: expected finite numbers, got {' '.join(fields):.80}")
    return values
