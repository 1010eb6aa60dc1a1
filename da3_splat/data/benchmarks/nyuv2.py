"""NYU Depth v2, the labelled part: 1449 Kinect pictures in one MATLAB 7.3 file (HDF5), of which 654 are the test split.

    FOLDER/nyu_depth_v2_labeled.mat   images (N,3,W,H) uint8, rawDepths and depths (N,W,H) metres, as HDF5 shows them
    FOLDER/splits.mat                 testNdxs: numbers from 1

Scored is `rawDepths`, what was measured, 0 where nothing was; `depths` has the holes painted in. The intrinsics are
those of the toolbox (camera_params.m) for the colour camera after undistortion, 640x480; that the principal point
counts from the picture's corner is assumed. Each picture is a scene, so that one is in memory at a time.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torch import Tensor

from da3_splat.data.benchmarks.scene import BenchmarkScene, Picture
from da3_splat.io.frames import Frame

FILE, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
INTRINSICS = torch.tensor([[518.857901, 0, 325.582449], [0, 519.469611, 253.736166], [0, 0, 1]], dtype=torch.float64)


def scenes(folder: Path) -> list[BenchmarkScene]:
    """A scene for each picture of the test split."""
    if not (folder / FILE).is_file():
        return []
    try:
        numbers = loadmat(folder / SPLITS)["testNdxs"].reshape(-1)
    except (OSError, KeyError, ValueError, MatReadError) as error:
        raise ValueError(f"{folder / SPLITS}: no list testNdxs of the test split ({error})") from error
    return [BenchmarkScene(f"nyuv2_{number:04d}", partial(_listing, folder / FILE, int(number))) for number in numbers]


def _listing(path: Path, number: int) -> list[Picture]:
    pixels = np.ascontiguousarray(_array(path, "images", number).transpose(2, 1, 0))
    frame = Frame(
        path=path,
        label=f"{number:04d}",
        height=pixels.shape[0],
        width=pixels.shape[1],
        world_to_camera=torch.eye(4, dtype=torch.float64),
        intrinsics=INTRINSICS,
        picture=Image.fromarray(pixels),
    )
    return [Picture(frame, partial(_depth, path, number))]


def _depth(path: Path, number: int) -> Tensor:
    values = _array(path, "rawDepths", number).T.astype(np.float32)
    return torch.from_numpy(np.where(np.isfinite(values) & (values > 0), values, 0))


def _array(path: Path, name: str, number: int) -> np.ndarray:
    """One item of an array of the file, by its number from 1."""
    try:
        with h5py.File(path, "r") as file:
            return file[name][number - 1]
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: {name} has no readable number {number} ({error})") from error
