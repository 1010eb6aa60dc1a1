"""What a user has on disk -> Views: a folder of photos, a list of files, a transforms.json, a COLMAP model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from da3_splat.geometry.projection import pixel_grid
from da3_splat.io.images import list_images, read_image
from da3_splat.io.transforms_json import Frame, read_transforms
from da3_splat.types import Cameras, Views

PATCH = 14


def load_views(
    source: str | Path | Sequence[str | Path],
    resolution: int = 504,
    max_views: int | None = None,
    progress: Callable[[Sequence], Sequence] = lambda items: items,
) -> Views:
    """The pictures of `source` as Views of batch size 1, with cameras and sparse points where it has them.

    `source`: a folder of pictures, picture files, a transforms.json or its folder, a COLMAP model or the folder around
    it. Each picture keeps its aspect: its longest side becomes `resolution`, both sides are snapped to multiples of 14,
    and the intrinsics follow; pictures of different size are cropped around the centre to the smallest. The frame of
    the file is kept. `max_views` takes evenly spaced ones. ValueError names the file that is bad, and why.
    """
    frames, points, colors = find_frames(source)
    return read_frames(evenly_spaced(frames, max_views), points, colors, resolution, progress)


def evenly_spaced(items: list, count: int | None) -> list:
    """`count` of the items, evenly spaced, the first and last included; all of them for None."""
    if count is None or count >= len(items):
        return items
    if count < 1:
        raise ValueError(f"max_views: expected at least 1, got {count}")
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def find_frames(source) -> tuple[list[Frame | Path], np.ndarray | None, np.ndarray | None]:
    """What there is to load: frames with cameras, or plain picture files; sparse points and colours or None."""
    if not isinstance(source, (str, Path)):
        paths = [Path(item) for item in source]
        if not paths:
            raise ValueError("load_views: expected at least one image, got an empty list")
        return paths, None, None
    path = Path(source)
    if path.is_file() and path.suffix.lower() == ".json":
        return _from_transforms(path)
    if path.is_file():
        return [path], None, None
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if (path / "transforms.json").is_file():
        return _from_transforms(path / "transforms.json")
    from da3_splat.io import colmap  # pycolmap takes a moment to import

    model = colmap.find_model(path)
    if model is None:
        return list_images(path), None, None
    around = path if model == path / "sparse" or model.parent == path / "sparse" else model
    candidates = [around / "images", around, around.parent / "images", around.parent.parent / "images"]
    images = next((folder for folder in candidates if folder.is_dir() and folder.name == "images"), around)
    return colmap.read_colmap(model, images)


def _from_transforms(path: Path):
    from da3_splat.io.ply import load_points

    frames, cloud = read_transforms(path)
    return frames, *(load_points(cloud) if cloud is not None and cloud.is_file() else (None, None))


def read_frames(
    frames: Sequence[Frame | Path],
    points: np.ndarray | None,
    colors: np.ndarray | None,
    resolution: int,
    progress: Callable[[Sequence], Sequence] = lambda items: items,
) -> Views:
    """Read and resize the pictures of `frames` (all with cameras or none) to one size."""
    if resolution < PATCH:
        raise ValueError(f"resolution: expected at least {PATCH} pixels, got {resolution}")
    images, cameras = [], []
    for frame in progress(frames):
        posed = isinstance(frame, Frame)
        # Cameras are calibrated on the pixels as they are stored, whatever EXIF says of the way up.
        picture = read_image(frame.path, upright=False) if posed else read_image(frame)
        if posed and abs(picture.width * frame.height / (picture.height * frame.width) - 1) > 0.01:
            raise ValueError(
                f"{frame.path}: its camera is of a {frame.width}x{frame.height} picture, "
                f"but it has {picture.width}x{picture.height} pixels"
            )
        height, width = snapped_size(picture.height, picture.width, resolution)
        pixels = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS), np.float32) / 255
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        if posed:
            camera = Cameras(
                world_to_camera=frame.world_to_camera.float()[None, None],
                intrinsics=frame.intrinsics[None, None].float(),
                height=frame.height,
                width=frame.width,
            ).resized(height, width)
            if any(frame.distortion):
                image = undistort(image, camera.intrinsics[0, 0], frame.distortion)
            cameras.append(camera)
        images.append(image)
    images, cameras = to_one_size(images, cameras)
    height, width = images[0].shape[1:]
    joined = None
    if cameras:
        joined = Cameras(
            world_to_camera=torch.cat([camera.world_to_camera for camera in cameras], dim=1),
            intrinsics=torch.cat([camera.intrinsics for camera in cameras], dim=1),
            height=height,
            width=width,
        )
    return Views(
        images=torch.stack(images)[None],
        cameras=joined,
        names=tuple((frame.path if isinstance(frame, Frame) else Path(frame)).name for frame in frames),
        points=None if points is None else torch.from_numpy(points),
        point_colors=None if colors is None else torch.from_numpy(colors),
    )


def to_one_size(images: list[Tensor], cameras: list[Cameras]) -> tuple[list[Tensor], list[Cameras]]:
    """Pictures (3,H,W) and their cameras (none, or one each), cropped around the centre to one size."""
    height, width = min(image.shape[1] for image in images), min(image.shape[2] for image in images)
    corners = [((image.shape[1] - height) // 2, (image.shape[2] - width) // 2) for image in images]
    images = [image[:, top : top + height, left : left + width] for image, (top, left) in zip(images, corners)]
    return images, [camera.cropped(top, left, height, width) for camera, (top, left) in zip(cameras, corners)]


def snapped_size(height: int, width: int, resolution: int) -> tuple[int, int]:
    """Size with the longest side at `resolution`, each side at the nearest multiple of 14 (ties up, at least 14)."""
    scale = resolution / max(height, width)

    def snap(side: int) -> int:
        return max(PATCH, int(round(side * scale) / PATCH + 0.5) * PATCH)

    return snap(height), snap(width)


def undistort(image: Tensor, intrinsics: Tensor, distortion: tuple[float, ...]) -> Tensor:
    """The picture (3,H,W) as a pinhole camera of the same intrinsics sees it; distortion is OpenCV's k1, k2, p1, p2."""
    k1, k2, p1, p2 = distortion
    height, width = image.shape[1:]
    focal, center = intrinsics.diagonal()[:2], intrinsics[:2, 2]
    x, y = ((pixel_grid(height, width, intrinsics)[..., :2] - center) / focal).unbind(-1)
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2 * r2
    moved_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    moved_y = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    pixels = torch.stack([moved_x, moved_y], dim=-1) * focal + center
    normalised = pixels / pixels.new_tensor([width, height]) * 2 - 1
    return torch.nn.functional.grid_sample(
        image[None], normalised[None], mode="bilinear", padding_mode="border", align_corners=False
    )[0]
