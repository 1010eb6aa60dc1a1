"""Episodes of many scenes for training: contexts that go in, targets that are asked for, at one size.

Which scene, size and view count an episode has follows from (seed, epoch, rank, position) alone, and no scene is
opened before its turn, so ten thousand scenes start at once, ranks share no episode (and, with one episode a scene,
no scene of an epoch), and a resumed run goes on with the next episode. A scene that cannot be read is logged, counted,
and replaced by the next of the same rank.
"""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from da3_splat.data.loading import load_covering
from da3_splat.data.sequences import worker_share
from da3_splat.data.view_selection import bounded_gap_views, farthest_point_views
from da3_splat.data.views import PATCH
from da3_splat.io.frames import Frame, poses_of
from da3_splat.types import Record, Views

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 100  # unreadable scenes in a row: then the data is not there
UNREADABLE = (ValueError, OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


class SceneSource(Protocol):
    """What an episode needs of a scene; `frames` may be slow and may raise ValueError."""

    @property
    def name(self) -> str: ...

    def frames(self) -> list[Frame]: ...


@dataclass(frozen=True)
class Shape:
    """Size in pixels and view counts of an episode; targets may have a size of their own."""

    height: int
    width: int
    contexts: int
    targets: int
    target_size: tuple[int, int] | None = None


Selection = Callable[[list[Frame], Shape, torch.Generator], tuple[list[int], list[int]]]


@dataclass(frozen=True)
class Episode:
    """Positions of contexts and targets in the frames of a scene, and where in training the episode stands."""

    scene: str
    contexts: tuple[int, ...]
    targets: tuple[int, ...]
    height: int
    width: int
    seed: int
    epoch: int
    position: int
    target_size: tuple[int, int] | None = None
    skipped: tuple[str, ...] = ()  # scenes that could not be read and were to come first, a line each


@dataclass(frozen=True)
class LoadedEpisode(Record):
    """An episode with its pictures, both of batch size 1 and with cameras; true depth of the contexts (1,S,H,W, 0
    where there is none) where it is known."""

    episode: Episode
    context: Views
    target: Views
    depth: Tensor | None = None


def shapes_for_budget(
    sizes: Sequence[tuple[int, int]], tokens: int, targets: int, fewest: int = 2, most: int = 18
) -> tuple[Shape, ...]:
    """A shape for each (height, width): as many contexts (fewest to most) as `tokens` patches of 14x14 pay for.

    Large pictures come with few views and small ones with many, so that each step costs about the same.
    """
    shapes = []
    for height, width in sizes:
        if height % PATCH or width % PATCH or min(height, width) < PATCH:
            raise ValueError(f"sizes: expected multiples of {PATCH}, got {height}x{width}")
        contexts = tokens // (height // PATCH * (width // PATCH))
        if contexts < fewest:
            raise ValueError(f"tokens: {tokens} pay for {contexts} contexts of {height}x{width}, expected {fewest}")
        shapes.append(Shape(height, width, min(contexts, most), targets))
    return tuple(shapes)


@dataclass(frozen=True)
class WindowSelection:
    """Contexts in a random window of a video, targets between them (see `bounded_gap_views`)."""

    min_gap: int = 2
    max_gap: int = 20

    def __call__(self, frames: list[Frame], shape: Shape, generator: torch.Generator) -> tuple[list[int], list[int]]:
        return bounded_gap_views(
            len(frames), shape.contexts, self.min_gap, self.max_gap, generator, targets=shape.targets
        )


@dataclass(frozen=True)
class FarthestSelection:
    """Random targets, and contexts spread over the rest by pose distance (DA3 trains so, with 12 contexts).

    `pool` frames are drawn first, so that the same scene gives different contexts; None takes all.
    """

    pool: int | None = 100

    def __call__(self, frames: list[Frame], shape: Shape, generator: torch.Generator) -> tuple[list[int], list[int]]:
        needed = shape.contexts + shape.targets
        if len(frames) < needed:
            raise ValueError(f"{len(frames)} frames are too few for {shape.contexts} contexts, {shape.targets} targets")
        pool = len(frames) if self.pool is None else max(self.pool, needed)
        drawn = torch.randperm(len(frames), generator=generator)[:pool].tolist()
        targets, rest = drawn[: shape.targets], drawn[shape.targets :]
        first = rest[int(torch.randint(len(rest), (1,), generator=generator))]
        return farthest_point_views(poses_of(frames), shape.contexts, rest, first), sorted(targets)


@dataclass
class EpisodeSampler:
    """Episodes of this rank without end, or of `epochs` epochs; iterating goes on where `load_state_dict` says.

    `open_scenes` is how many scenes are kept open; `episodes_per_scene` how often each has its turn in an epoch.
    Changing scenes, seed, shapes or the number of ranks starts another sequence, so a state of the old is refused.
    """

    scenes: Sequence[SceneSource]
    shapes: Sequence[Shape]
    select: Selection = field(default_factory=WindowSelection)
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    episodes_per_scene: int = 1
    epochs: int | None = None
    open_scenes: int = 4
    epoch: int = 0
    position: int = 0
    skipped: int = 0

    def __post_init__(self):
        if not self.shapes:
            raise ValueError("shapes: expected at least one")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank: expected 0 to {self.world_size - 1}, got {self.rank}")
        if len(self) == 0:
            raise ValueError(
                f"{len(self.scenes)} scenes x {self.episodes_per_scene} are fewer episodes than {self.world_size} ranks"
            )
        self._identity = {
            "seed": self.seed,
            "world_size": self.world_size,
            "scenes": zlib.crc32("\n".join(scene.name for scene in self.scenes).encode()),
            "episodes_per_scene": self.episodes_per_scene,
            "shapes": zlib.crc32(repr(tuple(self.shapes)).encode()),
        }

    def __len__(self) -> int:
        """Episodes of this rank in an epoch, the same for every rank (what does not divide is left for another)."""
        return len(self.scenes) * self.episodes_per_scene // self.world_size

    @property
    def used(self) -> int:
        """Episodes of this rank used so far, over all epochs."""
        return self.epoch * len(self) + self.position

    def __iter__(self) -> Iterator[Episode]:
        """Episodes from the present state on, which advances with each."""
        for episode, _ in self.stream(lambda frames, episode: None):
            self.advance(episode)
            yield episode

    def stream(self, load: Callable, first: int = 0, step: int = 1) -> Iterator[tuple[Episode, Any]]:
        """Episodes `first`, `first + step`, ... from the present state on, which stays, with what
        `load(frames, episode)` gives; where that cannot read a file, another scene takes its place."""
        opened = _OpenScenes(self.scenes, self.open_scenes)
        ahead = self.used + first
        while self.epochs is None or ahead < self.epochs * len(self):
            yield self._episode(*divmod(ahead, len(self)), opened, load)
            ahead += step

    def advance(self, episode: Episode) -> None:
        """Say that `episode` has been used: the state becomes that of the one after it."""
        self.epoch, self.position = divmod(episode.epoch * len(self) + episode.position + 1, len(self))
        self.skipped += len(episode.skipped)

    def state_dict(self) -> dict[str, int]:
        """Where to go on, and how many scenes were skipped so far: plain numbers."""
        return {**self._identity, "epoch": self.epoch, "position": self.position, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a state; ValueError where it belongs to another sequence."""
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise ValueError(
                    f"sampler state: {name} differ: the state is of {state.get(name)}, the sampler of {value}"
                )
        self.epoch, self.position, self.skipped = state["epoch"], state["position"], state["skipped"]

    def _episode(self, epoch: int, position: int, opened: _OpenScenes, load: Callable) -> tuple[Episode, object]:
        order = _order(len(self.scenes) * self.episodes_per_scene, self.seed, epoch)
        share = order[self.rank :: self.world_size][: len(self)]
        # All ranks draw the same shape, so none waits for another.
        draw = np.random.default_rng([self.seed, epoch, position])
        shape = self.shapes[int(draw.integers(len(self.shapes)))]
        seed = int(np.random.default_rng([self.seed, epoch, position, self.rank]).integers(1 << 62))
        skipped: list[str] = []
        for attempt in range(min(len(share), MAX_ATTEMPTS)):
            index = int(share[(position + attempt) % len(share)]) % len(self.scenes)
            name = self.scenes[index].name
            try:
                frames = opened.frames(index)
                contexts, targets = self.select(frames, shape, torch.Generator().manual_seed(seed))
                if set(contexts) & set(targets):
                    raise ValueError("the selection gave a target that is a context")
                episode = Episode(
                    scene=name,
                    contexts=tuple(contexts),
                    targets=tuple(targets),
                    height=shape.height,
                    width=shape.width,
                    seed=seed,
                    epoch=epoch,
                    position=position,
                    target_size=shape.target_size,
                    skipped=tuple(skipped),
                )
                return episode, load(frames, episode)
            except UNREADABLE as error:
                skipped.append(f"{name}: {error}")
                logger.warning("scene skipped: %s: %s", name, error)
        raise ValueError(f"{len(skipped)} scenes one after another cannot be used; the last: {skipped[-1]}")


class EpisodeDataset(IterableDataset):
    """The episodes of a sampler with their pictures, for `DataLoader(dataset, batch_size=None, num_workers=...)`.

    The order is the same for any number of workers. Workers run ahead with copies of the sampler, so tell the sampler
    what was used, `sampler.advance(loaded.episode)`; its `state_dict` then goes on with the next episode.
    """

    def __init__(self, sampler: EpisodeSampler):
        self.sampler = sampler

    def __iter__(self) -> Iterator[LoadedEpisode]:
        first, step = worker_share()
        for episode, (context, target) in self.sampler.stream(_load, first, step):
            yield LoadedEpisode(episode, context, target)


class _OpenScenes:
    """The frames of the scenes used last. Each worker makes its own: processes must not share an open zip."""

    def __init__(self, scenes: Sequence[SceneSource], capacity: int):
        self.scenes, self.capacity = scenes, capacity
        self.held: OrderedDict[int, list[Frame]] = OrderedDict()

    def frames(self, index: int) -> list[Frame]:
        if index in self.held:
            self.held.move_to_end(index)
            return self.held[index]
        frames = self.scenes[index].frames()
        self.held[index] = frames
        while len(self.held) > self.capacity:
            self.held.popitem(last=False)
        return frames


def _load(frames: list[Frame], episode: Episode) -> tuple[Views, Views]:
    """Context and target views of an episode."""
    size = (episode.height, episode.width)
    context = load_covering([frames[i] for i in episode.contexts], *size)
    return context, load_covering([frames[i] for i in episode.targets], *(episode.target_size or size))


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)
