"""Synthetic scenes on disk exactly as DL3DV and MegaDepth publish theirs: for tests, and to try a training run on."""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import torch
from torch import Tensor

from da3_splat.data.colmap_text import RawCamera
from da3_splat.data.megadepth import MODELS, PICTURES, PREFIXES, undistorted_intrinsics
from da3_splat.data.synthetic import render_worlds, sample_cameras, sample_worlds
from da3_splat.geometry.rotations import matrix_to_quaternion
from da3_splat.io.files import replacing
from da3_splat.io.frames import Frame
from da3_splat.io.images import write_image
from da3_splat.io.transforms_json import world_to_camera_to_opengl
from da3_splat.types import Cameras, Views

# What Nerfstudio of DL3DV's days did to COLMAP's world: (x, y, z) -> (y, x, -z). It is its own inverse.
WORLD_SWAP = ((0.0, 1.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, -1.0, 0.0), (0.0, 0.0, 0.0, 1.0))


def scene_hash(seed: int) -> str:
    """A name such as DL3DV's scenes have: 64 hexadecimal digits."""
    return hashlib.sha256(f"synthetic scene {seed}".encode()).hexdigest()


def write_dl3dv_scene(
    folder: Path,
    views: Views,
    name: str,
    factors: Sequence[int] = (4,),
    distortion: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
    benchmark: bool = False,
) -> Path:
    """One scene (batch size 1) as folder/<name> of DL3DV-ALL unpacked, or of DL3DV-Benchmark; returns its folder.

    The pictures go to images_<first of factors> as they are and to the other images_<factor> resized; transforms.json
    is of the full size, which is not there, and lists files under images/. `distortion` (k1, k2, p1, p2) is written
    into it; the pictures are not bent.
    """
    base = folder / name / "nerfstudio" if benchmark else folder / name
    height, width = views.images.shape[-2:]
    full = views.known_cameras.resized(height * factors[0], width * factors[0])
    names = [f"frame_{index + 1:05d}.png" for index in range(views.images.shape[1])]
    for factor in factors:
        size = (full.width // factor, full.height // factor)
        for picture, image in zip(names, views.images[0]):
            pixels = image.permute(1, 2, 0).numpy()
            if factor != factors[0]:
                pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
            write_image(base / f"images_{factor}" / picture, pixels)
    poses = full.world_to_camera.new_tensor(WORLD_SWAP).double() @ world_to_camera_to_opengl(
        full.world_to_camera[0].double()
    )
    intrinsics = full.intrinsics[0, 0].double()
    content = {
        "w": full.width,
        "h": full.height,
        "fl_x": intrinsics[0, 0].item(),
        "fl_y": intrinsics[1, 1].item(),
        "cx": intrinsics[0, 2].item(),
        "cy": intrinsics[1, 2].item(),
        **dict(zip(("k1", "k2", "p1", "p2"), distortion)),
        "camera_model": "OPENCV",
        "frames": [
            {"file_path": f"images/{picture}", "transform_matrix": pose.tolist(), "colmap_im_id": index + 1}
            for index, (picture, pose) in enumerate(zip(names, poses))
        ],
    }
    with replacing(base / "transforms.json") as beside:
        beside.write_text(json.dumps(content, indent=4))
    return folder / name


def write_dl3dv_zip(folder: Path, views: Views, name: str, factors: Sequence[int] = (4,)) -> Path:
    """The same scene of DL3DV-ALL as folder/<name>.zip with <name>/ in it; returns the zip."""
    with tempfile.TemporaryDirectory(prefix="da3_splat_") as work, replacing(folder / f"{name}.zip") as beside:
        scene = write_dl3dv_scene(Path(work), views, name, factors)
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(path for path in scene.rglob("*") if path.is_file()):
                archive.write(path, path.relative_to(work))
    return folder / f"{name}.zip"


@dataclass(frozen=True)
class WrittenPicture:
    """The truth of one undistorted picture: its frame, z-depth (H,W), and what the raw photo was taken with."""

    frame: Frame
    depth: Tensor
    raw: RawCamera


def write_megadepth_scene(
    root: Path,
    landmark: str,
    number: int,
    views: int,
    height: int,
    width: int,
    seed: int,
    radial: float = -0.08,
    points_a_view: int = 40,
    supersample: int = 2,
) -> list[WrittenPicture]:
    """Model `number` of a landmark under `root`, with the folders of the download; returns the truth.

    Photos differ in size (the first is height x width), focal length and distortion, and every third is upright. The
    raw ones are larger than the undistorted ones.
    """
    dense = root / PREFIXES[1] / PICTURES / landmark / f"dense{number}"
    model = root / MODELS / landmark / "sparse" / "manhattan" / str(number)
    worlds = sample_worlds(1, seed)
    poses = sample_cameras(worlds, views, height, width, seed + 1, arc=60)
    written, points, colors, seen = [], [], [], []
    generator = torch.Generator().manual_seed(seed)
    for index in range(views):
        tall, wide = height + 14 * (index % 2), width
        if index % 3 == 2:
            tall, wide = wide, tall
        raw = _raw_camera(tall, wide, radial * (1 + 0.2 * index), 0.9 + 0.1 * (index % 4))
        camera = Cameras(
            world_to_camera=poses.world_to_camera[:, [index]],
            intrinsics=undistorted_intrinsics(raw, tall, wide).float()[None, None],
            height=tall,
            width=wide,
        )
        images, truth = render_worlds(worlds, camera, supersample)
        pixels, name = images[0, 0].permute(1, 2, 0).numpy(), f"{10_000 + seed}_{index:04d}_o"
        write_image(dense / "imgs" / f"{name}.jpg", pixels)
        write_image(model.parents[2] / "images" / f"{name}.jpg", _bent(pixels, camera, raw))
        _write_depth(dense / "depths" / f"{name}.h5", truth.depth[0, 0])
        frame = Frame(
            path=dense / "imgs" / f"{name}.jpg",
            height=tall,
            width=wide,
            world_to_camera=camera.world_to_camera[0, 0].double(),
            intrinsics=camera.intrinsics[0, 0].double(),
        )
        written.append(WrittenPicture(frame, truth.depth[0, 0], raw))
        chosen = torch.nonzero(truth.depth.flatten() > 0)[:, 0]
        chosen = chosen[torch.randperm(len(chosen), generator=generator)[:points_a_view]]
        points.append(truth.points().reshape(-1, 3)[chosen].numpy())
        colors.append(pixels.reshape(-1, 3)[chosen.numpy()])
        seen.append(_raw_pixels(chosen, camera, raw))
    _write_model(model, written, points, colors, seen)
    return written


def write_scene_info(
    path: Path, root: Path, pictures: Sequence[WrittenPicture], overlap: Tensor, pairs: Tensor | None = None
) -> None:
    """A scene-info archive (see `data/scene_info.py`) of pictures; overlap (N,N), pairs (P,3) of i, j, overlap."""
    frames = [picture.frame for picture in pictures]
    paths = [Path(str(frame.path)) for frame in frames]
    depths = [path.parents[1] / "depths" / f"{path.stem}.h5" for path in paths]
    arrays: dict[str, Any] = {
        "image_paths": np.array([path.relative_to(root).as_posix() for path in paths]),
        "depth_paths": np.array([depth.relative_to(root).as_posix() if depth.is_file() else "" for depth in depths]),
        "intrinsics": torch.cat([frame.camera.intrinsics[0] for frame in frames]).numpy(),
        "poses": torch.stack([frame.pose for frame in frames]).numpy(),
        "overlap_matrix": overlap.float().numpy(),
    }
    if pairs is not None:
        arrays["pair_infos"] = pairs.float().numpy()
    with replacing(path) as beside:
        np.savez(beside, **arrays)


def _raw_camera(height: int, width: int, radial: float, zoom: float) -> RawCamera:
    raw_height, raw_width = round(1.25 * height), round(1.25 * width)
    focal = zoom * max(raw_height, raw_width)
    return RawCamera(raw_width, raw_height, focal, focal, raw_width / 2, raw_height / 2, radial)


def _write_depth(path: Path, depth: Tensor) -> None:
    with replacing(path) as beside, h5py.File(beside, "w") as file:
        file.create_dataset("depth", data=depth.numpy().astype(np.float32))


def _matrices(camera: Cameras, raw: RawCamera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Raw and undistorted intrinsics with pixel centres at whole numbers, and the distortion: what OpenCV wants."""
    before = np.array([[raw.fx, 0, raw.cx - 0.5], [0, raw.fy, raw.cy - 0.5], [0, 0, 1]])
    after = camera.intrinsics[0, 0].double().numpy().copy()
    after[:2, 2] -= 0.5
    return before, after, np.array([raw.radial, 0.0, 0.0, 0.0])


def _bent(pixels: np.ndarray, camera: Cameras, raw: RawCamera) -> np.ndarray:
    """The raw photo (H',W',3) of an undistorted picture; its border, which undistortion cut off, is made up."""
    before, after, bend = _matrices(camera, raw)
    grid = np.stack(np.meshgrid(np.arange(raw.width), np.arange(raw.height)), axis=-1).reshape(-1, 1, 2)
    straight = cv2.undistortPoints(grid.astype(np.float64), before, bend, P=after)
    straight = straight.reshape(raw.height, raw.width, 2).astype(np.float32)
    return cv2.remap(pixels, straight[..., 0], straight[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _raw_pixels(chosen: Tensor, camera: Cameras, raw: RawCamera) -> np.ndarray:
    """Where pixels (P) of the undistorted picture lie in the raw photo (P,2), centres at +0.5."""
    rows, columns = chosen // camera.width + 0.5, chosen % camera.width + 0.5
    intrinsics = camera.intrinsics[0, 0]
    x, y = (columns - intrinsics[0, 2]) / intrinsics[0, 0], (rows - intrinsics[1, 2]) / intrinsics[1, 1]
    factor = 1 + raw.radial * (x * x + y * y)
    return torch.stack([raw.fx * x * factor + raw.cx, raw.fy * y * factor + raw.cy], dim=-1).numpy()


def _write_model(
    model: Path,
    written: list[WrittenPicture],
    points: list[np.ndarray],
    colors: list[np.ndarray],
    seen: list[np.ndarray],
) -> None:
    """cameras.txt, images.txt, points3D.txt as COLMAP writes them; the points of a picture are seen in it alone."""
    cameras = [
        "# Camera list with one line of data per camera:",
        "#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]",
        f"# Number of cameras: {len(written)}",
    ]
    images = [
        "# Image list with two lines of data per image:",
        "#   IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME",
        "#   POINTS2D[] as (X, Y, POINT3D_ID)",
        f"# Number of images: {len(written)}",
    ]
    cloud = [
        "# 3D point list with one line of data per point:",
        "#   POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)",
        f"# Number of points: {sum(map(len, points))}",
    ]
    for number, picture in enumerate(written, start=1):
        raw, pose, pixels = picture.raw, picture.frame.pose, seen[number - 1]
        cameras.append(
            f"{number} SIMPLE_RADIAL {raw.width} {raw.height} {raw.fx!r} {raw.cx!r} {raw.cy!r} {raw.radial!r}"
        )
        numbers = [*matrix_to_quaternion(pose[:3, :3]).tolist(), *pose[:3, 3].tolist()]
        images.append(f"{number} {' '.join(map(repr, numbers))} {number} {picture.frame.path.name}")
        start = len(cloud) - 2  # COLMAP counts points from 1, and there are three lines of comment
        images.append(" ".join(f"{x:.3f} {y:.3f} {start + index}" for index, (x, y) in enumerate(pixels.tolist())))
        for index, (xyz, rgb) in enumerate(zip(points[number - 1].tolist(), colors[number - 1])):
            red, green, blue = (rgb * 255 + 0.5).astype(int).tolist()
            place = " ".join(map(repr, xyz))
            cloud.append(f"{start + index} {place} {red} {green} {blue} 0.5 {number} {index}")
    for name, lines in (("cameras.txt", cameras), ("images.txt", images), ("points3D.txt", cloud)):
        with replacing(model / name) as beside:
            beside.write_text("\n".join(lines) + "\n")
