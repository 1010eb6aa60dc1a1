"""7-Scenes (Microsoft): Kinect sequences with tracked cameras.

    FOLDER/SCENE/seq-01/frame-000000.color.png
    FOLDER/SCENE/seq-01/frame-000000.depth.png   16 bits, millimetres; 0 and 65535 are unknown
    FOLDER/SCENE/seq-01/frame-000000.pose.txt    4x4 camera_to_world, OpenCV axes, metres
    FOLDER/meshes/SCENE.ply                      the true mesh

or all of it one folder down, in 7Scenes/. Source: the data set's page and the DA3 repository's benchmark code: the
first sequence (the second of `stairs`), every 11th frame as the paper says (the released code takes all), focal length
585, principal point (320, 240) of 640x480 (the page's own numbers, of the depth camera; the colour camera is not
calibrated, and depth is not registered to it). The meshes are not part of Microsoft's download, which has TSDF volumes.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from da3_splat.data.benchmarks.scene import (
    BenchmarkScene,
    Picture,
    first_existing,
    posed_frame,
    read_matrix,
    rigid_inverse,
)
from da3_splat.io.depth_maps import read_depth

NAMES = ("chess", "fire", "heads", "office", "pumpkin", "redkitchen", "stairs")
EVERY = 11
UNKNOWN = 65.535  # metres
INTRINSICS = torch.tensor([[585.0, 0, 320], [0, 585, 240], [0, 0, 1]], dtype=torch.float64)


def scenes(folder: Path) -> list[BenchmarkScene]:
    """Those of the seven scenes that are here."""
    base = first_existing(folder / "7Scenes", folder)
    found = []
    for name in NAMES:
        sequence = base / name / ("seq-02" if name == "stairs" else "seq-01")
        if sequence.is_dir():
            found.append(BenchmarkScene(name, partial(_listing, sequence), base / "meshes" / f"{name}.ply"))
    return found


def _listing(sequence: Path) -> list[Picture]:
    pictures = []
    for image in sorted(sequence.glob("frame-*.color.png"))[::EVERY]:
        start = image.name.removesuffix(".color.png")
        pose, depth = sequence / f"{start}.pose.txt", sequence / f"{start}.depth.png"
        frame = posed_frame(image, rigid_inverse(read_matrix(pose, 4, 4), pose), INTRINSICS)
        pictures.append(Picture(frame, partial(_depth, depth) if depth.is_file() else None))
    return pictures


def _depth(path: Path) -> Tensor:
    depth = read_depth(path, 1e-3)
    return torch.where(depth >= UNKNOWN - 1e-4, 0, depth)
