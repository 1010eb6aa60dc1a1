"""Endless sequences whose items follow from their number: where a run stands in one, and how workers share it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from torch.utils.data import get_worker_info

Item = TypeVar("Item")


class SequenceState:
    """Where a run stands; the sequence is that of a seed and a number of ranks. For dataclasses with these fields."""

    seed: int
    world_size: int
    position: int

    @property
    def used(self) -> int:
        """Items of this rank used so far."""
        return self.position

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed, "world_size": self.world_size, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a state; ValueError where it belongs to another sequence."""
        if (state.get("seed"), state.get("world_size")) != (self.seed, self.world_size):
            raise ValueError(f"sampler state: belongs to another seed or number of ranks: {state}")
        self.position = state["position"]


def worker_share() -> tuple[int, int]:
    """The first item of this loader's worker and its step, so that the order is the same for any number of them."""
    worker = get_worker_info()
    return (0, 1) if worker is None else (worker.id, worker.num_workers)


def items_from(position: int, make: Callable[[int], Item]) -> Iterator[Item]:
    """make(position), make(position + 1), ... without end; of several workers each makes its share."""
    first, step = worker_share()
    position += first
    while True:
        yield make(position)
        position += step
