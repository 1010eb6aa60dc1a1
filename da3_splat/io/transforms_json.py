"""Nerfstudio's transforms.json: OpenGL camera-to-world matrices, intrinsics shared or per frame."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from da3_splat.geometry.poses import intrinsics_matrix
from da3_splat.io.files import replacing
from da3_splat.types import Cameras

DISTORTION = ("k1", "k2", "p1", "p2")
CAMERA_MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")


@dataclass(frozen=True)
class Frame:
    """One picture of a capture: its file, the size it was calibrated at, camera, distortion (k1, k2, p1, p2)."""

    path: Path
    height: int
    width: int
    world_to_camera: Tensor  # (4,4) float64
    intrinsics: Tensor  # (3,3) float64
    distortion: tuple[float, ...]


def opengl_to_world_to_camera(camera_to_world: Tensor) -> Tensor:
    """OpenCV world_to_camera (...,4,4) of OpenGL camera_to_world (y up, z backward)."""
    flip = torch.diag(camera_to_world.new_tensor([1.0, -1.0, -1.0, 1.0]))
    return torch.linalg.inv(camera_to_world @ flip)


def world_to_camera_to_opengl(world_to_camera: Tensor) -> Tensor:
    """OpenGL camera_to_world (...,4,4) of OpenCV world_to_camera."""
    flip = torch.diag(world_to_camera.new_tensor([1.0, -1.0, -1.0, 1.0]))
    return torch.linalg.inv(world_to_camera) @ flip


def read_transforms(path: str | Path) -> tuple[list[Frame], Path | None]:
    """Frames of a transforms.json in the order of the file, and its sparse point cloud if it names one.

    The frame of the file is kept (`applied_transform` is not undone). ValueError names what is wrong, and where.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text())
        frames = content["frames"]
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error
    except (KeyError, TypeError):
        raise ValueError(f"{path}: no list of frames") from None
    if not isinstance(frames, list) or not frames:
        raise ValueError(f"{path}: no frames")
    folder = path.parent
    points = content.get("ply_file_path")
    return [_frame(folder, content, frame, f"{path}: frame {i}") for i, frame in enumerate(frames)], (
        _inside(folder, points, str(path)) if points else None
    )


def _frame(folder: Path, shared: dict, frame: dict, where: str) -> Frame:
    if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
        raise ValueError(f"{where}: no file_path")

    def number(name: str, default: float | None = None) -> float:
        value = frame.get(name, shared.get(name, default))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{where}: {name}: expected a number, got {value!r}")
        return float(value)

    kind = frame.get("camera_model", shared.get("camera_model", "OPENCV"))
    if kind not in CAMERA_MODELS or any(number(name, 0.0) for name in ("k3", "k4")):
        raise ValueError(
            f"{where}: expected a camera_model of {', '.join(CAMERA_MODELS)} without k3 and k4, got {kind}; "
            "undistort the images first"
        )
    width, height = int(number("w")), int(number("h"))
    fx = number("fl_x")
    fy = number("fl_y", fx)
    if min(width, height) <= 0 or fx <= 0 or fy <= 0:
        raise ValueError(f"{where}: expected positive w, h, fl_x, fl_y, got {width}, {height}, {fx}, {fy}")
    try:
        matrix = torch.tensor(frame["transform_matrix"], dtype=torch.float64)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{where}: transform_matrix is missing or not a matrix of numbers") from None
    if matrix.shape == (3, 4):
        matrix = torch.cat([matrix, matrix.new_tensor([[0.0, 0.0, 0.0, 1.0]])])
    if matrix.shape != (4, 4) or not bool(matrix.isfinite().all()):
        raise ValueError(f"{where}: transform_matrix: expected 4x4 finite numbers")
    rotation = matrix[:3, :3]
    if (rotation @ rotation.T - torch.eye(3, dtype=torch.float64)).abs().max() > 1e-3 or torch.linalg.det(rotation) < 0:
        raise ValueError(f"{where}: transform_matrix: its rotation is not a rotation")
    center = (number("cx", width / 2), number("cy", height / 2))
    values = [torch.tensor(value, dtype=torch.float64) for value in (fx, fy, *center)]
    return Frame(
        path=_inside(folder, frame["file_path"], where),
        height=height,
        width=width,
        world_to_camera=opengl_to_world_to_camera(matrix),
        intrinsics=intrinsics_matrix(*values),
        distortion=tuple(number(name, 0.0) for name in DISTORTION),
    )


def _inside(folder: Path, name: str, where: str) -> Path:
    """The file `name` of the capture; a name that leads out of its folder is refused."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{where}: {name} lies outside {folder}")
    return path


def write_transforms(path: str | Path, cameras: Cameras, names: list[str], points: str | None = None) -> None:
    """Write cameras (1,V) of the pictures `names` (relative to the folder of `path`); `points` is a PLY's name."""
    content: dict = {"camera_model": "OPENCV", "w": cameras.width, "h": cameras.height}
    if points:
        content["ply_file_path"] = points
    matrices = world_to_camera_to_opengl(cameras.world_to_camera[0].double())
    content["frames"] = [
        {
            "file_path": name,
            "fl_x": k[0, 0].item(),
            "fl_y": k[1, 1].item(),
            "cx": k[0, 2].item(),
            "cy": k[1, 2].item(),
            "transform_matrix": matrix.tolist(),
        }
        for name, k, matrix in zip(names, cameras.intrinsics[0].double(), matrices)
    ]
    with replacing(path) as beside:
        beside.write_text(json.dumps(content, indent=1))
