"""Video, through PyAV: choosing frames to reconstruct from, and writing fly-throughs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import av
import numpy as np
from PIL import Image

from da3_splat.io.files import replacing
from da3_splat.io.frames import Frame
from da3_splat.io.images import eight_bits
from da3_splat.limits import check_pixels, regular_file

# Whatever its name says, a file is opened as one of these: FFmpeg would follow a list of other files and addresses.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm"
SMALL_WIDTH = 96  # pixels of the grey pictures on which sharpness and motion are measured
TILES = (4, 6)  # rows and columns of tiles whose motion is measured
MAX_CANDIDATES_PER_SECOND = 15.0
MOST_FRAMES = 200  # where nobody says how many: they are held in memory, 6 MB each at 1920x1080


def read_video(
    path: str | Path,
    fps: float = 2.0,
    max_views: int | None = None,
    progress: Callable[[Iterable], Iterable] = lambda items: items,
) -> list[Frame]:
    """Frames of a video, `fps` a second on average and `max_views` (200) at most, as pictures in memory.

    They are spread evenly over the camera's motion, not over time (a camera that rests gives few), and each is the
    sharpest of its neighbourhood. The video is decoded twice, one frame at a time: first for small grey pictures of up
    to 15 frames a second, then for the chosen ones. ValueError names a file that is no video.
    """
    path = Path(path)
    wanted = set(_chosen_numbers(path, fps, max_views or MOST_FRAMES, progress))
    return [
        Frame(path=path, label=f"{path.stem}_{index:06d}.png", picture=_upright(frame))
        for index, _, frame in progress(_decoded(path))
        if index in wanted
    ]


def stream_video(
    path: str | Path,
    folder: str | Path,
    fps: float = 2.0,
    max_views: int | None = None,
    progress: Callable[[Iterable], Iterable] = lambda items: items,
) -> list[Path]:
    """`read_video` for a video of any length: the chosen frames as PNG files in `folder`, one in memory at a time, in
    order. Files that are there already, of the same video, are not written again."""
    path, folder = Path(path), Path(folder)
    wanted = _chosen_numbers(path, fps, max_views, progress)
    stamp = f"{path.stat().st_size}-{path.stat().st_mtime_ns}"
    files = {index: folder / f"{path.stem}_{index:06d}_{stamp}.png" for index in wanted}
    if not all(file.is_file() for file in files.values()):
        for index, _, frame in progress(_decoded(path)):
            if index in files and not files[index].is_file():
                with replacing(files[index]) as beside:
                    _upright(frame).save(beside)
    return [files[index] for index in wanted]


def _chosen_numbers(path: Path, fps: float, most: int | None, progress: Callable[[Iterable], Iterable]) -> list[int]:
    """Which frames to take, in order; of the video only small grey pictures, two at a time, are held."""
    if not fps > 0:
        raise ValueError(f"fps: expected a positive number, got {fps}")
    times: list[tuple[int, float]] = []
    sharpness, motion, previous = [], [], None
    height = 0
    for index, time, frame in progress(_decoded(path)):
        height = height or round(SMALL_WIDTH * frame.height / frame.width)  # sizes may change on the way
        if times and time - times[-1][1] < 0.999 / MAX_CANDIDATES_PER_SECOND:
            continue
        small = _small_grey(frame, height)
        times.append((index, time))
        sharpness.append(_sharpness(small))
        motion.append(0.0 if previous is None else _motion(previous, small))
        previous = small
    duration = times[-1][1] - times[0][1] + (times[-1][1] - times[0][1]) / max(1, len(times) - 1)
    count = max(1, round(duration * fps)) if len(times) > 1 else 1
    chosen = choose_frames(np.array(motion), np.array(sharpness), min(count, most or count))
    return [times[i][0] for i in chosen]


def choose_frames(motion: np.ndarray, sharpness: np.ndarray, count: int) -> list[int]:
    """Indices of `count` frames, evenly spread over the summed motion (N), each the sharpest (N) of its stretch.

    motion[i] is how far frame i moved from the one before. A tenth of the path is time, so that a still video is
    spread over, too.
    """
    total = len(motion)
    if count >= total:
        return list(range(total))
    path = np.cumsum(motion)
    scale = path[-1] if path[-1] > 0 else 1.0
    position = 0.9 * path / scale + 0.1 * np.linspace(0, 1, total)
    edges = np.searchsorted(position, np.linspace(position[0], position[-1], count + 1)[1:-1])
    edges = np.concatenate([[0], edges, [total]])
    for i in range(1, count):  # every stretch keeps at least one frame, before and behind it
        edges[i] = min(max(edges[i], edges[i - 1] + 1), total - (count - i))
    chosen = []
    for start, end in zip(edges[:-1], edges[1:]):
        third = max(0, (end - start) // 4)  # keep away from the neighbours' stretch, so that steps stay even
        inner = slice(start + third, max(start + third + 1, end - third))
        chosen.append(int(inner.start + np.argmax(sharpness[inner])))
    return chosen


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float = 30.0) -> int:
    """Write frames (H,W,3) in [0,1] as H.264; returns their number. Odd sizes lose their last row or column."""
    count = 0
    with replacing(path) as beside, av.open(str(beside), "w") as container:
        stream = None
        for pixels in frames:
            pixels = eight_bits(pixels)
            pixels = np.ascontiguousarray(pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2])
            if stream is None:
                stream = container.add_stream("libx264", rate=round(fps), options={"crf": "18"})
                stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            count += 1
        if stream is None:
            raise ValueError(f"{path}: no frames to write")
        container.mux(stream.encode())
    return count


def _decoded(path: Path) -> Iterator[tuple[int, float, av.VideoFrame]]:
    """Number, time in seconds and picture of each frame; what follows a broken spot is left out."""
    index = 0
    try:
        with (
            regular_file(path).open("rb") as file,
            av.open(file, "r", container_options={"format_whitelist": CONTAINERS}) as container,
        ):
            if not container.streams.video:
                raise ValueError(f"{path}: no pictures in this video")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                check_pixels(frame.height, frame.width, str(path))
                yield index, float(frame.time) if frame.time is not None else index / 30.0, frame
                index += 1
    except (av.FFmpegError, OSError, IndexError, OverflowError, UnicodeDecodeError) as error:
        if index == 0:
            raise ValueError(f"{path}: not a readable video ({error})") from error
    if index == 0:
        raise ValueError(f"{path}: no pictures in this video")


def _upright(frame: av.VideoFrame) -> Image.Image:
    """The picture, turned as the file says a player must."""
    image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _small_grey(frame: av.VideoFrame, height: int) -> np.ndarray:
    height = min(max(TILES[0] * 4, height), 4 * SMALL_WIDTH)
    return frame.reformat(width=SMALL_WIDTH, height=height, format="gray").to_ndarray().astype(np.float32)


def _sharpness(image: np.ndarray) -> float:
    """Mean squared Laplacian over the variance of the picture."""
    inner = 4 * image[1:-1, 1:-1] - image[:-2, 1:-1] - image[2:, 1:-1] - image[1:-1, :-2] - image[1:-1, 2:]
    return float((inner**2).mean() / (image.var() + 1.0))


def _motion(first: np.ndarray, second: np.ndarray) -> float:
    """How far the picture moved, in its pixels: the mean over tiles of Lucas and Kanade's least squares."""
    first, second = (_blurred(image - image.mean()) for image in (first, second))
    dy, dx = np.gradient((first + second) / 2)
    dt = second - first
    rows, columns = (np.arange(n + 1) * size // n for n, size in zip(TILES, first.shape))
    lengths = []
    for top, bottom in zip(rows[:-1], rows[1:]):
        for left, right in zip(columns[:-1], columns[1:]):
            tile = (slice(top, bottom), slice(left, right))
            gx, gy, gt = dx[tile].ravel(), dy[tile].ravel(), dt[tile].ravel()
            normal = np.array([[gx @ gx, gx @ gy], [gx @ gy, gy @ gy]])
            normal += (1e-3 * np.trace(normal) + 1.0) * np.eye(2)  # without texture nothing moves
            lengths.append(np.hypot(*np.linalg.solve(normal, -np.array([gx @ gt, gy @ gt]))))
    return float(np.mean(lengths))


def _blurred(image: np.ndarray) -> np.ndarray:
    """A 5x5 binomial blur, which widens the reach of the gradients."""
    for axis in (0, 1):
        padded = np.pad(image, [(2, 2) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        taps = [np.take(padded, range(i, i + image.shape[axis]), axis) for i in range(5)]
        image = (taps[0] + 4 * taps[1] + 6 * taps[2] + 4 * taps[3] + taps[4]) / 16
    return image
