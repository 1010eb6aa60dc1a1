"""ETH3D, high-resolution multi-view (DSLR): photos, COLMAP cameras, laser scans.

    FOLDER/SCENE/images/dslr_images/NAME.JPG
    FOLDER/SCENE/dslr_calibration_jpg/{cameras,images,points3D}.txt    COLMAP, THIN_PRISM_FISHEYE, metres
    FOLDER/SCENE/ground_truth_depth/dslr_images/NAME.JPG               float32, row by row, no header; inf is unknown
    FOLDER/SCENE/combined_mesh.ply                                     the true mesh, of the DA3 benchmark's download

or all of it one folder down, in multiview/. Source: eth3d.net and the DA3 repository's benchmark code. Depth belongs to
the photos as they were taken, so the photos are not undistorted, as in the DA3 benchmark: of each camera only focal
length and principal point are used, and what the lens bends is an error of the protocol itself. Eleven of the thirteen
scenes are scored; photos that stand on their side are left out as the released code does (the paper says all frames).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from da3_splat.data.benchmarks.scene import BenchmarkScene, Picture, first_existing, folders
from da3_splat.io.depth_maps import read_raw_depth
from da3_splat.io.frames import Frame
from da3_splat.io.images import picture_size

LEFT_OUT = ("meadow", "terrace")
TURNED = {  # the last digits of the names of photos that stand on their side
    "delivery_area": range(711, 715),
    "electro": (*range(9289, 9294), 9298),
    "playground": range(587, 593),
    "relief": range(427, 439),
    "relief_2": range(458, 469),
}


def scenes(folder: Path) -> list[BenchmarkScene]:
    """The scored scenes that are here."""
    base = first_existing(folder / "multiview", folder)
    return [
        BenchmarkScene(entry.name, partial(_listing, entry), entry / "combined_mesh.ply")
        for entry in folders(base)
        if (entry / "dslr_calibration_jpg").is_dir() and entry.name not in LEFT_OUT
    ]


def _listing(folder: Path) -> list[Picture]:
    from da3_splat.io.colmap import read_colmap  # pycolmap takes a moment to import

    turned = tuple(str(number) for number in TURNED.get(folder.name, ()))
    frames, _, _ = read_colmap(folder / "dslr_calibration_jpg", folder / "images")
    pictures = []
    for frame in frames:
        if not frame.path.is_file() or frame.path.stem.endswith(turned or ("\0",)):
            continue
        depth = folder / "ground_truth_depth" / Path(str(frame.path)).relative_to(folder / "images")
        pictures.append(Picture(replace(frame, lens=None), partial(_depth, depth, frame) if depth.is_file() else None))
    return pictures


def _depth(path: Path, frame: Frame):
    return read_raw_depth(path, *picture_size(frame.path))
