"""Pictures: reading anything a camera or a phone writes as 8-bit RGB, writing maps as pictures."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from da3_splat.io.files import replacing
from da3_splat.io.frames import PictureFile
from da3_splat.limits import check_pixels, check_views, inside, regular_file

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
# What Pillow and a damaged archive are known to raise for files that are no pictures.
UNREADABLE = (
    *(UnidentifiedImageError, Image.DecompressionBombError, zipfile.BadZipFile, zlib.error),
    *(OSError, SyntaxError, ValueError, KeyError, IndexError, EOFError, NotImplementedError, struct.error),
    *(TypeError, AttributeError, OverflowError, ZeroDivisionError, RuntimeError),
)
# Whatever its name says, a file is opened as one of these: Pillow would hand PostScript to another program.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF")
ROWS = 256  # converted at a time
FULL_FRAME_DIAGONAL = math.hypot(36, 24)  # millimetres, to which EXIF's 35 mm equivalent focal length refers


@dataclass(frozen=True)
class Picture:
    """8-bit RGB pixels, what is opaque (8-bit grey, None: all of it), the focal length in pixels that EXIF tells."""

    rgb: Image.Image
    alpha: Image.Image | None = None
    focal: float | None = None


def read_image(path: PictureFile | str, upright: bool = True) -> Image.Image:
    """The RGB pixels of `read_picture`."""
    return read_picture(path, upright).rgb


def read_picture(path: PictureFile | str, upright: bool = True) -> Picture:
    """The picture at `path`, turned upright by its EXIF orientation, or as it is stored if not `upright`.

    16-bit grey is scaled to 8 bits; transparent pixels are laid over black. The first picture of an animation or a
    file of several is taken. ValueError names a file that is missing, truncated, not a picture, or so large that it may
    be an attack (about 180 megapixels).
    """
    try:
        with _opened(path) as stream, Image.open(stream, formats=FORMATS) as stored:
            check_pixels(stored.height, stored.width, "it has")
            stored.load()
            focal = _focal(stored)
            image = ImageOps.exif_transpose(stored) if upright else stored.copy()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such image") from None
    except UNREADABLE as error:
        raise ValueError(f"{path}: not a readable image ({_reason(error)})") from error
    if image.mode.startswith("I") or image.mode == "F":
        return Picture(Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB"), focal=focal)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        over_black = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
        alpha = image.getchannel("A")
        return Picture(over_black, None if alpha.getextrema()[0] == 255 else alpha, focal)
    return Picture(image.convert("RGB"), focal=focal)


def picture_size(path: PictureFile | str) -> tuple[int, int]:
    """Height and width as stored, from the header alone."""
    try:
        with _opened(path) as stream, Image.open(stream, formats=FORMATS) as image:
            check_pixels(image.height, image.width, "it has")
            return image.height, image.width
    except FileNotFoundError:
        raise ValueError(f"{path}: no such image") from None
    except UNREADABLE as error:
        raise ValueError(f"{path}: not a readable image ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """Why a picture cannot be read, in words for who gave it."""
    return "of no format known here" if isinstance(error, UnidentifiedImageError) else str(error)


def _opened(path: PictureFile | str):
    if isinstance(path, zipfile.Path):
        return path.open("rb")
    if not Path(path).exists():
        raise FileNotFoundError(path)
    return regular_file(path).open("rb")


def _focal(image: Image.Image) -> float | None:
    """Focal length in pixels by EXIF's 35 mm equivalent, which refers to the diagonal; None where EXIF has none."""
    try:
        millimetres = float(image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.FocalLengthIn35mmFilm, 0))
    except (TypeError, ValueError, ZeroDivisionError, KeyError, OSError, SyntaxError):
        return None  # a broken EXIF block is no reason to refuse a picture
    if not 5 <= millimetres <= 2000:
        return None
    return millimetres / FULL_FRAME_DIAGONAL * math.hypot(image.width, image.height)


def _eight_bits(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        values = np.nan_to_num(values)
        full = 1 if values.max() <= 1 else 255 if values.max() <= 255 else 65535
    else:
        full = 65535 if values.max() > 255 else 255
    result = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), ROWS):  # as float64, a large picture would take gigabytes
        rows = slice(start, start + ROWS)
        result[rows] = (values[rows].astype(np.float64) * 255 / full).clip(0, 255).astype(np.uint8)
    return result


def list_images(folder: str | Path) -> list[Path]:
    """The pictures of a folder by name; ValueError where there is none, or where one is a link that leads out of it."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise ValueError(f"{folder}: no images in this folder (looked for {', '.join(SUFFIXES)})")
    check_views(len(found), str(folder))
    return [inside(folder, path.name, str(folder)) for path in found]


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Values in [0,1], cut off there, as uint8; what is no number becomes 0."""
    return (np.nan_to_num(pixels).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def write_image(path: str | Path, pixels: np.ndarray) -> None:
    """Write (H,W,3) values in [0,1] or uint8 as a picture; the ending chooses the format."""
    if pixels.dtype != np.uint8:
        pixels = eight_bits(pixels)
    with replacing(path) as beside:
        Image.fromarray(pixels).save(beside)


def depth_limits(depth: np.ndarray, most: int = 4_000_000) -> tuple[float, float]:
    """The 2nd and the 98th percentile of inverse depth (...), 0 (no depth) left out; of many values every n-th."""
    values = depth.reshape(-1)
    values = values[:: -(-values.size // most)]
    values = 1 / values[np.isfinite(values) & (values > 0)]
    return tuple(np.percentile(values, [2, 98])) if values.size else (0.0, 1.0)


def color_of_depth(depth: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """(...,H,W) depth as colours (...,H,W,3) in [0,1]: near is yellow, far is dark blue, 0 (no depth) is black.

    Inverse depth between its 2nd and 98th percentile is mapped, so that a far sky does not flatten the picture; or
    between `limits`, where one view of many is coloured.
    """
    valid = np.isfinite(depth) & (depth > 0)
    inverse = np.where(valid, 1 / np.where(valid, depth, 1), 0)
    low, high = limits or depth_limits(depth)
    position = ((inverse - low) / max(high - low, 1e-12)).clip(0, 1)
    stops = np.array([[0.05, 0.03, 0.35], [0.45, 0.05, 0.6], [0.8, 0.28, 0.47], [0.97, 0.6, 0.25], [0.95, 0.97, 0.35]])
    at = position * (len(stops) - 1)
    index = np.minimum(at.astype(int), len(stops) - 2)
    blend = (at - index)[..., None]
    return (stops[index] * (1 - blend) + stops[index + 1] * blend) * valid[..., None]
