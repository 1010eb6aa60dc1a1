"""MegaDepth as published: Internet photos, undistorted, with depth, and the COLMAP models of the photos as they were.

    MegaDepth_v1_SfM/<scene>/sparse/manhattan/<k>/{cameras,images,points3D}.txt
    phoenix/S6/zl548/MegaDepth_v1/<scene>/dense<k>/imgs/*.jpg, depths/*.h5 (dataset `depth`)

A landmark has several models k, each with its own frame and scale: each is a scene of its own here. The models
describe the raw photos; the pictures on disk are undistorted and come without intrinsics, so those are worked out
again. Sizes, intrinsics and the way up differ from picture to picture.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import h5py
import numpy as np
import torch
from torch import Tensor

from da3_splat.data.colmap_text import RawCamera, read_cameras, read_images, read_points
from da3_splat.io.frames import Frame
from da3_splat.io.images import SUFFIXES, picture_size
from da3_splat.limits import DEPTH_PIXELS, check_views, inside, regular_file

logger = logging.getLogger(__name__)

TEST_LANDMARKS = tuple(str(number) for number in range(5000, 5019))  # of DA3's novel views: never train on them
SMALLEST_DEPTH = 100 * 1024  # bytes: smaller files are ordinal masks (D2-Net's rule)
PICTURES, MODELS = "MegaDepth_v1", "MegaDepth_v1_SfM"
PREFIXES = ("", "phoenix/S6/zl548")


@dataclass(frozen=True)
class MegadepthReading:
    """frames sorted by name, the depth file of each or None, and a line for each thing that was left out."""

    frames: list[Frame]
    depths: list[Path | None]
    problems: list[str]


@dataclass(frozen=True)
class MegadepthScene:
    """Model k of a landmark: the folder dense<k> and the model of its raw photos; not opened before it is asked."""

    landmark: str
    number: int
    dense: Path
    model: Path

    @property
    def name(self) -> str:
        return f"{self.landmark}_{self.number}"

    def read(self, smallest_depth: int = SMALLEST_DEPTH) -> MegadepthReading:
        """The pictures that have a pose. A depth file below `smallest_depth` bytes is not offered as depth.

        ValueError where the scene as a whole cannot be read.
        """
        cameras, problems = read_cameras(self.model / "cameras.txt"), []
        images = {image.name: image for image in read_images(self.model / "images.txt")}
        pictures = _files(self.dense / "imgs", SUFFIXES)
        depths = {path.stem: path for path in _files(self.dense / "depths", (".h5",)).values()}
        frames, kept = [], []
        for name in sorted(pictures.keys() & images.keys()):
            try:
                if images[name].camera not in cameras:
                    raise ValueError(f"{self.model / 'images.txt'}: {name}: there is no camera {images[name].camera}")
                height, width = picture_size(pictures[name])
                intrinsics = undistorted_intrinsics(cameras[images[name].camera], height, width)
            except ValueError as error:
                problems.append(str(error))
                continue
            pose = images[name].world_to_camera
            frames.append(
                Frame(path=pictures[name], height=height, width=width, world_to_camera=pose, intrinsics=intrinsics)
            )
            depth = depths.get(Path(name).stem)
            small = depth is not None and depth.stat().st_size < smallest_depth
            if small:
                problems.append(f"{depth}: below {smallest_depth} bytes, an ordinal mask: not used as depth")
            kept.append(None if small else depth)
        for names, what in (
            (images.keys() - pictures.keys(), f"posed photos are not in {self.dense / 'imgs'}"),
            (pictures.keys() - images.keys(), f"pictures have no pose in {self.model / 'images.txt'}"),
        ):
            if names:
                problems.append(f"{self.dense}: {len(names)} {what} ({', '.join(sorted(names)[:3])})")
        if not frames:
            raise ValueError(f"{self.dense}: no picture can be used; the first problem: {problems[0]}")
        return MegadepthReading(frames, kept, problems)

    def frames(self) -> list[Frame]:
        """The frames that `read` finds; what it leaves out is logged."""
        reading = self.read()
        for problem in reading.problems:
            logger.warning(problem)
        return reading.frames

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """The model's sparse points (P,3) and colours (P,3) in [0,1], in the frame of the cameras."""
        return read_points(self.model / "points3D.txt")


def find_scenes(root: str | Path, models: str | Path | None = None) -> tuple[list[MegadepthScene], list[str]]:
    """All scenes under `root` by landmark and number, and a line for each folder that is none.

    `root` holds the download, or is the MegaDepth_v1 folder itself; MegaDepth_v1_SfM is looked for in it and in the
    folders above, or is `models`. No file is opened.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    places = [root / prefix / PICTURES for prefix in PREFIXES] + [root]
    pictures = next((place for place in places if any(place.glob("[0-9]*/dense*"))), None)
    if pictures is None:
        raise ValueError(f"{root}: no <scene>/dense<k> folders here or in {PREFIXES[1]}/{PICTURES}")
    models = _models_above(pictures) if models is None else Path(models)
    scenes, problems = [], []
    for landmark in sorted(path for path in pictures.iterdir() if path.is_dir() and path.name.isdigit()):
        numbers = [re.fullmatch(r"dense(\d+)", path.name) for path in landmark.iterdir()]
        for number in sorted(int(match[1]) for match in numbers if match):
            scene = _scene(landmark / f"dense{number}", models)
            if not (scene.dense / "imgs").is_dir():
                problems.append(f"{scene.dense}: no folder imgs")
            elif not (scene.model / "images.txt").is_file() or not (scene.model / "cameras.txt").is_file():
                problems.append(f"{scene.dense}: its model {scene.model} is not there")
            else:
                scenes.append(scene)
    return scenes, problems


def scene_at(dense: str | Path, models: str | Path | None = None) -> MegadepthScene:
    """The scene of one folder <scene>/dense<k>."""
    dense = Path(dense).absolute()
    if not re.fullmatch(r"dense\d+", dense.name) or not (dense / "imgs").is_dir():
        raise ValueError(f"{dense}: expected a folder <scene>/dense<k> with imgs in it")
    return _scene(dense, _models_above(dense.parents[1]) if models is None else Path(models))


def without_test_landmarks(scenes: Iterable[MegadepthScene]) -> list[MegadepthScene]:
    """The scenes to train on: all but the landmarks 5000 to 5018."""
    return [scene for scene in scenes if scene.landmark not in TEST_LANDMARKS]


def only_test_landmarks(scenes: Iterable[MegadepthScene]) -> list[MegadepthScene]:
    """The scenes that novel views are scored on: the landmarks 5000 to 5018."""
    return [scene for scene in scenes if scene.landmark in TEST_LANDMARKS]


def undistorted_intrinsics(camera: RawCamera, height: int, width: int) -> Tensor:
    """Intrinsics (3,3) float64 of the height x width picture that a raw photo was undistorted to.

    The largest upright window without blank pixels around the principal point, scaled to that size, the principal
    point in its middle: what DUSt3R and MapAnything assume of MegaDepth (OpenCV's alpha=0). OpenCV puts pixel centres
    at whole numbers, hence the halves.
    """
    raw = np.array([[camera.fx, 0, camera.cx - 0.5], [0, camera.fy, camera.cy - 0.5], [0, 0, 1]])
    bend = np.array([camera.radial, 0.0, 0.0, 0.0])
    optimal, _ = cv2.getOptimalNewCameraMatrix(
        raw, bend, (camera.width, camera.height), 0, (width, height), centerPrincipalPoint=True
    )
    new = np.asarray(optimal, np.float64)
    new[:2, 2] += 0.5
    if not np.isfinite(new).all() or min(new[0, 0], new[1, 1]) <= 0:
        raise ValueError(f"camera: its distortion {camera.radial} leaves no picture to undistort")
    return torch.from_numpy(new)


def read_depth(path: str | Path, keep_ordinal: bool = False) -> Tensor | None:
    """z-depth (H,W) float32 in the units of the model, 0 where it is not known.

    None for a file of ordinal labels (below 0 somewhere), unless `keep_ordinal`: then they are given as they are.
    """
    regular_file(path)
    try:
        with h5py.File(path, "r") as file:
            link = file.get("depth", getlink=True)
            depth = file["depth"] if isinstance(link, h5py.HardLink) else None
            if not isinstance(depth, h5py.Dataset) or depth.ndim != 2 or depth.dtype.kind not in "fiu":
                raise ValueError("expected a dataset `depth` of two dimensions")
            if depth.external or depth.is_virtual or not 0 < depth.size <= DEPTH_PIXELS:
                raise ValueError("its dataset `depth` is empty, too large or in another file")
            values = depth.astype(np.float32)[()]
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, OverflowError, AttributeError) as error:
        raise ValueError(f"{path}: not a readable depth file ({error})") from error
    if values.min() < 0:
        return torch.from_numpy(values) if keep_ordinal else None
    return torch.from_numpy(np.where(np.isfinite(values), values, 0))


def _scene(dense: Path, models: Path) -> MegadepthScene:
    landmark, number = dense.parent.name, int(dense.name.removeprefix("dense"))
    return MegadepthScene(landmark, number, dense, models / landmark / "sparse" / "manhattan" / str(number))


def _models_above(pictures: Path) -> Path:
    """MegaDepth_v1_SfM beside the pictures' folder or higher up (phoenix/S6/zl548 are three folders)."""
    above = [pictures, *pictures.absolute().parents][:6]
    places = [folder / prefix / MODELS for folder in above for prefix in PREFIXES]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise ValueError(f"{pictures}: no {MODELS} folder here or above; say where it is")
    return found


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    found = [p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith(".")]
    check_views(len(found), str(folder))
    return {path.name: inside(folder, path.name, str(folder)) for path in found}
