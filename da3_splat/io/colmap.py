"""COLMAP: reading and writing sparse models, and making one from photos, all through pycolmap."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycolmap
import torch

from da3_splat.io.colmap_binary import check_model
from da3_splat.io.frames import PINHOLE_MODELS, Frame, Lens, check_camera
from da3_splat.io.images import SUFFIXES, read_image
from da3_splat.limits import check_views, inside
from da3_splat.types import Cameras

MODEL_FILES = ("cameras.bin", "cameras.txt")


def find_model(folder: Path) -> Path | None:
    """The folder of a COLMAP model at `folder`, `folder`/sparse/0 or `folder`/sparse, None where there is none."""
    for candidate in (folder, folder / "sparse" / "0", folder / "sparse"):
        if any((candidate / name).is_file() for name in MODEL_FILES):
            return candidate
    return None


def read_colmap(model: Path, images: Path | list[Path]) -> tuple[list[Frame], np.ndarray, np.ndarray]:
    """Frames of the posed pictures by name, and the sparse points (P,3) with colours (P,3) in [0,1].

    Binary or text, every camera model but EQUIRECTANGULAR. Of several folders `images`, the first that holds the first
    picture is where they are.
    """
    try:
        check_model(model)
        reconstruction = pycolmap.Reconstruction(str(model))
    except (RuntimeError, ValueError, OSError, IndexError, OverflowError) as error:
        raise ValueError(f"{model}: not a readable COLMAP model ({error})") from error
    names = sorted(image.name for image in reconstruction.images.values() if image.has_pose)
    if not names:
        raise ValueError(f"{model}: no posed images in this COLMAP model")
    check_views(len(names), str(model))
    folders = [images] if isinstance(images, Path) else images
    folder = next((folder for folder in folders if _picture(folder, names[0]).is_file()), folders[0])
    frames = frames_of(reconstruction, folder)
    return frames, *points_of(reconstruction)


def frames_of(reconstruction: pycolmap.Reconstruction, images: Path) -> list[Frame]:
    """Frames by name; a lens that distorts comes along, for undistortion when the picture is read."""
    frames = []
    for image in sorted(reconstruction.images.values(), key=lambda image: image.name):
        if not image.has_pose:
            continue
        camera = reconstruction.cameras[image.camera_id]
        if camera.model.name == "EQUIRECTANGULAR":
            raise ValueError(f"{image.name}: camera model EQUIRECTANGULAR is not supported; use perspective pictures")
        world_to_camera = torch.eye(4, dtype=torch.float64)
        world_to_camera[:3] = torch.from_numpy(image.cam_from_world().matrix())
        intrinsics = torch.from_numpy(camera.calibration_matrix())
        check_camera(world_to_camera, intrinsics, camera.height, camera.width, f"{image.name}: in this COLMAP model")
        plain = camera.model.name in PINHOLE_MODELS or not any(camera.params[camera.extra_params_idxs()])
        plain &= not camera.is_perspective_fisheye()
        frames.append(
            Frame(
                path=_picture(images, image.name),
                height=camera.height,
                width=camera.width,
                world_to_camera=world_to_camera,
                intrinsics=intrinsics,
                lens=None if plain else Lens(camera.model.name, tuple(float(value) for value in camera.params)),
            )
        )
    return frames


def _picture(images: Path, name: str) -> Path:
    """The file of a picture; one saved in another format since (a.png -> a.jpg) is found by its stem."""
    path = inside(images, name, "COLMAP model")
    if path.is_file() or not path.stem:
        return path
    others = [path.with_suffix(suffix) for suffix in SUFFIXES if path.with_suffix(suffix).is_file()]
    return inside(images, str(others[0].relative_to(images)), "COLMAP model") if others else path


def points_of(reconstruction: pycolmap.Reconstruction) -> tuple[np.ndarray, np.ndarray]:
    """Sparse points (P,3) float32 and colours (P,3) in [0,1], by their number."""
    points = [reconstruction.points3D[key] for key in sorted(reconstruction.points3D)]
    xyz = np.array([point.xyz for point in points], np.float32).reshape(-1, 3)
    rgb = np.array([point.color for point in points], np.float32).reshape(-1, 3) / 255
    finite = np.isfinite(xyz).all(axis=1)
    return xyz[finite], rgb[finite]


def write_colmap(
    folder: str | Path,
    cameras: Cameras | list[Cameras],
    names: list[str],
    points: np.ndarray,
    colors: np.ndarray,
    seen: np.ndarray | None = None,
) -> None:
    """Write a sparse model (cameras, images, points3D .bin and what else COLMAP writes) into `folder`.

    cameras (1,V) of the pictures `names`, or a list of V cameras (1,1) of pictures of different size; points (P,3) with
    colours (P,3) in [0,1]. `seen` (V,P) bool says which picture saw which point, the point's track; None: every
    picture that has it in front and inside. Cameras become PINHOLE, one for all pictures that share size and
    intrinsics. Nothing given is changed.
    """
    single = [cameras.select([i]) for i in range(len(names))] if isinstance(cameras, Cameras) else cameras
    pixels, inside = zip(*(_observed(camera, points) for camera in single))
    seen = np.stack(inside) if seen is None else seen & np.stack(inside)
    model = pycolmap.Reconstruction()
    known: dict[tuple, int] = {}
    observations: list[list[pycolmap.TrackElement]] = [[] for _ in range(len(points))]
    for index, (camera, name) in enumerate(zip(single, names), start=1):
        k = camera.intrinsics[0, 0].double().tolist()
        shape = (camera.width, camera.height, k[0][0], k[1][1], k[0][2], k[1][2])
        if shape not in known:
            known[shape] = len(known) + 1
            model.add_camera_with_trivial_rig(
                pycolmap.Camera(camera_id=known[shape], model="PINHOLE", width=shape[0], height=shape[1],
                                params=list(shape[2:]))
            )  # fmt: skip
        shown = np.flatnonzero(seen[index - 1])
        image = pycolmap.Image(name=name, keypoints=pixels[index - 1][shown], camera_id=known[shape], image_id=index)
        pose = camera.world_to_camera[0, 0, :3].double().numpy()
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose))
        for number, point in enumerate(shown):
            observations[point].append(pycolmap.TrackElement(index, number))
    for point, color, elements in zip(points, (colors.clip(0, 1) * 255 + 0.5).astype(np.uint8), observations):
        model.add_point3D(point.astype(np.float64), pycolmap.Track(elements), color)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part") as work:
        model.write(work)
        for file in sorted(Path(work).iterdir()):
            file.replace(folder / file.name)


def _observed(camera: Cameras, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (P,2) of points in one camera, and whether they are in front of it and inside its picture (P)."""
    matrix = camera.world_to_camera[0, 0].double().numpy()
    local = points.astype(np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = (local @ camera.intrinsics[0, 0].double().numpy().T)[:, :2] / local[:, 2:]
    inside = (local[:, 2] > 1e-6) & (pixels >= 0).all(axis=1)
    return pixels, inside & (pixels[:, 0] < camera.width) & (pixels[:, 1] < camera.height)


def run_colmap(frames: list[Frame], progress: Callable[[str], None]) -> tuple[list[Frame], np.ndarray, np.ndarray]:
    """Pose pictures by incremental structure from motion (pycolmap, CPU): those that found a place, sparse points.

    ValueError where fewer than two do; `progress` is told each stage.
    """
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)  # what fails is told by our own errors
    with tempfile.TemporaryDirectory(prefix="da3_splat_colmap_") as work:
        folder, database = Path(work) / "images", Path(work) / "database.db"
        folder.mkdir()
        sources = _gathered(frames, folder)
        pycolmap.set_random_seed(0)
        progress("finding features")
        options = pycolmap.ImageReaderOptions()
        options.camera_model = "SIMPLE_RADIAL"
        one_size = len({read_image(folder / name, upright=False).size for name in sources}) == 1
        mode = pycolmap.CameraMode.SINGLE if one_size else pycolmap.CameraMode.AUTO
        try:
            pycolmap.extract_features(
                database, folder, image_names=list(sources), camera_mode=mode, reader_options=options
            )
            progress("matching")
            pycolmap.match_exhaustive(database)
            progress("reconstructing")
            models = pycolmap.incremental_mapping(database, folder, work)
        except RuntimeError as error:
            raise ValueError(f"COLMAP failed ({error})") from error
        if not models:
            raise ValueError("COLMAP could not connect the photos; take more, with more overlap")
        best = max(models.values(), key=lambda model: model.num_reg_images())
        placed = [_placed(frame, sources[frame.path.name]) for frame in frames_of(best, folder)]
        if len(placed) < 2:
            raise ValueError(f"COLMAP placed {len(placed)} of {len(frames)} photos; take more, with more overlap")
        return placed, *points_of(best)


def _gathered(frames: list[Frame], folder: Path) -> dict[str, Frame]:
    """Copy the pictures into one folder under names that keep their order; {name: frame}."""
    sources = {}
    for index, frame in enumerate(frames):
        if frame.picture is not None:
            name = f"{index:05d}.png"
            frame.picture.save(folder / name)
        else:
            name = f"{index:05d}{frame.path.suffix}"
            with frame.path.open("rb") as source, (folder / name).open("wb") as copy:
                shutil.copyfileobj(source, copy)
        sources[name] = frame
    return sources


def _placed(posed: Frame, source: Frame) -> Frame:
    """The source frame with the camera that COLMAP found for its copy."""
    return Frame(
        path=source.path,
        label=source.name,
        picture=source.picture,
        mask=source.mask,
        height=posed.height,
        width=posed.width,
        world_to_camera=posed.world_to_camera,
        intrinsics=posed.intrinsics,
        lens=posed.lens,
    )
