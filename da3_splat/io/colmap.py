"""COLMAP: reading a sparse model, and making one from photos, both through pycolmap."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycolmap
import torch

from da3_splat.io.images import SUFFIXES, read_image
from da3_splat.io.transforms_json import Frame

PINHOLE = {"SIMPLE_PINHOLE", "PINHOLE"}
MODEL_FILES = ("cameras.bin", "cameras.txt")


def find_model(folder: Path) -> Path | None:
    """The folder of a COLMAP model at `folder`, `folder`/sparse/0 or `folder`/sparse, None where there is none."""
    for candidate in (folder, folder / "sparse" / "0", folder / "sparse"):
        if any((candidate / name).is_file() for name in MODEL_FILES):
            return candidate
    return None


def read_colmap(model: Path, images: Path) -> tuple[list[Frame], np.ndarray, np.ndarray]:
    """Frames of the posed pictures by name, and the sparse points (P,3) with colours (P,3) in [0,1]."""
    try:
        reconstruction = pycolmap.Reconstruction(str(model))
    except (RuntimeError, ValueError, OSError, MemoryError) as error:
        raise ValueError(f"{model}: not a readable COLMAP model ({error})") from error
    frames = frames_of(reconstruction, images)
    if not frames:
        raise ValueError(f"{model}: no posed images in this COLMAP model")
    return frames, *points_of(reconstruction)


def frames_of(reconstruction: pycolmap.Reconstruction, images: Path) -> list[Frame]:
    """Frames by name; OPENCV-like distortion (k1, k2, p1, p2) is kept, other models are an error."""
    frames = []
    for image in sorted(reconstruction.images.values(), key=lambda image: image.name):
        if not image.has_pose:
            continue
        camera = reconstruction.cameras[image.camera_id]
        kind, values = camera.model.name, list(camera.params)
        distortions = {
            **dict.fromkeys(PINHOLE, (0.0, 0.0, 0.0, 0.0)),
            "SIMPLE_RADIAL": (values[-1], 0.0, 0.0, 0.0),
            "RADIAL": (*values[-2:], 0.0, 0.0),
            "OPENCV": tuple(values[-4:]),
        }
        if kind not in distortions:
            raise ValueError(f"{image.name}: camera model {kind} is not supported, undistort the images first")
        world_to_camera = torch.eye(4, dtype=torch.float64)
        world_to_camera[:3] = torch.from_numpy(image.cam_from_world().matrix())
        frames.append(
            Frame(
                path=_picture(images, image.name),
                height=camera.height,
                width=camera.width,
                world_to_camera=world_to_camera,
                intrinsics=torch.from_numpy(camera.calibration_matrix()),
                distortion=tuple(float(value) for value in distortions[kind]),
            )
        )
    return frames


def _picture(images: Path, name: str) -> Path:
    """The file of a picture; one saved in another format since (a.png -> a.jpg) is found by its stem."""
    path = images / name
    if not path.resolve().is_relative_to(images.resolve()):
        raise ValueError(f"{name}: lies outside {images}")
    if path.is_file():
        return path
    others = [path.with_suffix(suffix) for suffix in SUFFIXES if path.with_suffix(suffix).is_file()]
    return others[0] if others else path


def points_of(reconstruction: pycolmap.Reconstruction) -> tuple[np.ndarray, np.ndarray]:
    """Sparse points (P,3) float32 and colours (P,3) in [0,1], by their number."""
    points = [reconstruction.points3D[key] for key in sorted(reconstruction.points3D)]
    xyz = np.array([point.xyz for point in points], np.float32).reshape(-1, 3)
    rgb = np.array([point.color for point in points], np.float32).reshape(-1, 3) / 255
    return xyz, rgb


def run_colmap(paths: list[Path], progress: Callable[[str], None]) -> tuple[list[Frame], np.ndarray, np.ndarray]:
    """Pose photos by incremental structure from motion (pycolmap, CPU): frames of the photos that found a place.

    ValueError where fewer than two do; `progress` is told each stage.
    """
    pycolmap.logging.minloglevel = pycolmap.logging.ERROR
    folder = paths[0].parent
    if any(path.parent != folder for path in paths):
        raise ValueError("--poses colmap: expected all photos in one folder")
    with tempfile.TemporaryDirectory(prefix="da3_splat_colmap_") as work:
        database = Path(work) / "database.db"
        pycolmap.set_random_seed(0)
        progress("finding features")
        options = pycolmap.ImageReaderOptions()
        options.camera_model = "SIMPLE_RADIAL"
        one_size = len({read_image(path, upright=False).size for path in paths}) == 1
        mode = pycolmap.CameraMode.SINGLE if one_size else pycolmap.CameraMode.AUTO
        names = [path.name for path in paths]
        try:
            pycolmap.extract_features(database, folder, image_names=names, camera_mode=mode, reader_options=options)
            progress("matching")
            pycolmap.match_exhaustive(database)
            progress("reconstructing")
            models = pycolmap.incremental_mapping(database, folder, work)
        except RuntimeError as error:
            raise ValueError(f"{folder}: COLMAP failed ({error})") from error
        if not models:
            raise ValueError(f"{folder}: COLMAP could not connect the photos; take more, with more overlap")
        best = max(models.values(), key=lambda model: model.num_reg_images())
        frames = frames_of(best, folder)
        if len(frames) < 2:
            raise ValueError(
                f"{folder}: COLMAP placed {len(frames)} of {len(paths)} photos; take more, with more overlap"
            )
        return frames, *points_of(best)
