"""SUN RGB-D: pictures of four depth cameras.

    FOLDER/{kv1,kv2,realsense,xtion}/.../PICTURE/image/NAME.jpg
    FOLDER/{kv1,kv2,realsense,xtion}/.../PICTURE/depth_bfx/NAME.png   16 bits, turned by three bits, then millimetres
    FOLDER/{kv1,kv2,realsense,xtion}/.../PICTURE/intrinsics.txt       3x3
    FOLDER/SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat               alltest: the folders of the test split

or the first three below FOLDER/SUNRGBD. Source: the toolbox's readers. `depth_bfx` is depth after the authors' own
filling, which their readers use; whether DA3's paper scores it or the raw `depth`, and which pictures, is not said.
Without the toolbox, all pictures are scored. One scene a camera and collection.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torch import Tensor

from da3_splat.data.benchmarks.scene import BenchmarkScene, Picture, first_existing, read_matrix, single_frame
from da3_splat.io.depth_maps import read_integers
from da3_splat.io.images import list_images

SPLIT = Path("SUNRGBDtoolbox") / "traintestSUNRGBD" / "allsplit.mat"
CAMERAS = ("kv1", "kv2", "realsense", "xtion")


def scenes(folder: Path) -> list[BenchmarkScene]:
    """One scene for each camera and collection that has pictures of the test split."""
    base = first_existing(folder / "SUNRGBD", folder)
    tested = _tested(folder / SPLIT)
    groups: dict[str, list[Path]] = {}
    for camera in CAMERAS:
        for path in sorted((base / camera).glob("**/intrinsics.txt")):
            name = path.parent.relative_to(base).as_posix()
            if tested is None or name in tested:
                groups.setdefault("/".join(name.split("/")[:2]), []).append(path.parent)
    return [BenchmarkScene(name, partial(_listing, base, found)) for name, found in sorted(groups.items())]


def _tested(path: Path) -> set[str] | None:
    """The folders of the test split, such as kv1/b3dodata/img_0063; None where the toolbox is not here."""
    if not path.is_file():
        return None
    try:
        listed = [str(item.item()) for item in loadmat(path)["alltest"].reshape(-1)]
    except (OSError, KeyError, ValueError, MatReadError) as error:
        raise ValueError(f"{path}: no list alltest of folders ({error})") from error
    return {name.partition("/SUNRGBD/")[2].strip("/") for name in listed}


def _listing(base: Path, found: list[Path]) -> list[Picture]:
    pictures = []
    for folder in found:
        image = list_images(folder / "image")[0]
        depth = next(iter(sorted((folder / "depth_bfx").glob("*.png"))), None)
        if depth is None:
            raise ValueError(f"{folder / 'depth_bfx'}: no depth map")
        intrinsics = read_matrix(folder / "intrinsics.txt", 3, 3)
        label = folder.relative_to(base).as_posix()
        pictures.append(Picture(single_frame(image, intrinsics, label), partial(_depth, depth)))
    return pictures


def _depth(path: Path) -> Tensor:
    """Metres: the three lowest bits of what is stored are the highest of the millimetres."""
    stored = read_integers(path).astype(np.uint16)
    millimetres = (stored >> 3) | (stored << 13)
    return torch.from_numpy(millimetres.astype(np.float32) / 1000)
