"""Writing a file so that it is either the old one or the new one, never half of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

TORCH_CANNOT_WRITE = ("PytorchStreamWriter", "inline_container")  # in its words for a full disk


class NotWritten(OSError):
    """A file that could not be written. The fault of the disk, and not of what was read for it."""


def check_writable(folder: str | Path) -> None:
    """NotWritten where no file can be written into `folder`, which is made where it is not there: to say so before
    the work is done, not after it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise NotWritten(f"{folder}: cannot be written to ({error})") from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well and vanishes when it does not."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotWritten(f"{path}: cannot be written ({error})") from error
    # The ending stays, because writers choose the format by it.
    beside = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield beside
        beside.replace(path)
    except (OSError, SafetensorError) as error:
        raise NotWritten(f"{path}: cannot be written ({error})") from error
    except RuntimeError as error:
        if not any(word in str(error) for word in TORCH_CANNOT_WRITE):
            raise
        raise NotWritten(f"{path}: cannot be written (the disk may be full)") from error
    finally:
        beside.unlink(missing_ok=True)
