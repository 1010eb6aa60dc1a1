"""DIODE (validation): laser-scanned depth, indoors and outdoors.

    FOLDER/val/{indoors,outdoor}/scene_00019/scan_00183/NAME.png             1024x768
    FOLDER/val/{indoors,outdoor}/scene_00019/scan_00183/NAME_depth.npy       (H,W,1) float32, metres
    FOLDER/val/{indoors,outdoor}/scene_00019/scan_00183/NAME_depth_mask.npy  (H,W), 1 where a return is valid

or without val/. Source: the development kit; focal lengths 886.81 and 927.06, principal point (512, 384). Whether the
values are z-depth or distances along the ray is not said there; they are taken as z-depth, as everybody does.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from da3_splat.data.benchmarks.scene import BenchmarkScene, Picture, first_existing, folders, single_frame
from da3_splat.io.arrays import read_array
from da3_splat.io.depth_maps import read_depth

INTRINSICS = torch.tensor([[886.81, 0, 512], [0, 927.06, 384], [0, 0, 1]], dtype=torch.float64)


def scenes(folder: Path) -> list[BenchmarkScene]:
    """One scene a scan, indoors and outdoors."""
    return indoor_scenes(folder) + _scans(folder, "outdoor")


def indoor_scenes(folder: Path) -> list[BenchmarkScene]:
    """One scene an indoor scan: what Table 11 of DA3's paper scores."""
    return _scans(folder, "indoors")


def _scans(folder: Path, kind: str) -> list[BenchmarkScene]:
    base = first_existing(folder / "val", folder) / kind
    return [
        BenchmarkScene(f"{kind}/{scene.name}/{scan.name}", partial(_listing, scan))
        for scene in folders(base)
        for scan in folders(scene)
    ]


def _listing(scan: Path) -> list[Picture]:
    pictures = []
    for path in sorted(scan.glob("*_depth.npy")):
        start = path.name.removesuffix("_depth.npy")
        frame = single_frame(scan / f"{start}.png", INTRINSICS)
        pictures.append(Picture(frame, partial(_depth, path, scan / f"{start}_depth_mask.npy")))
    return pictures


def _depth(path: Path, mask: Path) -> Tensor:
    depth = read_depth(path)
    valid = read_array(mask)
    if valid.shape != tuple(depth.shape):
        raise ValueError(f"{mask}: expected the shape of its depth {tuple(depth.shape)}, got {valid.shape}")
    return torch.where(torch.from_numpy(valid > 0.5), depth, 0)
