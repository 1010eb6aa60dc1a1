"""Scene-info archives in the manner of D2-Net and LoFTR: pictures, depth files, cameras and overlaps of one scene.

    image_paths, depth_paths   (N,) strings (dtype U), relative to the data's root; "" where there is none
    intrinsics                 (N,3,3) floats, pixels of the picture
    poses                      (N,4,4) floats, world to camera
    overlap_matrix             (N,N) floats, the share of i's points that j sees; -1 where not counted
    pair_infos                 (P,3) floats i, j, overlap; may be missing

The published files hold pickled Python objects instead. Unpickling runs code of whoever wrote the file, so they are
refused: convert them once, on a machine that may be lost, with arrays of the kinds above.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from da3_splat.io.arrays import UNREADABLE, open_archive
from da3_splat.io.frames import Frame
from da3_splat.io.images import picture_size
from da3_splat.limits import inside

SHAPES = {
    "image_paths": ("U", (None,)),
    "depth_paths": ("U", (None,)),
    "intrinsics": ("f", (None, 3, 3)),
    "poses": ("f", (None, 4, 4)),
    "overlap_matrix": ("f", (None, None)),
    "pair_infos": ("fiu", (None, 3)),
}


@dataclass(frozen=True)
class SceneInfo:
    """N pictures. intrinsics (N,3,3) and world_to_camera (N,4,4) float64, overlap (N,N) float32;
    pairs (P,2) int with pair_overlap (P,)."""

    images: tuple[str, ...]
    depths: tuple[str | None, ...]
    intrinsics: Tensor
    world_to_camera: Tensor
    overlap: Tensor
    pairs: Tensor
    pair_overlap: Tensor

    def frames(self, root: str | Path) -> tuple[list[Frame], list[int], list[str]]:
        """Frames of the pictures under `root`, which picture each is, and a line for each one left out."""
        root = Path(root)
        frames, which, problems = [], [], []
        for index, name in enumerate(self.images):
            if not name:
                continue
            try:
                path = inside(root, name, "scene info")
                height, width = picture_size(path)
            except ValueError as error:
                problems.append(str(error))
                continue
            pose, intrinsics = self.world_to_camera[index], self.intrinsics[index]
            frames.append(Frame(path=path, height=height, width=width, world_to_camera=pose, intrinsics=intrinsics))
            which.append(index)
        return frames, which, problems


def read_scene_info(path: str | Path) -> SceneInfo:
    """The archive at `path`; ValueError names the file, the array, and what to do."""
    with open_archive(path) as archive:
        arrays = {name: _array(archive, name, path) for name in SHAPES if name in archive or name != "pair_infos"}
    count = len(arrays["image_paths"])
    for name, values in arrays.items():
        sides = values.shape if name == "overlap_matrix" else values.shape[:1]
        if name != "pair_infos" and any(side != count for side in sides):
            raise ValueError(f"{path}: {name}: expected {count} rows as image_paths has, got shape {values.shape}")
    pairs = arrays.get("pair_infos", np.zeros((0, 3)))
    indices = torch.from_numpy(pairs[:, :2].astype(np.int64))
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < count:
        raise ValueError(f"{path}: pair_infos: expected pictures 0 to {count - 1}")
    return SceneInfo(
        images=tuple(str(name) for name in arrays["image_paths"]),
        depths=tuple(str(name) or None for name in arrays["depth_paths"]),
        intrinsics=torch.from_numpy(arrays["intrinsics"].astype(np.float64)),
        world_to_camera=torch.from_numpy(arrays["poses"].astype(np.float64)),
        overlap=torch.from_numpy(arrays["overlap_matrix"].astype(np.float32)),
        pairs=indices,
        pair_overlap=torch.from_numpy(pairs[:, 2].astype(np.float32)),
    )


def _array(archive: np.lib.npyio.NpzFile, name: str, path: str | Path) -> np.ndarray:
    if name not in archive:
        raise ValueError(f"{path}: no array {name} in this archive")
    kinds, shape = SHAPES[name]
    try:
        values = archive[name]
    except ValueError as error:
        raise ValueError(
            f"{path}: {name}: holds pickled Python objects, which could run code; convert it to an array of strings "
            f"or numbers first ({error})"
        ) from error
    except UNREADABLE as error:
        raise ValueError(f"{path}: {name}: not readable ({error})") from error
    fits = values.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, values.shape))
    if values.dtype.kind not in kinds or not fits:
        expected = "(" + ", ".join("*" if side is None else str(side) for side in shape) + ")"
        raise ValueError(
            f"{path}: {name}: expected shape {expected} of kind {kinds}, got {values.shape} of {values.dtype}"
        )
    return values
