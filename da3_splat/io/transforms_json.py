"""Nerfstudio's transforms.json: OpenGL camera-to-world matrices, intrinsics and lens shared or per frame."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from da3_splat.geometry.poses import intrinsics_matrix
from da3_splat.io.files import replacing
from da3_splat.io.frames import Frame, Lens, check_camera
from da3_splat.io.json_files import json_number, load_json
from da3_splat.limits import check_views, inside
from da3_splat.types import Cameras

PERSPECTIVE = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "FULL_OPENCV")


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
    content = load_json(path)
    frames = content.get("frames") if isinstance(content, dict) else None
    if frames is None:
        raise ValueError(f"{path}: no list of frames")
    if not isinstance(frames, list) or not frames:
        raise ValueError(f"{path}: no frames")
    check_views(len(frames), str(path))
    folder = path.parent
    points = content.get("ply_file_path")
    if points is not None and not isinstance(points, str):
        raise ValueError(f"{path}: ply_file_path: expected a file name, got {points!r:.80}")
    return [_frame(folder, content, frame, f"{path}: frame {i}") for i, frame in enumerate(frames)], (
        inside(folder, points, str(path)) if points else None
    )


def _frame(folder: Path, shared: dict, frame: dict, where: str) -> Frame:
    if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
        raise ValueError(f"{where}: no file_path")

    def number(name: str, default: float | None = None) -> float:
        return json_number(frame.get(name, shared.get(name, default)), f"{where}: {name}")

    width, height = int(number("w")), int(number("h"))
    fx = number("fl_x")
    fy = number("fl_y", fx)
    if min(width, height) <= 0 or fx <= 0 or fy <= 0:
        raise ValueError(f"{where}: expected positive w, h, fl_x, fl_y, got {width}, {height}, {fx}, {fy}")
    matrix = rigid_matrix(frame.get("transform_matrix"), where)
    values = [fx, fy, number("cx", width / 2), number("cy", height / 2)]
    kind = frame.get("camera_model", shared.get("camera_model", "OPENCV"))
    mask = frame.get("mask_path")
    if mask is not None and not isinstance(mask, str):
        raise ValueError(f"{where}: mask_path: expected a file name, got {mask!r}")
    world_to_camera = opengl_to_world_to_camera(matrix)
    intrinsics = intrinsics_matrix(*(torch.tensor(value, dtype=torch.float64) for value in values))
    check_camera(world_to_camera, intrinsics, height, width, where)
    return Frame(
        path=inside(folder, frame["file_path"], where),
        mask=None if mask is None else inside(folder, mask, where),
        height=height,
        width=width,
        world_to_camera=world_to_camera,
        intrinsics=intrinsics,
        lens=_lens(
            kind, values, [number(name, 0.0) for name in ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")], where
        ),
    )


def rigid_matrix(value: object, where: str) -> Tensor:
    """A rigid 4x4 float64 matrix of the 3x4 or 4x4 lists of a transform_matrix."""
    try:
        matrix = torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{where}: transform_matrix is missing or not a matrix of numbers") from None
    if matrix.shape == (3, 4):
        matrix = torch.cat([matrix, matrix.new_tensor([[0.0, 0.0, 0.0, 1.0]])])
    if matrix.shape != (4, 4) or not bool(matrix.isfinite().all()):
        raise ValueError(f"{where}: transform_matrix: expected 4x4 finite numbers")
    rotation = matrix[:3, :3]
    if (rotation @ rotation.T - torch.eye(3, dtype=torch.float64)).abs().max() > 1e-3 or torch.linalg.det(rotation) < 0:
        raise ValueError(f"{where}: transform_matrix: its rotation is not a rotation")
    if matrix[3].tolist() != [0, 0, 0, 1]:
        raise ValueError(f"{where}: transform_matrix: expected 0, 0, 0, 1 as its last row")
    return matrix


def _lens(kind: str, pinhole: list[float], distortion: list[float], where: str) -> Lens | None:
    """The lens in COLMAP's words: Nerfstudio's names are OpenCV's, k4 of a fisheye included."""
    k1, k2, p1, p2, k3, k4, _, _ = distortion
    if kind == "OPENCV_FISHEYE":
        return Lens(kind, (*pinhole, k1, k2, k3, k4))
    if kind not in PERSPECTIVE:
        known = ", ".join((*PERSPECTIVE, "OPENCV_FISHEYE"))
        raise ValueError(f"{where}: expected a camera_model of {known}, got {kind}; undistort the images first")
    if kind != "FULL_OPENCV" and k4:
        raise ValueError(f"{where}: k4 without camera_model OPENCV_FISHEYE or FULL_OPENCV; undistort the images first")
    if not any(distortion):
        return None
    return (
        Lens("FULL_OPENCV", (*pinhole, *distortion))
        if any(distortion[4:])
        else Lens("OPENCV", (*pinhole, k1, k2, p1, p2))
    )


def write_transforms(
    path: str | Path,
    cameras: Cameras | list[Cameras],
    names: list[str],
    points: str | None = None,
    masks: list[str | None] | None = None,
) -> None:
    """Write cameras of the pictures `names` (relative to the folder of `path`); `points` is a PLY's name,
    `masks` name the pictures' masks (None: it has none).

    `cameras` are (1,V), or a list of V cameras (1,1) of pictures of different size. What all frames share stands once,
    at the top, where every reader looks for it.
    """
    single = [cameras.select([i]) for i in range(len(names))] if isinstance(cameras, Cameras) else cameras
    frames = []
    for name, mask, camera in zip(names, masks or [None] * len(names), single):
        k = camera.intrinsics[0, 0].double()
        lens = {"fl_x": k[0, 0].item(), "fl_y": k[1, 1].item(), "cx": k[0, 2].item(), "cy": k[1, 2].item()}
        pose = world_to_camera_to_opengl(camera.world_to_camera[0, 0].double())
        frames.append(
            {"file_path": name, "w": camera.width, "h": camera.height, **lens, "transform_matrix": pose.tolist()}
        )
        if mask is not None:
            frames[-1]["mask_path"] = mask
    shared = {key: frames[0][key] for key in ("w", "h", "fl_x", "fl_y", "cx", "cy")}
    shared = {key: value for key, value in shared.items() if all(frame[key] == value for frame in frames)}
    content: dict = {"camera_model": "OPENCV", **shared, "k1": 0.0, "k2": 0.0, "p1": 0.0, "p2": 0.0}
    if points:
        content["ply_file_path"] = points
    content["frames"] = [{key: value for key, value in frame.items() if key not in shared} for frame in frames]
    with replacing(path) as beside:
        beside.write_text(json.dumps(content, indent=1))
