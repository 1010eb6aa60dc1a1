"""Tanks and Temples for novel views: each scene a COLMAP model with undistorted pictures.

    FOLDER/SCENE/images/NAME.jpg
    FOLDER/SCENE/sparse/0/{cameras,images,points3D}.bin or .txt

This is how 3D Gaussian Splatting's authors publish `train` and `truck`, and how others publish the rest. The scale is
COLMAP's own. DA3's Table 5 uses six scenes; which six, and from whose poses, is not published.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from da3_splat.data.benchmarks.scene import BenchmarkScene, Picture, folders
from da3_splat.data.captures import find_frames


def scenes(folder: Path) -> list[BenchmarkScene]:
    """Every folder with a sparse model, or the folder itself."""
    candidates = [folder] if (folder / "sparse").is_dir() else folders(folder)
    return [BenchmarkScene(entry.name, partial(_listing, entry)) for entry in candidates if (entry / "sparse").is_dir()]


def _listing(folder: Path) -> list[Picture]:
    return [Picture(frame) for frame in find_frames(folder).frames]
