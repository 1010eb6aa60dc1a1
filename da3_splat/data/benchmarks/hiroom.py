"""HiRoom, as the DA3 benchmark ships it: rendered rooms with exact cameras, depth and a fused cloud.

    FOLDER/data/A/B/C/image/NAME.*            pictures (their ending is not documented)
    FOLDER/data/A/B/C/depth/NAME.png          16 bits, 65535 is 100 m, 0 is unknown
    FOLDER/data/A/B/C/aliasing_mask/NAME.png  not 0: depth there is not to be trusted; may be missing
    FOLDER/data/A/B/C/pose/NAME.npy           4x4 world_to_camera
    FOLDER/data/A/B/C/cam_K.npy               3x3, one for the scene
    FOLDER/fused_pcd/A-B-C.ply                the true cloud
    FOLDER/selected_scene_list_val.txt        A/B/C a line: the scenes that are scored

Source: the DA3 repository's benchmark code. The paper names 29 and 30 scenes, its documents 24; the list decides.
Whether the principal point counts pixel centres from 0 or from 0.5 is not documented; it is taken as it is.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from da3_splat.data.benchmarks.scene import BenchmarkScene, Picture, posed_frame, read_matrix
from da3_splat.io.depth_maps import read_depth
from da3_splat.io.images import list_images, read_image

UNIT = 100 / 65535  # metres
LIST = "selected_scene_list_val.txt"


def scenes(folder: Path) -> list[BenchmarkScene]:
    """The listed scenes, or, without a list, all that have a cam_K.npy."""
    data = folder / "data" if (folder / "data").is_dir() else folder
    if (folder / LIST).is_file():
        names = (folder / LIST).read_text().split()
    else:
        names = sorted(path.parent.relative_to(data).as_posix() for path in data.glob("**/cam_K.npy"))
    return [
        BenchmarkScene(name, partial(_listing, data / name), folder / "fused_pcd" / f"{_flat(name)}.ply")
        for name in names
    ]


def _flat(name: str) -> str:
    return "-".join(name.split("/")[-3:])


def _listing(folder: Path) -> list[Picture]:
    intrinsics = read_matrix(folder / "cam_K.npy", 3, 3)
    pictures = []
    for image in list_images(folder / "image"):
        pose = folder / "pose" / f"{image.stem}.npy"
        if not pose.is_file():
            continue
        depth = folder / "depth" / f"{image.stem}.png"
        mask = folder / "aliasing_mask" / f"{image.stem}.png"
        frame = posed_frame(image, read_matrix(pose, 4, 4), intrinsics)
        pictures.append(Picture(frame, partial(_depth, depth, mask) if depth.is_file() else None))
    return pictures


def _depth(path: Path, mask: Path) -> Tensor:
    depth = read_depth(path, UNIT)
    if not mask.is_file():
        return depth
    return torch.where(torch.from_numpy(np.asarray(read_image(mask).convert("L")) > 0), 0, depth)
