"""NumPy's files from strangers: no pickle, and no array is made that the file does not hold."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from da3_splat.limits import check_archive, regular_file

# What a broken archive, or a header that is none, is known to raise.
UNREADABLE = (
    *(ValueError, OSError, EOFError, KeyError, TypeError, OverflowError, IndexError, SyntaxError, RuntimeError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


def read_array(path: str | Path) -> np.ndarray:
    """The array of a .npy. ValueError names a file that is none, holds objects, or is shorter than it says."""
    path = regular_file(path)
    try:
        with path.open("rb") as file:
            _check_header(file, path.stat().st_size, "it")
            file.seek(0)
            return npy.read_array(file, allow_pickle=False)
    except UNREADABLE as error:
        raise ValueError(f"{path}: not a readable .npy ({error})") from error


def open_archive(path: str | Path) -> np.lib.npyio.NpzFile:
    """A .npz whose arrays are as large as they say and unpack to no more than limits.py allows; ValueError names
    the file. Arrays of Python objects are refused when they are asked for."""
    path = regular_file(path)
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("expected an npz archive")
        check_archive(path)
        with zipfile.ZipFile(path) as archive:
            for item in archive.infolist():
                with archive.open(item) as member:
                    _check_header(member, item.file_size, item.filename)
        return np.load(path, allow_pickle=False)
    except UNREADABLE as error:
        raise ValueError(f"{path}: not a readable npz archive ({error})") from error


def _check_header(file: IO[bytes], size: int, name: str) -> None:
    """ValueError where an array says another size than that of its bytes."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name} has a header of version {version}; expected 1 or 2")
    shape, _, kind = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
    held = size - file.tell()
    if not kind.hasobject and (min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize != held):
        raise ValueError(f"{name} says it is {shape} of {kind}, but holds {held} bytes")
