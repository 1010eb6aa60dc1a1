"""From a recipe's words to batches for a Gaussian head: which scenes, sizes and view counts, and what is done when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from da3_splat.data.captures import find_frames
from da3_splat.data.episodes import (
    Episode,
    EpisodeDataset,
    EpisodeSampler,
    FarthestSelection,
    LoadedEpisode,
    Shape,
    WindowSelection,
    shapes_for_budget,
)
from da3_splat.data.synthetic_episodes import SyntheticEpisodes, SyntheticSampler
from da3_splat.io.frames import Frame
from da3_splat.training.gaussian_head import HeadBatch
from da3_splat.training.loop import make_loader


@dataclass(frozen=True)
class DataConfig:
    """Where episodes come from."""

    source: Literal["synthetic", "dl3dv", "megadepth", "captures"] = "synthetic"
    path: Path | None = None
    """folder of the collection, or of captures (transforms.json or COLMAP models)"""
    exclude: Path | None = None
    """dl3dv: file of scene hashes to leave out (the 140 of the benchmark)"""
    sizes: tuple[tuple[int, int], ...] = ((84, 112), (112, 84), (112, 154))
    """heights and widths of what the network sees, multiples of 14"""
    target_size: tuple[int, int] | None = None
    """of what is rendered and compared, where it differs"""
    contexts: int | None = 4
    """views that go in; None: as many as `tokens` pay for"""
    tokens: int = 2000
    """patches of all contexts together, so that steps of any size cost about the same"""
    targets: int = 2
    selection: Literal["farthest", "window"] = "farthest"
    """contexts spread over the scene as in the paper, or a stretch of a video"""
    pose_free_share: float = 0.0
    """of the episodes: the backbone poses contexts and targets"""
    seed: int = 0
    workers: int = 1


@dataclass(frozen=True)
class CaptureScene:
    """One capture of a folder of them."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def frames(self) -> list[Frame]:
        frames = find_frames(self.path).frames
        if any(frame.world_to_camera is None for frame in frames):
            raise ValueError(f"{self.path}: some pictures have no camera")
        return frames


def make_sampler(config: DataConfig, rank: int = 0, world_size: int = 1) -> EpisodeSampler | SyntheticSampler:
    """The endless sequence of episodes that the recipe describes; ValueError where there are no scenes."""
    if config.contexts is None:
        shapes = shapes_for_budget(config.sizes, config.tokens, config.targets)
    else:
        shapes = tuple(Shape(*size, config.contexts, config.targets) for size in config.sizes)
    shapes = tuple(replace(shape, target_size=config.target_size) for shape in shapes)
    if config.source == "synthetic":
        return SyntheticSampler(shapes, config.seed, rank, world_size)
    if config.path is None:
        raise ValueError(f"path: expected the folder of {config.source}")
    scenes = _scenes(config, config.path)
    if not scenes:
        raise ValueError(f"{config.path}: no scenes of {config.source} to train on")
    select = FarthestSelection() if config.selection == "farthest" else WindowSelection()
    return EpisodeSampler(scenes, shapes, select, config.seed, rank, world_size)


def _scenes(config: DataConfig, path: Path) -> list:
    if config.source == "dl3dv":
        from da3_splat.data import dl3dv

        scenes, _ = dl3dv.find_scenes(path)
        return scenes if config.exclude is None else dl3dv.without(scenes, dl3dv.read_hashes(config.exclude))
    if config.source == "megadepth":
        from da3_splat.data import megadepth

        return megadepth.without_test_landmarks(megadepth.find_scenes(path)[0])
    found = {file.parent for file in path.rglob("transforms.json")}
    models = {file.parent for name in ("cameras.bin", "cameras.txt") for file in path.rglob(name)}
    # A capture often brings both: its COLMAP model is the same scene once more.
    found |= {folder for folder in models if not found.intersection(folder.parents)}
    return [CaptureScene(folder) for folder in sorted(found)]


def head_batches(
    sampler: EpisodeSampler | SyntheticSampler, config: DataConfig, merge_after: int, pin: bool = False
) -> Iterator[tuple[Episode, HeadBatch]]:
    """Batches from where the sampler stands; those from position `merge_after` of the run on ask for merging. `pin`
    reads them into page-locked memory, for a GPU."""
    dataset = SyntheticEpisodes(sampler) if isinstance(sampler, SyntheticSampler) else EpisodeDataset(sampler)
    for number, loaded in enumerate(make_loader(dataset, config.workers, pin), start=sampler.used):
        yield loaded.episode, head_batch(loaded, config, merged=number >= merge_after)


def head_batch(loaded: LoadedEpisode, config: DataConfig, merged: bool) -> HeadBatch:
    """The batch of one episode; what is drawn follows from the episode's seed."""
    draw = (loaded.episode.seed * 2654435761 % (1 << 32)) / (1 << 32)
    return HeadBatch(
        context=loaded.context,
        target=loaded.target,
        depth=loaded.depth,
        pose_free=draw < config.pose_free_share,
        merged=merged,
        supervised_context=loaded.episode.seed // 7 % loaded.context.images.shape[1],
    )
