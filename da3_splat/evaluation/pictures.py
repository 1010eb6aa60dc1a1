"""Pictures at the size a protocol asks for."""

from __future__ import annotations

from collections.abc import Sequence

from da3_splat.data.loading import cover
from da3_splat.data.views import OneView, join_views, read_frames
from da3_splat.evaluation.protocol import Size
from da3_splat.io.frames import Frame
from da3_splat.io.images import picture_size
from da3_splat.types import Views


def load_at(frames: Sequence[Frame], size: Size) -> Views:
    """The pictures of posed `frames` (1,S), covering `size` and cropped around the centre, cameras and masks with them.

    Each is read at its own size and scaled once. Native pictures keep their size but for snapping to multiples of 14;
    of several, each is cropped to the smallest. Sparse points are left out: targets helped to triangulate them.
    """
    for frame in frames:
        if frame.world_to_camera is None:
            raise ValueError(f"{frame.path}: has no camera")
    parts = [read_frames([frame], resolution=_longest(frame)) for frame in frames]
    if size.height is not None and size.width is not None:
        parts = [cover(part, size.height, size.width) for part in parts]
    reads = [
        OneView(part.images[0, 0], part.cameras, None if part.masks is None else part.masks[0, 0]) for part in parts
    ]
    return join_views(reads, tuple(frame.name for frame in frames))


def _longest(frame: Frame) -> int:
    """The longest side in pixels of the picture as it is stored."""
    if frame.picture is not None:
        return max(frame.picture.size)
    return max(picture_size(frame.path))
