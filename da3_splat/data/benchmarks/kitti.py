"""KITTI, annotated depth (Uhrig 2017), in the two forms in which it is downloaded.

    FOLDER/{train,val}/DRIVE/proj_depth/groundtruth/image_02/0000000005.png   16 bits, 256 to a metre, 0 is unknown
    FOLDER/DATE/DRIVE/image_02/data/0000000005.png                            raw pictures, also below FOLDER/raw
    FOLDER/DATE/calib_cam_to_cam.txt                                          P_rect_02 has the intrinsics
    FOLDER/eigen_test_files_with_gt.txt                                       picture, depth, focal length a line

DRIVE is such as 2011_09_26_drive_0002_sync, DATE its first ten letters. The list is the Eigen test split as others
share it (697 lines; the 652 with annotated depth are scored); without it the whole `val` is. Or the official selection:

    FOLDER/depth_selection/val_selection_cropped/{image,groundtruth_depth,intrinsics}

whose names differ by `image` and `groundtruth_depth`. Source: the development kit's readme. Depth is sparse.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from da3_splat.data.benchmarks.scene import BenchmarkScene, Picture, read_matrix, single_frame
from da3_splat.io.depth_maps import read_depth

UNIT = 1 / 256  # metres
LIST = "eigen_test_files_with_gt.txt"
SELECTION = Path("depth_selection") / "val_selection_cropped"
MAPS = Path("proj_depth") / "groundtruth" / "image_02"
CALIBRATION = "calib_cam_to_cam.txt"


def scenes(folder: Path) -> list[BenchmarkScene]:
    """One scene a drive that has depth to score; or one for the official selection."""
    if (folder / SELECTION).is_dir():
        return [BenchmarkScene("val_selection_cropped", partial(_selection, folder / SELECTION))]
    asked = _asked(folder / LIST)
    drives: dict[str, list[Path]] = {}
    for split in ("val", ".") if asked is None else ("train", "val", "."):
        for path in sorted(folder.glob(f"{split}/*/{MAPS.as_posix()}/*.png")):
            drive = path.parents[3].name
            if asked is None or (drive, path.stem) in asked:
                drives.setdefault(drive, []).append(path)
    return [BenchmarkScene(drive, partial(_drive, folder, drive, maps)) for drive, maps in sorted(drives.items())]


def _asked(path: Path) -> set[tuple[str, str]] | None:
    """Drive and number of the listed pictures, None where there is no list."""
    if not path.is_file():
        return None
    asked = set()
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        parts = line.split()
        if not parts:
            continue
        picture = Path(parts[0])
        if len(picture.parts) < 5:
            raise ValueError(f"{path}: line {number}: expected DATE/DRIVE/image_02/data/NUMBER.png, got {line:.80}")
        asked.add((picture.parts[1], picture.stem))
    return asked


def _drive(folder: Path, drive: str, maps: list[Path]) -> list[Picture]:
    date = drive[:10]
    base = next((base for base in (folder, folder / "raw") if (base / date / drive).is_dir()), None)
    if base is None:
        raise ValueError(f"{folder / date / drive}: no raw pictures of this drive; download KITTI's raw data, too")
    intrinsics = _rectified(base / date / CALIBRATION)
    images = base / date / drive / "image_02" / "data"
    return [
        Picture(single_frame(images / path.name, intrinsics, f"{drive}/{path.name}"), partial(read_depth, path, UNIT))
        for path in maps
    ]


def _rectified(path: Path) -> Tensor:
    """Intrinsics (3,3) of the left colour camera after rectification."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; it is in KITTI's raw data, calibration")
    for line in path.read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name == "P_rect_02":
            try:
                values = torch.tensor([float(number) for number in numbers.split()], dtype=torch.float64)
                return values.reshape(3, 4)[:, :3]
            except (ValueError, RuntimeError):
                break
    raise ValueError(f"{path}: no P_rect_02 with 12 numbers")


def _selection(folder: Path) -> list[Picture]:
    pictures = []
    for path in sorted((folder / "groundtruth_depth").glob("*.png")):
        image = folder / "image" / path.name.replace("groundtruth_depth", "image")
        intrinsics = read_matrix(folder / "intrinsics" / f"{image.stem}.txt", 3, 3)
        pictures.append(Picture(single_frame(image, intrinsics), partial(read_depth, path, UNIT)))
    return pictures
