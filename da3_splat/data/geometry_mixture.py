"""Batches for training geometry from several data sets at once, each with a weight and its own notes.

Which data set, scene and views a batch has follows from (seed, position, rank) alone. Its size and view count are those
of `batch_shape`, the same on all ranks. What cannot be read is logged, named in the batch and replaced by the next.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import IterableDataset

from da3_splat.data.depth_captures import DepthScene, MeasuredFrame, find_depth_scenes, label_path, read_depth_views
from da3_splat.data.episodes import UNREADABLE
from da3_splat.data.sequences import items_from
from da3_splat.data.synthetic_batches import BatchShape, GeometryBatch, StepSampler, batch_shape, make_batch
from da3_splat.types import Cameras, Geometry

logger = logging.getLogger(__name__)
MAX_ATTEMPTS = 100  # scenes in a row that cannot be read: then the data are not there


@dataclass(frozen=True)
class SourceConfig:
    """A data set and how it is used. The paper lists the sets and not their weights."""

    kind: Literal["synthetic", "captures", "megadepth"] = "synthetic"
    path: Path | None = None
    """its folder; none for synthetic worlds"""
    weight: float = 1.0
    """how often it is drawn, relative to the others"""
    labels: Path | None = None
    """folder of scripts/label_depth.py; none: measured depth all along"""
    far: float | None = None
    """depth beyond is not known (the range clips of appendix A), in the units of the set"""
    leave_out: tuple[str, ...] = ()
    """scenes whose name contains one of these words"""


@dataclass(frozen=True)
class LabelUse:
    """When a teacher's labels take the place of measured depth."""

    start: float = 0.6
    """share of the run before: 120k of 200k steps (section 4.2)"""
    raw_share: float = 0.0
    """of the pictures after: measured depth all the same (0.2 in the metric model, section 4.4)"""


class MixedBatches(IterableDataset):
    """(position, batch) pairs from where the sampler stands; the order is the same for any number of workers."""

    def __init__(self, sampler: StepSampler, sources: Sequence[SourceConfig], use: LabelUse, positions: int):
        """`positions` is the number of batches in the whole run, of which `use` takes shares."""
        if not sources or min(source.weight for source in sources) < 0 or sum(source.weight for source in sources) <= 0:
            raise ValueError("sources: expected at least one with a weight above 0, and none below")
        self.sampler, self.sources, self.use, self.positions = sampler, tuple(sources), use, positions
        self.scenes: list[list[DepthScene]] = []
        for source in sources:
            if source.kind == "synthetic":
                self.scenes.append([])
                continue
            if source.path is None:
                raise ValueError(f"sources: path: expected the folder of {source.kind}")
            self.scenes.append(find_depth_scenes(source.kind, source.path, source.leave_out))

    def __iter__(self) -> Iterator[tuple[int, GeometryBatch]]:
        return items_from(self.sampler.position, lambda position: (position, self.batch(position)))

    def batch(self, position: int) -> GeometryBatch:
        """Batch number `position` of the sampler's rank."""
        sampler = self.sampler
        shape = batch_shape(sampler.config, position)
        draw = np.random.default_rng([sampler.config.seed, position, sampler.rank])
        weights = np.array([source.weight for source in self.sources])
        index = int(draw.choice(len(weights), p=weights / weights.sum()))
        if self.sources[index].kind == "synthetic":
            return make_batch(sampler.config, position, sampler.rank, sampler.world_size)
        late = position >= self.use.start * self.positions
        parts = [self._scene(index, shape, late, draw) for _ in range(shape.count)]
        return _joined(parts, shape)

    def _scene(self, index: int, shape: BatchShape, late: bool, draw: np.random.Generator) -> GeometryBatch:
        """One scene of a source: views that follow each other in a random stretch, in random order."""
        source, scenes = self.sources[index], self.scenes[index]
        skipped: list[str] = []
        first = int(draw.integers(len(scenes)))
        for attempt in range(min(len(scenes), MAX_ATTEMPTS)):
            scene = scenes[(first + attempt) % len(scenes)]
            try:
                measured = _measured(scene)
                chosen = [measured[i] for i in _stretch(len(measured), shape.views, draw)]
                labels = None
                if late and source.labels is not None:
                    raw = draw.random(len(chosen)) < self.use.raw_share
                    paths = [label_path(source.labels, scene.name, item.frame) for item in chosen]
                    labels = [None if keep else path for keep, path in zip(raw, paths)]
                views, depth = read_depth_views(chosen, shape.height, shape.width, labels, source.far)
                if not (depth > 0).any():
                    raise ValueError("no depth in any of the views drawn")
                truth = Geometry(depth=depth, cameras=views.cameras)
                return GeometryBatch(views.images, truth, shape.give_cameras, skipped=tuple(skipped))
            except UNREADABLE as error:
                skipped.append(f"{scene.name}: {error}")
                logger.warning("scene skipped: %s: %s", scene.name, error)
        raise ValueError(
            f"{source.path}: {len(skipped)} scenes one after another cannot be used; the last: {skipped[-1]}"
        )


@lru_cache(maxsize=8)
def _measured(scene: DepthScene) -> list[MeasuredFrame]:
    return scene.measured()


def _stretch(frames: int, views: int, draw: np.random.Generator) -> list[int]:
    """`views` of the frames: evenly spread over a random stretch of at least so many, in random order."""
    if frames < views:
        raise ValueError(f"{frames} frames with depth are too few for {views} views")
    length = int(draw.integers(views, frames + 1))
    start = int(draw.integers(frames - length + 1))
    chosen = start + np.linspace(0, length - 1, views).round().astype(int) if views > 1 else [start]
    return [int(i) for i in draw.permutation(chosen)]


def _joined(parts: list[GeometryBatch], shape: BatchShape) -> GeometryBatch:
    """Scenes of one view count and size as one batch."""

    def cat(pick) -> torch.Tensor:
        return torch.cat([pick(part) for part in parts])

    cameras = Cameras(
        world_to_camera=cat(lambda p: p.truth.cameras.world_to_camera),
        intrinsics=cat(lambda p: p.truth.cameras.intrinsics),
        height=shape.height,
        width=shape.width,
    )
    truth = Geometry(depth=cat(lambda p: p.truth.depth), cameras=cameras)
    skipped = tuple(line for part in parts for line in part.skipped)
    return GeometryBatch(cat(lambda p: p.images), truth, shape.give_cameras, skipped=skipped)
