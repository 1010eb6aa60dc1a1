"""DL3DV as published: DL3DV-ALL-{480P,960P,2K,4K}/{1K..11K}/<hash>.zip (or unpacked) and DL3DV-Benchmark/<hash>.

A scene is one video: transforms.json (OpenGL camera-to-world, shared intrinsics at full size, pictures listed under
`images/`) beside `images_4` (960P) or `images_8` (480P), in the benchmark one folder down, in `nerfstudio`.
Nothing is unpacked: frames of a zip have `zipfile.Path`s. The world frame of the file is kept (its camera axes are
turned to OpenCV's, its world axes are not; `applied_transform` is not undone); the scale is COLMAP's own.
"""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from da3_splat.geometry.poses import intrinsics_matrix
from da3_splat.io.frames import Frame, Lens, PictureFile, check_camera
from da3_splat.io.images import SUFFIXES, picture_size
from da3_splat.io.json_files import json_number, load_json
from da3_splat.io.transforms_json import opengl_to_world_to_camera, rigid_matrix
from da3_splat.limits import check_views, inside

logger = logging.getLogger(__name__)

PICTURE_FOLDERS = ("images_4", "images_8", "images_2", "images")  # the best first
HASH = re.compile(r"[0-9a-f]{64}")
PART = re.compile(r"\d+K")  # folders of a thousand scenes
FILE = "transforms.json"
LARGEST_END = 65_557  # bytes within which the end record of a zip stands


@dataclass(frozen=True)
class Dl3dvScene:
    """One scene, a folder or a zip, not opened before `read` or `frames`."""

    name: str
    path: Path

    def read(self, folders: Sequence[str] = PICTURE_FOLDERS) -> tuple[list[Frame], list[str]]:
        """Frames sorted by name, and a line for each kind of picture that had to be left out.

        Pictures come from the first of `folders` that the scene has. height, width, intrinsics and lens of a frame
        are those of the stored picture: the ones in the file, scaled by real size over listed size. ValueError where
        the scene as a whole cannot be read.
        """
        base = _base(self.name, self.path)
        if base is None:
            raise ValueError(f"{self.path}: no {FILE} in this scene")
        content = load_json(base / FILE)
        listed = content.get("frames") if isinstance(content, dict) else None
        if not isinstance(listed, list) or not listed:
            raise ValueError(f"{base / FILE}: no list of frames")
        folder, pictures = _pictures(base, folders)
        return _frames(content, listed, folder, pictures, str(base / FILE))

    def frames(self) -> list[Frame]:
        """What `read` finds; what it leaves out is logged."""
        frames, problems = self.read()
        for problem in problems:
            logger.warning(problem)
        return frames


def find_scenes(root: str | Path) -> tuple[list[Dl3dvScene], list[str]]:
    """Scenes under `root` sorted by hash, and a line for each thing that looks like a scene and is none.

    `root`: a whole download, one of its {1K..11K} folders, the benchmark, or one scene. No scene is opened, so ten
    thousand take seconds. A scene that lies there unpacked and as a zip is the unpacked one.
    """
    root = Path(root)
    if not root.exists():
        raise ValueError(f"{root}: no such file or folder")
    if _hash_of(root) or root.suffix == ".zip":
        entries = [root]
    else:
        entries = sorted(root.iterdir())
        entries += [entry for part in entries if PART.fullmatch(part.name) for entry in sorted(part.iterdir())]
    scenes: dict[str, Dl3dvScene] = {}
    problems = []
    for entry in sorted(entries, key=lambda entry: entry.suffix == ".zip"):  # folders first
        name, is_zip = _hash_of(entry), entry.suffix == ".zip"
        if name is None:
            if is_zip or (entry / FILE).is_file() or (entry / "nerfstudio" / FILE).is_file():
                problems.append(f"{entry}: not a scene, expected a name of 64 hexadecimal digits")
        elif name in scenes:
            if is_zip == (scenes[name].path.suffix == ".zip"):
                problems.append(f"{entry}: the same scene as {scenes[name].path}")
        else:
            try:
                if (is_zip and _mentions_file(entry)) or _base(name, entry) is not None:
                    scenes[name] = Dl3dvScene(name, entry)
                else:
                    problems.append(f"{entry}: no {FILE} in this scene")
            except ValueError as error:
                problems.append(str(error))
    return sorted(scenes.values(), key=lambda scene: scene.name), problems


def without(scenes: Iterable[Dl3dvScene], hashes: Collection[str]) -> list[Dl3dvScene]:
    """The scenes that are not among `hashes`. The benchmark was sampled from DL3DV-ALL: train without its 140."""
    excluded = {name.lower() for name in hashes}
    return [scene for scene in scenes if scene.name not in excluded]


def read_hashes(path: str | Path) -> set[str]:
    """The scene hashes in a text file (one a line), a csv that has them in some column, or a view-index json."""
    path = Path(path)
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable text file ({error})") from error
    found = {name.lower() for name in re.findall(r"(?<![0-9a-zA-Z])[0-9a-fA-F]{64}(?![0-9a-zA-Z])", text)}
    if not found:
        raise ValueError(f"{path}: no scene hashes (64 hexadecimal digits) in this file")
    return found


def _hash_of(path: Path) -> str | None:
    """The hash that a scene folder or zip is named after."""
    name = (path.stem if path.suffix == ".zip" else path.name).lower()
    return name if HASH.fullmatch(name) else None


def _base(name: str, path: Path) -> PictureFile | None:
    """The folder of transforms.json in a scene's folder or zip."""
    root: PictureFile = path
    if path.is_file():
        try:
            root = zipfile.Path(path)
        except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, EOFError) as error:
            raise ValueError(f"{path}: not a readable zip archive ({error}); download it again") from error
    inner = root / name
    return next((b for b in (inner, inner / "nerfstudio", root, root / "nerfstudio") if (b / FILE).is_file()), None)


def _mentions_file(path: Path) -> bool:
    """Whether transforms.json stands in a zip's directory, which is at its end: 100 times faster than parsing it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - LARGEST_END))
        tail = file.read()
        end = tail.rfind(b"PK\x05\x06")
        if end < 0 or len(tail) < end + 16:
            return False
        directory = int.from_bytes(tail[end + 12 : end + 16], "little")
        file.seek(max(0, size - len(tail) + end - directory))
        return FILE.encode() in file.read(directory)


def _pictures(base: PictureFile, folders: Sequence[str]) -> tuple[PictureFile, dict[str, PictureFile]]:
    """The first of `folders` that has pictures, and they by stem (a folder may hold jpg where the list says png)."""
    for name in folders:
        folder = base / name
        if folder.is_dir():
            listed: Iterable[PictureFile] = folder.iterdir()
            found = {
                PurePosixPath(item.name).stem: item
                for item in sorted(listed, key=lambda item: item.name)
                if PurePosixPath(item.name).suffix.lower() in SUFFIXES and not item.name.startswith(".")
            }
            check_views(len(found), str(folder))
            if found:
                return folder, {stem: _own(base, item) for stem, item in found.items()}
    raise ValueError(f"{base}: no pictures in any of {', '.join(folders)}")


def _own(base: PictureFile, item: PictureFile) -> PictureFile:
    """The picture, which must not be a link that leads out of the scene."""
    if isinstance(base, Path) and isinstance(item, Path):
        return inside(base, str(item.relative_to(base)), str(base))
    return item


def _frames(content: dict, listed: list, folder: PictureFile, pictures: dict[str, PictureFile], where: str):
    problems: list[str] = []
    frames, missing, mentioned = [], [], set()
    size = _size(pictures, problems)
    for index, entry in enumerate(listed):
        try:
            stem, frame = _frame(content, entry, pictures, size, f"{where}: frame {index}")
        except ValueError as error:
            problems.append(str(error))
            continue
        if stem in mentioned:
            problems.append(f"{where}: frame {index}: {stem} is listed twice")
        elif frame is None:
            missing.append(stem)
        else:
            frames.append(frame)
        mentioned.add(stem)
    unposed = sorted(set(pictures) - mentioned)
    if missing:
        problems.append(
            f"{where}: {len(missing)} of {len(listed)} frames have no picture in {folder} ({_few(missing)})"
        )
    if unposed:
        problems.append(f"{folder}: {len(unposed)} of {len(pictures)} pictures have no pose ({_few(unposed)})")
    if not frames:
        raise ValueError(f"{where}: no frame can be used; the first problem: {problems[0]}")
    return sorted(frames, key=lambda frame: frame.path.name), problems


def _size(pictures: dict[str, PictureFile], problems: list[str]) -> tuple[int, int]:
    """(height, width) of the pictures: all are of one video, so the first header that can be read says it."""
    for path in pictures.values():
        try:
            return picture_size(path)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError(problems[0])


def _frame(
    shared: dict, entry: object, pictures: dict[str, PictureFile], size: tuple[int, int], where: str
) -> tuple[str, Frame | None]:
    """The stem of a frame's picture, and the frame, None where the picture is missing."""
    if not isinstance(entry, dict) or not isinstance(entry.get("file_path"), str):
        raise ValueError(f"{where}: no file_path")

    def number(name: str, default: float | None = None) -> float:
        return json_number(entry.get(name, shared.get(name, default)), f"{where}: {name}")

    # The folder in file_path is `images` whatever was downloaded; only the name counts, so nothing leads outside.
    stem = PurePosixPath(entry["file_path"].replace("\\", "/")).stem
    kind = entry.get("camera_model", shared.get("camera_model", "OPENCV"))
    if kind not in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE"):
        raise ValueError(f"{where}: camera_model: expected OPENCV or PINHOLE, got {kind!r:.80}; undistort it first")
    height, width = size
    listed_width, listed_height = number("w"), number("h")
    fx = number("fl_x")
    fy = number("fl_y", fx)
    if min(listed_width, listed_height, fx, fy) <= 0:
        raise ValueError(f"{where}: expected positive w, h, fl_x, fl_y")
    if abs(width * listed_height / listed_width - height) > 1.5 + 0.01 * height:  # sides of small pictures are rounded
        raise ValueError(
            f"{where}: its camera is of a {listed_width:.0f}x{listed_height:.0f} picture, "
            f"but the pictures have {width}x{height} pixels"
        )
    scale_x, scale_y = width / listed_width, height / listed_height
    fx, cx = fx * scale_x, number("cx", listed_width / 2) * scale_x
    fy, cy = fy * scale_y, number("cy", listed_height / 2) * scale_y
    bend = tuple(number(name, 0.0) for name in ("k1", "k2", "p1", "p2"))
    world_to_camera = opengl_to_world_to_camera(rigid_matrix(entry.get("transform_matrix"), where))
    intrinsics = intrinsics_matrix(*(torch.tensor(value, dtype=torch.float64) for value in (fx, fy, cx, cy)))
    check_camera(world_to_camera, intrinsics, height, width, where)
    if stem not in pictures:
        return stem, None
    return stem, Frame(
        path=pictures[stem],
        height=height,
        width=width,
        world_to_camera=world_to_camera,
        intrinsics=intrinsics,
        lens=Lens("OPENCV", (fx, fy, cx, cy, *bend)) if any(bend) else None,
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
