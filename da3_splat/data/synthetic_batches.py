"""Batches of synthetic worlds for training geometry: pictures and exact geometry, a function of the step's number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from da3_splat.data.sequences import SequenceState, items_from
from da3_splat.data.synthetic import make_scenes, render_objects, sample_worlds
from da3_splat.types import Geometry, Record

FIRST_SEED = 100_000_000  # worlds of heads, evaluations and tests have other seeds


@dataclass(frozen=True)
class WorldsConfig:
    """What the batches are drawn from."""

    sizes: tuple[tuple[int, int], ...] = ((84, 112),)
    """heights and widths; each batch has one of them"""
    views: tuple[int, ...] = (2, 3, 4, 6)
    pixels: int = 48 * 84 * 112
    """of all pictures of a batch together, and so its tokens: large pictures come with few worlds, and with no more
    views than fit"""
    arc: tuple[float, float] = (10.0, 100.0)
    """degrees between the outermost cameras of a world"""
    given_share: float = 0.2
    """of the batches: cameras are given (section 3.3)"""
    objects: bool = False
    """say where objects stand, which a teacher learns"""
    widening_steps: int = 0
    """so many steps until the widest arcs appear: views that see nearly the same are matched first"""
    seed: int = 0


@dataclass(frozen=True)
class GeometryBatch(Record):
    """Pictures (B,S,3,H,W) of a batch and their true geometry, in any order of the views.

    `objects` (B,S,H,W) bool says where objects stand, where the data know. `skipped` names what could not be read.
    """

    images: Tensor
    truth: Geometry
    give_cameras: bool
    objects: Tensor | None = None
    skipped: tuple[str, ...] = ()


@dataclass
class StepSampler(SequenceState):
    """Where a run stands: the batch is a function of the seed, the position and the rank.

    A run may go on with another number of ranks. It goes on behind the worlds that all ranks have used; with
    `accumulate` changed the other way round, a step still sees as many.
    """

    config: WorldsConfig
    rank: int = 0
    world_size: int = 1
    position: int = 0

    @property
    def seed(self) -> int:  # type: ignore[override]  # a field of the others, and never set
        return self.config.seed

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a state; ValueError where it is of another seed."""
        behind = state.get("position", 0) * state.get("world_size", 1)
        super().load_state_dict({**state, "world_size": self.world_size, "position": -(-behind // self.world_size)})

    def advance(self, position: int) -> None:
        """Say that the batch of `position` has been used."""
        self.position = position + 1


class SyntheticBatches(IterableDataset):
    """(position, batch) pairs from the sampler's position on; the order is the same for any number of workers."""

    def __init__(self, sampler: StepSampler):
        self.sampler = sampler

    def __iter__(self) -> Iterator[tuple[int, GeometryBatch]]:
        sampler = self.sampler

        def numbered(position: int) -> tuple[int, GeometryBatch]:
            return position, make_batch(sampler.config, position, sampler.rank, sampler.world_size)

        return items_from(sampler.position, numbered)


@dataclass(frozen=True)
class BatchShape:
    """Worlds, views and size of a batch, and whether cameras are given: the same on all ranks."""

    count: int
    views: int
    height: int
    width: int
    give_cameras: bool


def batch_shape(config: WorldsConfig, position: int) -> BatchShape:
    """The shape of batch number `position`."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + position)
    height, width = config.sizes[int(torch.randint(len(config.sizes), (1,), generator=generator))]
    views = config.views[int(torch.randint(len(config.views), (1,), generator=generator))]
    give_cameras = bool(torch.rand((), generator=generator) < config.given_share)
    views = max(1, min(views, config.pixels // (height * width)))
    count = max(1, round(config.pixels / (height * width) / views))
    return BatchShape(count, views, height, width, give_cameras)


def make_batch(config: WorldsConfig, position: int, rank: int = 0, world_size: int = 1) -> GeometryBatch:
    """Batch number `position` of a rank."""
    shape = batch_shape(config, position)
    count, views = shape.count, shape.views
    low, high = config.arc
    if config.widening_steps:
        high = low + (high - low) * min(1.0, 0.2 + 0.8 * position / config.widening_steps)
    seed = FIRST_SEED + 10_000_000 * config.seed + position * world_size + rank
    generator = torch.Generator().manual_seed(seed)
    arc = low + (high - low) * torch.rand(count, generator=generator)
    given, truth = make_scenes(count, views, shape.height, shape.width, 2 * seed, arc=arc, supersample=1)
    objects = render_objects(sample_worlds(count, 2 * seed), truth.known_cameras) if config.objects else None
    order, sky = torch.randperm(views, generator=generator).tolist(), truth.sky  # any view may define the world
    assert sky is not None, "made scenes know their sky"
    truth = replace(truth, depth=truth.depth[:, order], sky=sky[:, order], cameras=truth.known_cameras.select(order))
    gain = 0.7 + 0.6 * torch.rand(count, views, 3, 1, 1, generator=generator)  # exposure and white balance
    images = (given.images[:, order] * gain).clamp(0, 1)
    return GeometryBatch(images, truth, shape.give_cameras, None if objects is None else objects[:, order])
