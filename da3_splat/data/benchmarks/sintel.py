"""MPI Sintel (training): frames of an animated film with exact depth and cameras.

    FOLDER/training/final/SCENE/frame_0001.png            the pass with motion blur and fog
    FOLDER/training/depth/SCENE/frame_0001.dpt            see io/depth_maps.py; metres; z-depth
    FOLDER/training/camdata_left/SCENE/frame_0001.cam     float32 tag 202021.25, float64 intrinsics 3x3, [R|t] 3x4

or without training/. [R|t] is world to camera. Source: the data set's own input and output code. Depth and cameras are
a download of their own. Which pass the DA3 paper scores is not said; `final` is what MiDaS scored.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from da3_splat.data.benchmarks.scene import BenchmarkScene, Picture, first_existing, folders, posed_frame
from da3_splat.io.depth_maps import SINTEL_TAG, read_depth


def scenes(folder: Path) -> list[BenchmarkScene]:
    """Every scene with depth."""
    base = first_existing(folder / "training", folder)
    return [BenchmarkScene(entry.name, partial(_listing, base, entry.name)) for entry in folders(base / "depth")]


def _listing(base: Path, name: str) -> list[Picture]:
    pictures = []
    for path in sorted((base / "depth" / name).glob("*.dpt")):
        intrinsics, world_to_camera = read_camera(base / "camdata_left" / name / f"{path.stem}.cam")
        image = base / "final" / name / f"{path.stem}.png"
        frame = posed_frame(image, world_to_camera, intrinsics, f"{name}/{image.name}")
        pictures.append(Picture(frame, partial(read_depth, path)))
    return pictures


def read_camera(path: Path) -> tuple[Tensor, Tensor]:
    """Intrinsics (3,3) and world_to_camera (4,4), float64, of a .cam file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: not readable ({error})") from error
    if len(data) != 4 + 8 * 21 or np.frombuffer(data, "<f4", 1)[0] != SINTEL_TAG:
        raise ValueError(f"{path}: not one of Sintel's camera files")
    values = torch.from_numpy(np.frombuffer(data, "<f8", 21, offset=4).copy())
    world_to_camera = torch.eye(4, dtype=torch.float64)
    world_to_camera[:3] = values[9:].reshape(3, 4)
    return values[:9].reshape(3, 3), world_to_camera
