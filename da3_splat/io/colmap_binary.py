"""What COLMAP's binary files say of their own length, checked against the bytes before pycolmap believes it.

pycolmap reads to the end it was told, whatever comes: of a short cameras.bin it repeats the last camera, a count of
2^63 in points3D.bin asks for all memory there is.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

import pycolmap

from da3_splat.limits import VIEWS, check_views, regular_file

Data = bytes | mmap.mmap
RIG_SENSOR, RIGID = 8, 56  # bytes of a sensor's kind and number, and of a quaternion and translation


def check_model(folder: Path) -> None:
    """ValueError names the file of a binary model that is not as long as its counts say, or holds too many pictures."""
    for name, skip in SKIPS.items():
        path = folder / name
        if not path.exists():
            continue
        regular_file(path)
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
        end = _end(data, skip)
        if end != len(data):
            raise ValueError(
                f"{path}: cut short, or no file of COLMAP: its counts ask for {end} bytes, not {len(data)}"
            )
        if name == "images.bin":
            check_views(_number(data, 0), str(path))


def _end(data: Data, skip: Callable[[Data, int], int]) -> int:
    """Where the last record ends by what the file says; beyond its length where it cannot be known."""
    if len(data) < 8:
        return 8
    offset = 8
    for _ in range(_number(data, 0)):
        if offset >= len(data):
            return len(data) + 1
        offset = skip(data, offset)
    return offset


def _number(data: Data, offset: int, size: int = 8) -> int:
    """An unsigned number; of bytes beyond the end one that leads beyond it, too."""
    found = data[offset : offset + size]
    return int.from_bytes(found, "little") if len(found) == size else len(data)


def _camera(data: Data, offset: int) -> int:
    model = _number(data, offset + 4, 4)
    if model not in PARAMETERS:
        return len(data) + 1
    return offset + 24 + 8 * PARAMETERS[model]


def _image(data: Data, offset: int) -> int:
    end = data.find(b"\0", offset + 64)
    return len(data) + 1 if end < 0 else end + 9 + 24 * _number(data, end + 1)


def _point(data: Data, offset: int) -> int:
    return offset + 51 + 8 * _number(data, offset + 43)


def _rig(data: Data, offset: int) -> int:
    count, offset = _number(data, offset + 4, 4), offset + 8
    if count > VIEWS:
        return len(data) + 1
    offset += RIG_SENSOR * (count > 0)
    for _ in range(count - 1):
        offset += RIG_SENSOR + 1 + RIGID * (_number(data, offset + RIG_SENSOR, 1) != 0)
    return offset


def _frame(data: Data, offset: int) -> int:
    return offset + 12 + RIGID + 16 * _number(data, offset + 8 + RIGID, 4)


SKIPS = {"cameras.bin": _camera, "images.bin": _image, "points3D.bin": _point, "rigs.bin": _rig, "frames.bin": _frame}
PARAMETERS = {
    int(model.value): len(pycolmap.Camera.create_from_model_id(1, model, 1.0, 1, 1).params)
    for name, model in pycolmap.CameraModelId.__members__.items()
    if name != "INVALID"
}
