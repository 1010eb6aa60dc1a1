"""DTU as MVSNet prepared it, in millimetres; and the 64-picture form that poses are scored on.

    FOLDER/Rectified/scan1/rect_001_3_r5000.png      3 is the light (all on); the number counts from 1
    FOLDER/Cameras/00000000_cam.txt                  `extrinsic`, 4x4 world_to_camera, `intrinsic`, 3x3; from 0
    FOLDER/depth_raw/Depths/scan1/depth_map_0000.pfm    depth, 0 is unknown
    FOLDER/depth_raw/Depths/scan1/depth_visual_0000.png grey above 10: the object
    FOLDER/Points/stl/stl001_total.ply               the true points
    FOLDER/SampleSet/mvs_data/ObsMask/ObsMask1_10.mat   ObsMask, BB (2,3), Res: where the scanner could see
    FOLDER/SampleSet/mvs_data/ObsMask/Plane1.mat        P (4): the table; true points below it are not counted

    FOLDER/scan105/image/00000000.png                DTU-64, with FOLDER/Cameras as above

Source: the DA3 repository's benchmark code and DTU's own evaluation. Depth outside the mask is unknown here; the paper
masks with a background remover instead (RMBG-2.0). With given cameras the released code keeps only points that four
views agree on to 0.2 mm; here every pixel is a point then, too, so posed scores are not comparable. The 22 scans of
MVSNet's test set and 13 of DTU-64 are scored.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torch import Tensor

from da3_splat.data.benchmarks.scene import BenchmarkScene, Picture, folders, posed_frame
from da3_splat.io.depth_maps import read_depth
from da3_splat.io.images import read_image

SCANS = (1, 4, 9, 10, 11, 12, 13, 15, 23, 24, 29, 32, 33, 34, 48, 49, 62, 75, 77, 110, 114, 118)
POSE_SCANS = (24, 37, 40, 55, 63, 65, 69, 83, 97, 105, 114, 118, 122)
OBJECT = 10  # of depth_visual: what is brighter


def scenes(folder: Path) -> list[BenchmarkScene]:
    """The test scans that are here."""
    found = []
    for number in SCANS:
        images, mask = folder / "Rectified" / f"scan{number}", folder / "SampleSet" / "mvs_data" / "ObsMask"
        if images.is_dir():
            judged = partial(counted, mask / f"ObsMask{number}_10.mat", mask / f"Plane{number}.mat")
            surface = folder / "Points" / "stl" / f"stl{number:03d}_total.ply"
            found.append(BenchmarkScene(images.name, partial(_listing, folder, images), surface, judged))
    return found


def pose_scenes(folder: Path) -> list[BenchmarkScene]:
    """The scans of DTU-64 that are here: poses only."""
    return [
        BenchmarkScene(entry.name, partial(_listing_64, folder, entry / "image"))
        for entry in folders(folder)
        if entry.name in {f"scan{number}" for number in POSE_SCANS} and (entry / "image").is_dir()
    ]


def _listing(folder: Path, images: Path) -> list[Picture]:
    pictures = []
    for path in sorted(images.glob("rect_*_3_*.png")) or sorted(images.glob("rect_*.png")):
        index = int(path.stem.split("_")[1]) - 1
        maps = folder / "depth_raw" / "Depths" / images.name
        depth, mask = maps / f"depth_map_{index:04d}.pfm", maps / f"depth_visual_{index:04d}.png"
        frame = _frame(path, folder / "Cameras" / f"{index:08d}_cam.txt")
        pictures.append(Picture(frame, partial(_depth, depth, mask) if depth.is_file() else None))
    return pictures


def _listing_64(folder: Path, images: Path) -> list[Picture]:
    cameras = folder / "Cameras"
    return [Picture(_frame(path, cameras / f"{int(path.stem):08d}_cam.txt")) for path in sorted(images.glob("*.png"))]


def _frame(path: Path, camera: Path):
    """A frame of a camera file: 16 numbers after the word extrinsic, 9 after intrinsic."""
    try:
        before, _, after = camera.read_text().partition("intrinsic")
        pose = [float(word) for word in before.replace("extrinsic", "").split()]
        lens = [float(word) for word in after.split()[:9]]
        world_to_camera = torch.tensor(pose, dtype=torch.float64).reshape(4, 4)
        intrinsics = torch.tensor(lens, dtype=torch.float64).reshape(3, 3)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{camera}: not one of MVSNet's camera files ({error})") from error
    return posed_frame(path, world_to_camera, intrinsics)


def _depth(path: Path, mask: Path) -> Tensor:
    depth = read_depth(path)
    if not mask.is_file():
        return depth
    kept = torch.from_numpy(np.asarray(read_image(mask).convert("L")) > OBJECT)
    if kept.shape != depth.shape:
        raise ValueError(f"{mask}: expected the size of its depth map {tuple(depth.shape)}, got {tuple(kept.shape)}")
    return torch.where(kept, depth, 0)


def counted(mask: Path, plane: Path, found: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of found points (P,3) those in cubes that the scanner could see, of true ones (Q,3) those above the table."""
    try:
        content = loadmat(mask)
        seen, corner, size = content["ObsMask"].astype(bool), content["BB"][0], float(content["Res"].item())
        normal = loadmat(plane)["P"].reshape(4)
    except (OSError, KeyError, ValueError, IndexError, MatReadError) as error:
        raise ValueError(f"{mask}: not readable with its {plane.name} ({error}); see DTU's SampleSet") from error
    cells = np.floor((found - corner) / size + 0.5).astype(np.int64)
    inside = ((cells >= 0) & (cells < seen.shape)).all(axis=1)
    inside[inside] = seen[tuple(cells[inside].T)]
    return found[inside], true[true @ normal[:3] + normal[3] > 0]
