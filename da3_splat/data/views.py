"""Files of a capture -> Views: read, undistort, resize to multiples of the patch, crop to one size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import grid_sample

from da3_splat.geometry.projection import pixel_grid
from da3_splat.io.frames import Frame, Lens
from da3_splat.io.images import Picture, read_image, read_picture
from da3_splat.types import Cameras, Views, Window

PATCH = 14


@dataclass(frozen=True)
class OneView:
    """One view before all are cropped to one size: image (3,H,W), camera (1,1), mask (H,W); None is not known."""

    image: Tensor
    camera: Cameras | None = None
    mask: Tensor | None = None
    window: Window | None = None
    focal: float = float("nan")


def read_frames(
    frames: Sequence[Frame],
    points: np.ndarray | None = None,
    colors: np.ndarray | None = None,
    resolution: int = 504,
    progress: Callable[[Iterable], Iterable] = lambda items: items,
    skipped: dict[int, str] | None = None,
) -> Views:
    """The pictures of `frames` as Views of batch size 1, with cameras if all frames have them.

    Each picture keeps its aspect (see `snapped_size`); pictures of different size are cropped around the centre to the
    smallest, as the official preprocessing does. A picture that cannot be read is a ValueError, or, where `skipped` is
    given, left out, with the reason in `skipped` at its index, as long as one remains.
    """
    if resolution < PATCH:
        raise ValueError(f"resolution: expected at least {PATCH} pixels, got {resolution}")
    posed = [frame.world_to_camera is not None for frame in frames]
    if any(posed) and not all(posed):
        raise ValueError(f"{frames[posed.index(False)].path}: has no camera, but others of this capture have one")
    reads, used = [], []
    for index, frame in enumerate(progress(frames)):
        try:
            reads.append(_read(frame, resolution))
            used.append(frame)
        except ValueError as error:
            if skipped is None:
                raise
            skipped[index] = str(error)
    if not reads:
        first = next(iter(skipped.values()), None) if skipped else None
        raise ValueError(f"no picture could be read: {first}" if first else "expected at least one picture")
    return join_views(
        reads,
        tuple(frame.name for frame in used),
        None if points is None else torch.from_numpy(points),
        None if colors is None else torch.from_numpy(colors),
    )


def join_views(
    reads: list[OneView],
    names: tuple[str, ...] = (),
    points: Tensor | None = None,
    point_colors: Tensor | None = None,
) -> Views:
    """Views of batch size 1, each cropped around its centre to the smallest height and width of all."""
    height, width = min(read.image.shape[1] for read in reads), min(read.image.shape[2] for read in reads)
    reads = [_cropped(read, height, width) for read in reads]
    windows = [read.window for read in reads if read.window is not None]
    cameras = masks = None
    if reads[0].camera is not None:
        cameras = Cameras.concatenate([read.camera for read in reads if read.camera is not None]).to(torch.float32)
    if any(read.mask is not None for read in reads):
        everything = torch.ones(height, width, dtype=torch.bool)
        masks = torch.stack([everything if read.mask is None else read.mask for read in reads])[None]
    focals = torch.tensor([read.focal for read in reads])
    return Views(
        images=torch.stack([read.image for read in reads])[None],
        cameras=cameras,
        names=names,
        points=points,
        point_colors=point_colors,
        masks=masks,
        windows=tuple(windows) if len(windows) == len(reads) else (),
        focals=None if bool(focals.isnan().all()) else focals,
    )


def original_picture(frame: Frame) -> Image.Image:
    """The picture of `frame` at its full size: upright, or, where it has a camera, as stored and undistorted."""
    rgb = _upright_or_stored(frame).rgb
    if frame.lens is None:
        return rgb
    pixels = torch.from_numpy(np.asarray(rgb, np.float32) / 255).permute(2, 0, 1)
    image, _ = undistort(pixels, frame)
    return Image.fromarray((image.permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8))


def _upright_or_stored(frame: Frame) -> Picture:
    """Cameras are calibrated on the pixels as they are stored, whatever EXIF says of the way up."""
    if frame.picture is not None:
        return Picture(frame.picture)
    return read_picture(frame.path, upright=frame.world_to_camera is None)


def _read(frame: Frame, resolution: int) -> OneView:
    picture = _upright_or_stored(frame)
    rgb, camera = picture.rgb, None if frame.world_to_camera is None else frame.camera
    if camera is not None and abs(rgb.width * camera.height / (rgb.height * camera.width) - 1) > 0.01:
        raise ValueError(
            f"{frame.path}: its camera is of a {frame.width}x{frame.height} picture, "
            f"but it has {rgb.width}x{rgb.height} pixels"
        )
    height, width = snapped_size(rgb.height, rgb.width, resolution)
    image = torch.from_numpy(np.asarray(rgb.resize((width, height), Image.Resampling.LANCZOS), np.float32) / 255)
    image, mask = image.permute(2, 0, 1), _mask(frame, picture, height, width)
    if camera is not None:
        camera = camera.resized(height, width)
        if frame.lens is not None:
            image, inside = undistort(image, frame)
            if mask is not None:
                inside = inside & (undistort(mask[None].float(), frame)[0][0] >= 0.5)
            mask = None if bool(inside.all()) else inside
    size = (rgb.height, rgb.width)
    window = Window(*size, 0.0, 0.0, *map(float, size))
    focal = float("nan") if picture.focal is None else picture.focal * width / rgb.width
    return OneView(image, camera, mask, window, focal)


def _mask(frame: Frame, picture: Picture, height: int, width: int) -> Tensor | None:
    """(height, width) bool: most of what a pixel covers is opaque and belongs to the scene. None: all of them."""
    parts = [] if picture.alpha is None else [picture.alpha]
    if frame.mask is not None:
        parts.append(read_image(frame.mask, upright=frame.world_to_camera is None).convert("L"))
    kept = [np.asarray(part.resize((width, height), Image.Resampling.BOX)) >= 128 for part in parts]
    return torch.from_numpy(np.logical_and.reduce(kept)) if kept else None


def _cropped(read: OneView, height: int, width: int) -> OneView:
    """The window height x width around the centre."""
    rows, columns = read.image.shape[1:]
    top, left = (rows - height) // 2, (columns - width) // 2
    area, window = (slice(top, top + height), slice(left, left + width)), read.window
    if window is not None:
        row, column = window.window_height / rows, window.window_width / columns
        corner = (window.top + top * row, window.left + left * column)
        window = Window(window.height, window.width, *corner, height * row, width * column)
    return replace(
        read,
        image=read.image[:, *area],
        mask=None if read.mask is None else read.mask[area],
        camera=None if read.camera is None else read.camera.cropped(top, left, height, width),
        window=window,
    )


def snapped_size(height: int, width: int, resolution: int) -> tuple[int, int]:
    """Size with the longest side at `resolution`, each side at the nearest multiple of 14 (ties up, at least 14)."""
    scale = resolution / max(height, width)

    def snap(side: int) -> int:
        return max(PATCH, int(round(side * scale) / PATCH + 0.5) * PATCH)

    return snap(height), snap(width)


def undistort(image: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
    """The picture (C,H,W) of a frame with a lens as a pinhole camera of the frame's intrinsics sees it, and (H,W) bool:
    which of its pixels the lens really saw. H x W is any size of the frame's picture."""
    height, width = image.shape[1:]
    if frame.lens is None or frame.intrinsics is None or frame.height is None or frame.width is None:
        raise ValueError(f"{frame.path}: expected a lens, intrinsics and their size, to undo what the lens bends")
    grid = lens_grid(frame.lens, frame.height, frame.width, frame.intrinsics, height, width)
    inside = (grid.abs() <= 1).all(dim=-1)  # NaN is outside
    values = grid_sample(
        image[None], grid.nan_to_num(2.0)[None], mode="bilinear", padding_mode="border", align_corners=False
    )[0]
    return values * inside, inside


def lens_grid(
    lens: Lens, calibrated_height: int, calibrated_width: int, intrinsics: Tensor, height: int, width: int
) -> Tensor:
    """Where the pixels of a height x width pinhole picture lie in the distorted one: (H,W,2) in [-1,1], NaN nowhere."""
    from da3_splat.io.colmap_lens import distorted_pixels  # pycolmap takes a moment to import

    size = intrinsics.new_tensor([calibrated_width, calibrated_height])
    pixels = pixel_grid(height, width, intrinsics)[..., :2] * size / intrinsics.new_tensor([width, height])
    rays = (pixels - intrinsics[:2, 2]) / intrinsics.diagonal()[:2]
    found = distorted_pixels(lens, calibrated_height, calibrated_width, rays.reshape(-1, 2).numpy())
    return (torch.from_numpy(found).reshape(height, width, 2) / size * 2 - 1).float()
