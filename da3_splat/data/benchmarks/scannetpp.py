"""ScanNet++ as the DA3 benchmark prepared it: iPhone pictures, COLMAP cameras run again, a laser-scanned mesh.

    FOLDER/SCENE/merge_dslr_iphone/images/...iphone.../NAME.jpg
    FOLDER/SCENE/merge_dslr_iphone/colmap/sparse_render_rgb/     a COLMAP model, OPENCV cameras, metres
    FOLDER/SCENE/merge_dslr_iphone/render_depth/NAME.png         16 bits, millimetres, rendered from the mesh
    FOLDER/SCENE/scans/mesh_aligned_0.05.ply                     the true mesh

or all of it one folder down, in data/. Where there is no merge_dslr_iphone, the iPhone part of ScanNet++ itself is read
(iphone/rgb, iphone/colmap), without depth. Source: the DA3 repository's benchmark code. Every 5th picture, as the paper
says. Pictures are undistorted when read. The rendered depth is of the undistorted picture after the benchmark's own
cropping, whose exact window is not documented; so it is not used here, and pose and reconstruction do not need it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from da3_splat.data.benchmarks.scene import BenchmarkScene, Picture, first_existing, folders

EVERY = 5
# Twenty scenes are scored in the paper; which of them are here, the folder says.
FORMS = (("merge_dslr_iphone/colmap/sparse_render_rgb", "merge_dslr_iphone/images"), ("iphone/colmap", "iphone/rgb"))


def scenes(folder: Path) -> list[BenchmarkScene]:
    """Every scene with a COLMAP model of its iPhone pictures."""
    found = []
    for entry in folders(first_existing(folder / "data", folder)):
        form = next((form for form in FORMS if (entry / form[0]).is_dir()), None)
        if form is not None:
            mesh = entry / "scans" / "mesh_aligned_0.05.ply"
            found.append(BenchmarkScene(entry.name, partial(_listing, entry / form[0], entry / form[1]), mesh))
    return found


def _listing(model: Path, images: Path) -> list[Picture]:
    from da3_splat.io.colmap import read_colmap  # pycolmap takes a moment to import

    frames, _, _ = read_colmap(model, images)
    if images.name == "images":  # pictures of the DSLR lie beside them
        frames = [frame for frame in frames if "iphone" in Path(str(frame.path)).relative_to(images).as_posix()]
    return [Picture(frame) for frame in frames if frame.path.is_file()][::EVERY]
