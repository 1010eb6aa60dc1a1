"""Pictures of any size and shape -> Views of one size, for training and evaluation at a fixed resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch.nn.functional import interpolate

from da3_splat.data.views import PATCH, OneView, join_views, read_frames, snapped_size
from da3_splat.io.frames import Frame
from da3_splat.types import Views


def load_covering(frames: Sequence[Frame], height: int, width: int) -> Views:
    """The pictures of posed `frames`, each scaled to cover height x width and cropped around its centre.

    Each is read by itself, so a portrait among landscapes does not narrow the others. ValueError names the file.
    """
    parts = []
    for frame in frames:
        if frame.world_to_camera is None or frame.height is None or frame.width is None:
            raise ValueError(f"{frame.path}: has no camera")
        resolution = _covering_resolution(frame.height, frame.width, height, width)
        parts.append(cover(read_frames([frame], points=None, colors=None, resolution=resolution), height, width))
    reads = [
        OneView(part.images[0, 0], part.cameras, None if part.masks is None else part.masks[0, 0]) for part in parts
    ]
    return join_views(reads, tuple(frame.name for frame in frames))


def _covering_resolution(rows: int, columns: int, height: int, width: int) -> int:
    """A longest side at which a rows x columns picture, its sides snapped to patches, still covers height x width.

    Of the next few such sizes, the one that snapping stretches least.
    """
    longest = max(rows, columns)
    first = int(longest * max(height / rows, width / columns)) // PATCH + 1

    def stretch(resolution: int) -> tuple[bool, float]:
        tall, wide = snapped_size(rows, columns, resolution)
        return tall < height or wide < width, abs(math.log(tall * columns / (wide * rows)))

    return min((PATCH * (first + more) for more in range(8)), key=stretch)


def cover(views: Views, height: int, width: int) -> Views:
    """The views scaled until they cover height x width, then cropped around the centre; cameras and masks follow.

    `windows` and `focals`, which tell of the original picture, are dropped.
    """
    rows, columns = views.images.shape[-2:]
    scale = max(height / rows, width / columns)
    tall, wide = max(height, round(rows * scale)), max(width, round(columns * scale))
    top, left = (tall - height) // 2, (wide - width) // 2
    area = (..., slice(top, top + height), slice(left, left + width))
    images = views.images
    masks = views.masks
    if (tall, wide) != (rows, columns):
        images = interpolate(images.flatten(0, 1), (tall, wide), mode="bilinear", antialias=True)
        images = images.unflatten(0, views.images.shape[:2])
        if masks is not None:
            masks = interpolate(masks.float(), (tall, wide), mode="area") >= 0.5
    return replace(
        views,
        images=images[area].contiguous(),
        cameras=None if views.cameras is None else views.cameras.resized(tall, wide).cropped(top, left, height, width),
        masks=None if masks is None else masks[area].contiguous(),
        windows=(),
        focals=None,
    )
