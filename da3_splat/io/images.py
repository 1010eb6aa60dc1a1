"""Pictures: reading anything a camera or a phone writes as 8-bit RGB, writing maps as pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from da3_splat.io.files import replacing

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")


def read_image(path: str | Path, upright: bool = True) -> Image.Image:
    """The RGB picture at `path`, turned upright by its EXIF orientation, or as it is stored if not `upright`.

    16-bit grey is scaled to 8 bits; transparent pixels are laid over black. ValueError names a file that is missing,
    truncated, not a picture, or so large that it may be an attack (about 180 megapixels).
    """
    try:
        with Image.open(path) as image:
            image.load()
            image = ImageOps.exif_transpose(image) if upright else image.copy()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such image") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f" and values.max() <= 1:
        full = 1
    else:
        full = 65535 if values.max() > 255 else 255
    return (values.astype(np.float64) * 255 / full).clip(0, 255).astype(np.uint8)


def list_images(folder: str | Path) -> list[Path]:
    """The pictures of a folder by name; ValueError where there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise ValueError(f"{folder}: no images in this folder (looked for {', '.join(SUFFIXES)})")
    return found


def write_image(path: str | Path, pixels: np.ndarray) -> None:
    """Write (H,W,3) values in [0,1] or uint8 as a picture; the ending chooses the format."""
    if pixels.dtype != np.uint8:
        pixels = (np.nan_to_num(pixels).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    with replacing(path) as beside:
        Image.fromarray(pixels).save(beside)


def color_of_depth(depth: np.ndarray) -> np.ndarray:
    """(...,H,W) depth as colours (...,H,W,3) in [0,1]: near is yellow, far is dark blue, 0 (no depth) is black.

    Inverse depth between its 2nd and 98th percentile is mapped, so that a far sky does not flatten the picture.
    """
    valid = np.isfinite(depth) & (depth > 0)
    inverse = np.where(valid, 1 / np.where(valid, depth, 1), 0)
    low, high = np.percentile(inverse[valid], [2, 98]) if valid.any() else (0.0, 1.0)
    position = ((inverse - low) / max(high - low, 1e-12)).clip(0, 1)
    stops = np.array([[0.05, 0.03, 0.35], [0.45, 0.05, 0.6], [0.8, 0.28, 0.47], [0.97, 0.6, 0.25], [0.95, 0.97, 0.35]])
    at = position * (len(stops) - 1)
    index = np.minimum(at.astype(int), len(stops) - 2)
    blend = (at - index)[..., None]
    return (stops[index] * (1 - blend) + stops[index + 1] * blend) * valid[..., None]
