"""Work on the views of one scene split over the processes that torchrun started; every process gets every answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as distributed

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Workers = Callable[[Callable, Sequence], Iterable]  # `map` is one; `map_over_ranks` another


def map_over_ranks(function: Callable[[Item], Answer], items: Sequence[Item]) -> Iterator[Answer]:
    """`map`, each process computing every so-manieth item, and exchanging the answers round by round.

    Answers come in the order of the items, so sums over them do not depend on how many processes there are. All
    processes must call it with the same items and go through all answers.
    """
    rank, world = distributed.get_rank(), distributed.get_world_size()
    for start in range(0, len(items), world):
        mine = function(items[start + rank]) if start + rank < len(items) else None
        answers: list = [None] * world
        # A tensor would arrive on the GPU that it left, which is another process's.
        distributed.all_gather_object(answers, (on_gpu(mine), moved(mine, torch.device("cpu"))))
        for was_on_gpu, answer in answers[: len(items) - start]:
            yield moved(answer, torch.device("cuda", torch.cuda.current_device())) if was_on_gpu else answer


def on_gpu(answer: object) -> bool:
    """Whether any tensor of an answer, or of its records, lies elsewhere than on the CPU."""
    if isinstance(answer, (tuple, list)):
        return any(on_gpu(part) for part in answer)
    if is_dataclass(answer):
        return on_gpu([getattr(answer, item.name) for item in fields(answer)])
    return isinstance(answer, torch.Tensor) and answer.device.type != "cpu"


def moved(answer: Any, device: torch.device) -> Any:
    """An answer with its tensors, and its records of tensors, on `device`."""
    if isinstance(answer, (tuple, list)):
        return type(answer)(moved(part, device) for part in answer)
    return answer.to(device) if hasattr(answer, "to") else answer


@contextmanager
def launched() -> Iterator[tuple[Workers, bool]]:
    """How to work on views here, and whether this process writes the results: under torchrun all of them work
    together (gloo on CPUs, NCCL on GPUs), else this one alone."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield map, True
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield map_over_ranks, distributed.get_rank() == 0
    finally:
        distributed.destroy_process_group()
