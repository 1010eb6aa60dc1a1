"""Captures that bring measured depth, for training geometry: pictures, cameras and depth at one size, or labels.

    <collection>/**/transforms.json     with a `depth_file_path` a frame (see io/depth_maps.py)
    <labels>/<scene>/<frame>.npy        what a teacher made of it: whole pictures, depth 0 where there is none

MegaDepth in its published layout is read, too. Depth is sampled at pixel centres, never averaged over an edge.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from da3_splat.data import megadepth
from da3_splat.data.loading import load_covering
from da3_splat.io.depth_maps import depth_files, read_depth
from da3_splat.io.frames import Frame
from da3_splat.io.images import write_image
from da3_splat.io.transforms_json import read_transforms, write_transforms
from da3_splat.types import Views


@dataclass(frozen=True)
class MeasuredFrame:
    """A picture and its depth file (None: it has none), whose integers are in `unit`."""

    frame: Frame
    depth: Path | None
    unit: float = 1.0

    def read(self) -> Tensor:
        """z-depth (H,W) of the whole picture at the size it is stored in; ValueError where it cannot be read."""
        if self.depth is None:
            raise ValueError(f"{self.frame.path}: has no depth map")
        if self.depth.suffix != ".h5":
            return read_depth(self.depth, self.unit)
        depth = megadepth.read_depth(self.depth)
        if depth is None:
            raise ValueError(f"{self.depth}: an ordinal mask, not depth")
        return depth


class DepthScene(Protocol):
    """A scene whose pictures have measured depth; nothing is opened before it is asked."""

    @property
    def name(self) -> str: ...

    def measured(self) -> list[MeasuredFrame]: ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class DepthCapture:
    """A transforms.json whose frames have depth files; named by its folder below the collection."""

    path: Path
    name: str

    def measured(self) -> list[MeasuredFrame]:
        """The frames that have a camera and a depth file; ValueError where there is none, or where a lens bends."""
        frames, _ = read_transforms(self.path)
        if any(frame.lens is not None for frame in frames):
            raise ValueError(f"{self.path}: depth maps of pictures with lens distortion are not read; undistort both")
        found = [MeasuredFrame(frame, *file) for frame, file in zip(frames, depth_files(self.path)) if file]
        found = [item for item in found if item.frame.world_to_camera is not None]
        if not found:
            raise ValueError(f"{self.path}: no frame has both a camera and a depth_file_path")
        return found


@dataclass(frozen=True)
class MegadepthDepth:
    """A MegaDepth model with the depth that MegaDepth made of it."""

    scene: megadepth.MegadepthScene

    @property
    def name(self) -> str:
        return self.scene.name

    def measured(self) -> list[MeasuredFrame]:
        reading = self.scene.read()
        return [MeasuredFrame(frame, depth) for frame, depth in zip(reading.frames, reading.depths) if depth]


def find_depth_scenes(kind: str, root: Path, leave_out: Sequence[str] = ()) -> list[DepthScene]:
    """The scenes of a collection, `kind` captures or megadepth (without the landmarks that novel views are tested on),
    but for those whose name contains one of `leave_out`. ValueError where there is none."""
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; expected a collection of {kind}")
    if kind == "megadepth":
        kept = megadepth.without_test_landmarks(megadepth.find_scenes(root)[0])
        scenes: list[DepthScene] = [MegadepthDepth(scene) for scene in kept]
    elif kind == "captures":
        files = sorted(root.rglob("transforms.json"))
        scenes = [DepthCapture(path, path.parent.relative_to(root).as_posix()) for path in files]
    else:
        raise ValueError(f"kind: expected captures or megadepth, got {kind!r}")
    scenes = [scene for scene in scenes if not any(word in scene.name for word in leave_out)]
    if not scenes:
        raise ValueError(f"{root}: no scenes of {kind} here (left out: {', '.join(leave_out) or 'nothing'})")
    return scenes


def label_path(labels: Path, scene: str, frame: Frame) -> Path:
    """Where the label of a picture lies."""
    return labels / scene / f"{Path(frame.name).stem}.npy"


def read_depth_views(
    measured: Sequence[MeasuredFrame],
    height: int,
    width: int,
    labels: Sequence[Path | None] | None = None,
    far: float | None = None,
) -> tuple[Views, Tensor]:
    """Pictures scaled and cropped to cover height x width, and their depth (1,S,H,W), 0 where there is none.

    Where `labels` names a file that exists, it takes the place of measured depth. Depth beyond `far` and under a mask
    counts as not known.
    """
    views = load_covering([item.frame for item in measured], height, width)
    maps = []
    for index, item in enumerate(measured):
        label = None if labels is None else labels[index]
        depth = read_depth(label) if label is not None and label.is_file() else item.read()
        depth = nearest(depth, item.frame, views.known_cameras.intrinsics[0, index], height, width)
        maps.append(depth if far is None else torch.where(depth <= far, depth, 0))
    depth = torch.stack(maps)[None]
    return views, depth if views.masks is None else torch.where(views.masks, depth, 0)


def write_depth_capture(folder: Path, views: Views, depth: Tensor) -> None:
    """Write posed views (1,S) and their depth (1,S,H,W) as a capture of this kind."""
    names = [f"images/{name}.png" for name in views.names]
    for name, image, values in zip(names, views.images[0], depth[0]):
        write_image(folder / name, image.permute(1, 2, 0).numpy())
        file = folder / "depth" / f"{Path(name).stem}.npy"
        file.parent.mkdir(exist_ok=True)
        np.save(file, values.numpy())
    write_transforms(folder / "transforms.json", views.known_cameras, names)
    content = json.loads((folder / "transforms.json").read_text())
    for frame in content["frames"]:
        frame["depth_file_path"] = f"depth/{Path(frame['file_path']).stem}.npy"
    (folder / "transforms.json").write_text(json.dumps(content, indent=1))


def nearest(depth: Tensor, frame: Frame, intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Depth (h,w) of the whole of a picture as a camera (3,3) of the same pose sees it at height x width.

    The value at the pixel centres, 0 outside the picture.
    """
    rows, columns = depth.shape
    camera = frame.camera
    own = camera.intrinsics[0, 0].to(torch.float64)
    seen = intrinsics.to(torch.float64)
    x = (torch.arange(width) + 0.5 - seen[0, 2]) / seen[0, 0] * own[0, 0] + own[0, 2]
    y = (torch.arange(height) + 0.5 - seen[1, 2]) / seen[1, 1] * own[1, 1] + own[1, 2]
    column, row = (x * columns / camera.width).floor().long(), (y * rows / camera.height).floor().long()
    inside = ((row >= 0) & (row < rows))[:, None] & ((column >= 0) & (column < columns))
    return torch.where(inside, depth[row.clamp(0, rows - 1)[:, None], column.clamp(0, columns - 1)], 0)
