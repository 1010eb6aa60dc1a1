"""Episodes of synthetic worlds without end, made where they are needed, in the form of those of real scenes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import IterableDataset

from da3_splat.data.episodes import Episode, LoadedEpisode, Shape
from da3_splat.data.sequences import SequenceState, items_from
from da3_splat.data.synthetic import render_worlds, sample_cameras, sample_worlds
from da3_splat.types import Views

FIRST_SEED = 5_000_000  # worlds of evaluations and tests have other seeds


@dataclass
class SyntheticSampler(SequenceState):
    """Where a run stands in its worlds. World number n of all ranks together is drawn from `seed` and n."""

    shapes: Sequence[Shape]
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    position: int = 0

    def episode(self, position: int) -> Episode:
        """Episode number `position` of this rank; all ranks draw the same shape."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + position)
        shape = self.shapes[int(torch.randint(len(self.shapes), (1,), generator=generator))]
        number = position * self.world_size + self.rank
        views = shape.contexts + shape.targets
        # The outermost views stay contexts, so that targets lie between what was seen.
        inner = 1 + torch.randperm(views - 2, generator=generator)[: shape.targets]
        targets = tuple(sorted(inner.tolist()))
        return Episode(
            scene=f"world {number}",
            contexts=tuple(index for index in range(views) if index not in targets),
            targets=targets,
            height=shape.height,
            width=shape.width,
            seed=FIRST_SEED + 2 * (self.seed * 10_000_000 + number),
            epoch=0,
            position=position,
            target_size=shape.target_size,
        )

    def advance(self, episode: Episode) -> None:
        """Say that `episode` has been used."""
        self.position = episode.position + 1


class SyntheticEpisodes(IterableDataset):
    """The worlds of a sampler, rendered, with true depth; the order is the same for any number of workers."""

    def __init__(self, sampler: SyntheticSampler):
        self.sampler = sampler

    def __iter__(self) -> Iterator[LoadedEpisode]:
        return items_from(self.sampler.position, lambda position: load_world(self.sampler.episode(position)))


def load_world(episode: Episode) -> LoadedEpisode:
    """Pictures, cameras and depth of an episode of `SyntheticSampler`."""
    worlds = sample_worlds(1, episode.seed)
    views = len(episode.contexts) + len(episode.targets)
    cameras = sample_cameras(worlds, views, episode.height, episode.width, episode.seed + 1)
    context, target = cameras.select(list(episode.contexts)), cameras.select(list(episode.targets))
    if episode.target_size is not None:
        target = target.resized(*episode.target_size)
    images, truth = render_worlds(worlds, context, supersample=1)
    asked, _ = render_worlds(worlds, target, supersample=1)
    return LoadedEpisode(
        episode, Views(images=images, cameras=context), Views(images=asked, cameras=target), truth.depth
    )
