"""Where scenes come from: captures, synthetic worlds, public data sets. None is opened before its turn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from da3_splat.data import dl3dv, megadepth
from da3_splat.data.benchmarks.scene import Judged
from da3_splat.data.benchmarks.table import BENCHMARKS
from da3_splat.data.captures import find_frames
from da3_splat.data.stress import arc_of, exposure, moved_worlds, varied_worlds
from da3_splat.data.synthetic import render_worlds, sample_cameras, sample_worlds
from da3_splat.data.view_index import ViewIndex
from da3_splat.io.depth_maps import depth_files, read_depth
from da3_splat.io.frames import Frame
from da3_splat.types import Cameras

FIRST_SEED = 20_000_000  # of synthetic worlds that no training draws, two apart
MEMBERS = ("transforms.json", "sparse", "cameras.bin", "cameras.txt")  # what a posed capture has one of


class EvaluationScene(Protocol):
    """A scene by name; `frames` may be slow, and raises ValueError where the scene cannot be read."""

    @property
    def name(self) -> str: ...

    def frames(self) -> list[Frame]: ...


class SceneWithDepth(EvaluationScene, Protocol):
    """A scene that knows the true z-depth (H,W) of its frames, 0 where it does not; None where a frame has none.

    `has_depth` says so without reading it. `surface` and `judged` are those of `BenchmarkScene`, None where the depth
    maps are all the truth there is.
    """

    surface: Path | None
    judged: Judged | None

    def has_depth(self, index: int) -> bool: ...

    def depth(self, index: int) -> Tensor | None: ...


@dataclass(frozen=True)
class CaptureScene:
    """One posed capture: a transforms.json or a COLMAP model. The former may name a depth map for each frame."""

    name: str
    path: Path
    surface = judged = None

    @cached_property
    def _listed(self) -> list[tuple[Frame, tuple[Path, float] | None]]:
        """Frames by name, each with the file and the unit of its depth map."""
        frames = find_frames(self.path).frames
        transforms = self.path if self.path.suffix == ".json" else self.path / "transforms.json"
        files = depth_files(transforms) if transforms.is_file() else [None] * len(frames)
        return sorted(zip(frames, files), key=lambda pair: pair[0].name)

    def frames(self) -> list[Frame]:
        return [frame for frame, _ in self._listed]

    def has_depth(self, index: int) -> bool:
        return self._listed[index][1] is not None

    def depth(self, index: int) -> Tensor | None:
        file = self._listed[index][1]
        return None if file is None else read_depth(*file)


@dataclass(frozen=True)
class SyntheticScene:
    """A world by its seed, `views` pictures of height x width along an arc of so many degrees.

    `variation` makes it hard (data/stress.py); where it disturbs pictures one by one, every `steady`-th is left alone.
    """

    seed: int
    views: int = 25
    height: int = 168
    width: int = 224
    arc: float = 60.0
    variation: str = "plain"
    steady: int = 8
    surface = judged = None

    @property
    def name(self) -> str:
        return f"world_{self.seed}" + ("" if self.variation == "plain" else f"_{self.variation}")

    def frames(self) -> list[Frame]:
        pixels, _, cameras = _cast(self)
        return [
            Frame(
                path=Path(f"{self.name}_{index:04d}.png"),
                height=self.height,
                width=self.width,
                world_to_camera=cameras.world_to_camera[0, index].double(),
                intrinsics=cameras.intrinsics[0, index].double(),
                picture=Image.fromarray(picture),
            )
            for index, picture in enumerate(pixels)
        ]

    def has_depth(self, index: int) -> bool:
        return True

    def depth(self, index: int) -> Tensor:
        return _cast(self)[1][index]


@lru_cache(maxsize=1)
def _cast(scene: SyntheticScene) -> tuple[np.ndarray, Tensor, Cameras]:
    """8-bit pictures (V,H,W,3) as files have them, depth (V,H,W), cameras (1,V)."""
    plain, arc = sample_worlds(1, scene.seed), arc_of(scene.variation, scene.arc)
    cameras = sample_cameras(plain, scene.views, scene.height, scene.width, scene.seed + 1, arc)
    worlds, parts = varied_worlds(plain, scene.variation), []
    for view in range(scene.views):
        steady = view % scene.steady == 0
        seed = 1000 * scene.seed + view
        here = worlds if steady else moved_worlds(worlds, scene.variation, seed)
        images, geometry = render_worlds(here, cameras.select([view]))
        parts.append((images if steady else images * exposure(scene.variation, seed), geometry))
    images = torch.cat([images for images, _ in parts], dim=1)[0].permute(0, 2, 3, 1)
    pixels = (images.clamp(0, 1) * 255 + 0.5).to(torch.uint8).numpy()
    return pixels, torch.cat([geometry.depth for _, geometry in parts], dim=1)[0], cameras


@dataclass(frozen=True)
class MegadepthEvaluation:
    """A scene of MegaDepth with the depth of its pictures, in the units of its model."""

    scene: megadepth.MegadepthScene
    surface = judged = None

    @property
    def name(self) -> str:
        return self.scene.name

    def frames(self) -> list[Frame]:
        return _reading(self.scene).frames

    def has_depth(self, index: int) -> bool:
        return _reading(self.scene).depths[index] is not None

    def depth(self, index: int) -> Tensor | None:
        path = _reading(self.scene).depths[index]
        return None if path is None else megadepth.read_depth(path)


@lru_cache(maxsize=1)
def _reading(scene: megadepth.MegadepthScene) -> megadepth.MegadepthReading:
    return scene.read()


def scenes_at(path: Path, form: str) -> tuple[list[EvaluationScene], list[str]]:
    """The scenes of a format under `path`, and a line for each thing that looks like one and is none.

    captures: one capture, or a folder of captures. megadepth: the landmarks 5000 to 5018, on which nothing trains. The
    public data sets: see data/benchmarks. ValueError where there is no scene.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    problems: list[str] = []
    if form == "captures":
        scenes: list = _captures(path)
    elif form == "dl3dv":
        scenes, problems = dl3dv.find_scenes(path)
    elif form == "megadepth":
        found, problems = megadepth.find_scenes(path)
        scenes = [MegadepthEvaluation(scene) for scene in megadepth.only_test_landmarks(found)]
        if found and not scenes:
            first, last = megadepth.TEST_LANDMARKS[0], megadepth.TEST_LANDMARKS[-1]
            raise ValueError(f"{path}: none of the landmarks {first} to {last}, which are scored on")
    elif form in BENCHMARKS:
        scenes = BENCHMARKS[form].scenes(path)
    else:
        raise ValueError(f"format: {form} scenes do not lie in a folder")
    if not scenes:
        raise ValueError(
            f"{path}: no scene of the format {form} here" + (f"; {problems[0]}" if problems else _layout(form))
        )
    return scenes, problems


def _layout(form: str) -> str:
    """Where the expected folders are described."""
    if form not in BENCHMARKS:
        return ""
    return f"; the folders are described at the top of {BENCHMARKS[form].scenes.__module__.replace('.', '/')}.py"


def in_index(
    scenes: list[EvaluationScene], index: dict[str, ViewIndex | None]
) -> tuple[list[EvaluationScene], list[str]]:
    """The scenes that a view index asks for, and lines on what it leaves out and what it asks for in vain.

    ValueError where it asks for none of them.
    """
    asked = {name for name, views in index.items() if views is not None}
    kept = [scene for scene in scenes if scene.name in asked]
    if not kept:
        raise ValueError(f"index: none of its {len(asked)} scenes is among the {len(scenes)} here")
    missing = sorted(asked - {scene.name for scene in kept})
    notes = [f"{len(missing)} of {len(asked)} scenes of the index are not here ({missing[0]}, ...)"] if missing else []
    if len(kept) < len(scenes):
        notes.append(f"{len(scenes) - len(kept)} scenes here are left out by the index")
    return kept, notes


def _captures(path: Path) -> list[CaptureScene]:
    if path.is_file() or any((path / name).exists() for name in MEMBERS):
        name = path.parent.name if path.name == "transforms.json" else path.stem if path.is_file() else path.name
        return [CaptureScene(name or path.resolve().name, path)]
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return [CaptureScene(entry.name, entry) for entry in folders if any((entry / name).exists() for name in MEMBERS)]
