"""Where tapped features lie: see `in_memory` in vision_transformer.py for the usual place."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor


class FeatureFiles:
    """Features in files under `folder`, mapped into memory: written once, and put aside by the system where memory is
    short. The files have no names any more once they are mapped, so that they vanish with the features."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Room for features of `shape` on the CPU, in the dtype of `like`."""
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".features") as file:
            # A mapped file that finds no room on the disk ends the process; asked for first, it is an error.
            os.posix_fallocate(file.fileno(), 0, max(1, math.prod(shape) * like.element_size()))
            values = torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=like.dtype)
        return values.reshape(shape)
