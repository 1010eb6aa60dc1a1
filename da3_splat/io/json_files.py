"""JSON from strangers: no larger than limits.py allows, and one kind of error whatever is wrong with it."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from da3_splat.io.frames import PictureFile
from da3_splat.limits import JSON_BYTES, regular_file

# What a broken file, or a broken archive around it, is known to raise.
# RuntimeError: an archive with a password, or JSON of a thousand brackets.
UNREADABLE = (ValueError, OSError, RuntimeError, EOFError, NotImplementedError, zlib.error, zipfile.BadZipFile)
LARGEST_NUMBER = 1e30  # beyond, float32 has no room for it


def load_json(path: PictureFile, pairs: Callable[[list[tuple[str, object]]], object] | None = None):
    """What a JSON file (or one in a zip) holds; ValueError where it is none, or too large. `pairs` makes an object of
    its keys and values, a dictionary without."""
    if isinstance(path, Path):
        regular_file(path)
    try:
        with path.open("rb") as file:
            data = file.read(JSON_BYTES + 1)
        if len(data) > JSON_BYTES:
            raise ValueError(f"larger than {JSON_BYTES >> 20} MB")
        return json.loads(data, object_pairs_hook=pairs)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except UNREADABLE as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error


def json_number(value: object, where: str) -> float:
    """A finite number; ValueError names what came instead."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < LARGEST_NUMBER:
        raise ValueError(f"{where}: expected a number, got {value!r:.80}")
    return float(value)
