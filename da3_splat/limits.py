"""The limits on what is read, all of them: how large a file, a picture, an archive may be, and where it may lie.

A file from a stranger may say anything. What it says is compared with what is there before memory is asked for.
docs/security.md lists these numbers.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

PIXELS = 178_956_970  # of one picture or frame of a video: where Pillow, too, takes it for an attack
DEPTH_PIXELS = 1 << 26  # of one depth map: 8192 x 8192
SIDE = 1 << 20  # pixels that a camera may say its picture is wide or high
VIEWS = 100_000  # pictures of one capture
JSON_BYTES = 256 << 20
SETTINGS_BYTES = 1 << 20  # of a recipe
EXPANSION = 100  # times its size that an archive may unpack to ...
EXPANSION_FREE = 64 << 20  # ... beyond so many bytes
COORDINATE = 1e12  # largest distance from the origin, in the unit of the file
LARGEST_LAYER = 8192  # channels of a layer that a file of weights may describe
FOCAL_SHARES = (1e-2, 1e6)  # smallest and largest focal length, in sides of its picture


def regular_file(path: str | Path, most: int | None = None) -> Path:
    """The path, where it is a file of at most `most` bytes. ValueError says what it is instead: missing, a folder, or
    a pipe, on which a reader would wait for ever."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: not a file" if path.exists() or path.is_symlink() else f"{path}: no such file")
    if most is not None and path.stat().st_size > most:
        raise ValueError(f"{path}: {path.stat().st_size} bytes; expected at most {most >> 20} MB")
    return path


def inside(folder: Path, name: str, where: str) -> Path:
    """The file `name` of a capture in `folder`; a name or a link that leads out of it is refused. `where` says who
    names it."""
    path = folder / name
    try:
        kept = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    except ValueError as error:  # a zero byte, or half a letter
        raise ValueError(f"{where}: {name!r:.80} is no name of a file ({error})") from None
    if not kept:
        raise ValueError(
            f"{where}: {name:.200} lies outside {folder}, and nothing outside it is read; copy it there and name it "
            "relative to that folder"
        )
    return path


def check_views(count: int, where: str) -> None:
    """ValueError where a capture has more pictures than anybody took."""
    if count > VIEWS:
        raise ValueError(f"{where}: {count} pictures; expected at most {VIEWS}")


def check_pixels(height: int, width: int, where: str, most: int = PIXELS) -> None:
    """ValueError where a picture of height x width has no pixels, or so many that it may be an attack."""
    if min(height, width) < 1 or height * width > most:
        raise ValueError(f"{where}: {width}x{height} pixels; expected 1 to {most}")


def check_archive(path: str | Path) -> None:
    """ValueError where a zip archive unpacks to much more than its size."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(item.file_size for item in archive.infolist())
    most = EXPANSION * Path(path).stat().st_size + EXPANSION_FREE
    if unpacked > most:
        raise ValueError(f"{path}: unpacks to {unpacked} bytes; expected at most {most}, {EXPANSION} times its size")
