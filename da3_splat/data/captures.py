"""What a user has on disk -> Views: a folder of photos, a list of files, a video, a transforms.json, a COLMAP model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from da3_splat.data.views import read_frames
from da3_splat.io.frames import Frame
from da3_splat.io.images import list_images
from da3_splat.io.transforms_json import read_transforms
from da3_splat.types import Views

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")


@dataclass(frozen=True)
class Capture:
    """What there is to load: frames, and sparse points (P,3) with colours (P,3) in [0,1] where the capture has some."""

    frames: list[Frame]
    points: np.ndarray | None = None
    colors: np.ndarray | None = None


def load_views(
    source: str | Path | Sequence[str | Path],
    resolution: int = 504,
    max_views: int | None = None,
    progress: Callable[[Iterable], Iterable] = lambda items: items,
    fps: float = 2.0,
    skipped: dict[int, str] | None = None,
) -> Views:
    """The pictures of `source` as Views of batch size 1, with cameras and sparse points where it has them.

    `source`: a folder of pictures, picture files, a video, a transforms.json or its folder, a COLMAP model or the
    folder around it. Each picture keeps its aspect: its longest side becomes `resolution`, both sides are snapped to
    multiples of 14, and the intrinsics follow; pictures of different size are cropped around the centre to the
    smallest. Lens distortion is undone. The frame of the file is kept. `max_views` takes evenly spaced ones; of a
    video, `fps` frames a second, sharp and evenly spread over its motion. `Views.windows` undo resizing and cropping.

    ValueError names the file that is bad, and why; where `skipped` is given, a picture that cannot be read is left out
    instead, with the reason in `skipped` at its index.
    """
    capture = find_frames(source, max_views, fps, progress)
    return read_frames(capture.frames, capture.points, capture.colors, resolution, progress, skipped)


def find_frames(
    source: str | Path | Sequence[str | Path],
    max_views: int | None = None,
    fps: float = 2.0,
    progress: Callable[[Iterable], Iterable] = lambda items: items,
    streamed: Path | None = None,
) -> Capture:
    """What there is to load at `source` (see `load_views`); nothing but a video's frames is read yet. Where there is a
    folder `streamed`, they are written into it one by one, so that the video may be of any length."""
    if max_views is not None and max_views < 1:
        raise ValueError(f"max_views: expected at least 1, got {max_views}")
    if not isinstance(source, (str, Path)) or not _is_video(Path(source)):
        capture = _find(source)
        return replace(capture, frames=evenly_spaced(capture.frames, max_views))
    from da3_splat.io.video import read_video, stream_video  # PyAV takes a moment to import

    if streamed is not None:
        return Capture([Frame(path=path) for path in stream_video(source, streamed, fps, max_views, progress)])
    return Capture(read_video(source, fps, max_views, progress))


def evenly_spaced(items: list, count: int | None) -> list:
    """`count` of the items, evenly spaced, the first and last included; all of them for None."""
    if count is None or count >= len(items):
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()


def _find(source: str | Path | Sequence[str | Path]) -> Capture:
    if not isinstance(source, (str, Path)):
        frames = [Frame(path=Path(item)) for item in source]
        if not frames:
            raise ValueError("load_views: expected at least one image, got an empty list")
        return Capture(frames)
    path = Path(source)
    if path.is_file():
        return _from_transforms(path) if path.suffix.lower() == ".json" else Capture([Frame(path=path)])
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if (path / "transforms.json").is_file():
        return _from_transforms(path / "transforms.json")
    from da3_splat.io import colmap  # pycolmap takes a moment to import

    model = colmap.find_model(path)
    if model is None:
        return Capture([Frame(path=item) for item in list_images(path)])
    around = path if model == path / "sparse" or model.parent == path / "sparse" else model
    candidates = [around / "images", around, around.parent / "images", around.parent, around.parent.parent / "images"]
    return Capture(*colmap.read_colmap(model, candidates))


def _from_transforms(path: Path) -> Capture:
    from da3_splat.io.ply import load_points

    frames, cloud = read_transforms(path)
    points = load_points(cloud) if cloud is not None and cloud.is_file() else (None, None)
    return Capture(frames, *points)
