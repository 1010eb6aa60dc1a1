"""Pictures and videos that lie, unpack without end, or are something else."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from hostile.case import Case, file_case

SCRIPT = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nsecret.ts\n#EXT-X-ENDLIST\n"
POSTSCRIPT = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n%%EOF\n"


def encoded(form: str, mode: str = "RGB", size: tuple[int, int] = (42, 28), **options: object) -> bytes:
    """A small picture of noise as the bytes of a file."""
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, form, **options)
    return stream.getvalue()


def png_of_size(width: int, height: int, rows: int = 1) -> bytes:
    """A PNG whose header says width x height; `rows` rows are in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(width + 1)) for _ in range(rows)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def with_exif(orientation: object, focal: object = 24) -> bytes:
    """A JPEG whose EXIF says this."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769)[0xA405] = focal
    return encoded("JPEG", exif=exif)


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "a.png")
    return folder / "a.png"


def _folder(folder: Path) -> Path:
    (folder / "a.png").mkdir()
    return folder / "a.png"


def _loop(folder: Path) -> Path:
    (folder / "a.png").symlink_to(folder / "b.png")
    (folder / "b.png").symlink_to(folder / "a.png")
    return folder / "a.png"


def image_cases() -> list[Case]:
    """Pictures for `read_image`: some are good and odd, the others must be refused."""
    jpeg, png = encoded("JPEG"), encoded("PNG")
    content = {
        "zero bytes.jpg": b"",
        "cut in the header.jpg": jpeg[:20],
        "cut in the pixels.jpg": jpeg[: len(jpeg) // 2],
        "cut in the pixels.png": png[: len(png) // 2],
        "a png called.jpg": png,
        "a jpeg called.png": jpeg,
        "text called.png": b"hello",
        "html called.jpg": b"<html><body>404</body></html>",
        "cmyk.jpg": encoded("JPEG", "CMYK"),
        "sixteen bits.png": encoded("PNG", "I;16"),
        "float.tif": encoded("TIFF", "F"),
        "one bit.tif": encoded("TIFF", "1"),
        "grey with alpha.png": encoded("PNG", "LA"),
        "lab.tif": encoded("TIFF", "LAB"),
        "animated.gif": encoded("GIF", save_all=True, append_images=[Image.new("RGB", (42, 28))]),
        "animated.webp": encoded("WEBP", save_all=True, append_images=[Image.new("RGB", (42, 28))]),
        "many pages.tif": encoded("TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))]),
        "a bomb of 50000x50000.png": png_of_size(50_000, 50_000, rows=0),
        "two thousand million pixels.png": png_of_size(2**31 - 1, 1, rows=0),
        "no pixels.png": png_of_size(0, 0),
        "a header of more rows than there are.png": png_of_size(3000, 3000),
        "postscript called.jpg": POSTSCRIPT.encode(),
        "exif of a turn there is not.jpg": with_exif(99),
        "exif of a turn of 65535.jpg": with_exif(65535),
        "exif of no focal length.jpg": with_exif(6, 0),
        "exif of an endless focal length.jpg": with_exif(1, 65535),
        "exif cut off.jpg": with_exif(6)[:60] + jpeg[2:],
        "exif of zeros.jpg": with_exif(6).replace(b"Exif\x00\x00II*\x00\x08", b"Exif\x00\x00II*\x00\xff"),
    }
    cases = [file_case(name, name.replace(" ", "_"), data) for name, data in content.items()]
    odd: dict[str, Callable[[Path], Path]] = {"a pipe": _fifo, "a folder": _folder, "links in a circle": _loop}
    return cases + [Case(name, write) for name, write in odd.items()]


def video_cases(good: bytes) -> list[Case]:
    """Videos made from the bytes of a good one."""
    content = {
        "zero bytes": b"",
        "text": b"hello" * 100,
        "cut in half": good[: len(good) // 2],
        "only its start": good[:64],
        "its start is missing": good[200:],
        "a playlist of other files": SCRIPT.encode(),
        "a list of other files": b"ffconcat version 1.0\nfile secret.ts\n",
        "a picture": encoded("PNG"),
        "postscript": POSTSCRIPT.encode(),
    }
    cases = [file_case(name, "walk.mp4", data) for name, data in content.items()]
    return [*cases, file_case("a playlist called avi", "walk.avi", SCRIPT)]
