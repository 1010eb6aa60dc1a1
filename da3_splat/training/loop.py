"""The loop around the steps of a training: time, progress, checkpoints, and what may go wrong in days of it."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Protocol

from torch.utils.data import DataLoader, IterableDataset

from da3_splat.training.optimization import TrainingState

logger = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class LoopConfig:
    """When to stop, to save and to say something."""

    minutes: float | None = None
    """stop after so long; the checkpoint resumes"""
    save_seconds: float = 120.0
    """time between checkpoints: what a kill can cost"""
    log_steps: int = 50


class Sampler(Protocol):
    """Where a run stands in its data."""

    def advance(self, episode) -> None: ...
    def state_dict(self) -> dict[str, int]: ...
    def load_state_dict(self, state: dict[str, int]) -> None: ...


class ReaderDied(OSError):
    """A process that reads data is gone."""


@dataclass
class Shares:
    """Seconds of a run by what they went to."""

    data: float = 0.0
    steps: float = 0.0
    saving: float = 0.0

    def __str__(self) -> str:
        waiting = self.data / max(1e-9, self.data + self.steps)
        return f"{(self.data + self.steps + self.saving) / 60:.1f} min  data {waiting:.0%}"


def make_loader(dataset: IterableDataset, workers: int, pin: bool = False) -> DataLoader:
    """The items of a data set as they are, from worker processes that run ahead; 0: made where they are asked for.
    `pin` puts them into page-locked memory, from where a GPU copies them while it computes."""
    if workers == 0:
        return DataLoader(dataset, batch_size=None, pin_memory=pin)
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=3,
        worker_init_fn=_end_quietly,
        pin_memory=pin,
    )


def _end_quietly(worker: int) -> None:
    # pycolmap prints a stack trace where a process is told to end, which is how a loader's workers end. Ctrl-C, which
    # all processes of a terminal get, is for the first one: it saves, and then ends these.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run(
    state: TrainingState,
    batches: Iterable,
    sampler: Sampler,
    output: Path,
    config: LoopConfig,
    report: Callable[[int, dict[str, float], Shares], None],
    after_step: Callable[[int, object], None] = lambda step, batch: None,
) -> Shares:
    """Train from the state's step to its last one, or until the time is up.

    `batches` yields (episode, batch), from where the sampler stands. `report(step, mean parts, shares)` is called every
    `log_steps`, `after_step(step, last batch)` after every one. A checkpoint that cannot be written is logged and
    tried again later; the old one stays. Ctrl-C saves and ends.
    """
    shares = Shares()
    began = saved = time.monotonic()
    seen: dict[str, list[float]] = {}
    stream = iter(batches)
    asked = _Asked()
    try:
        while state.step < state.config.steps:
            clock = time.monotonic()
            pairs = _drawn(stream, state.config.accumulate)
            _leave_steps_whole()
            if len(pairs) < state.config.accumulate:
                break
            shares.data += time.monotonic() - clock
            clock = time.monotonic()
            for name, value in state.advance([batch for _, batch in pairs]).items():
                seen.setdefault(name, []).append(value)
            shares.steps += time.monotonic() - clock
            for episode, _ in pairs:
                sampler.advance(episode)
            try:
                after_step(state.step, pairs[-1][1])
                if state.step % config.log_steps == 0:
                    means = {name: sum(values) / len(values) for name, values in seen.items()}
                    seen = {}
                    report(state.step, means, shares)
            except OSError as error:  # a full disk must not end a run of days
                logger.warning("step %d is not in tensorboard: %s", state.step, error)
            now = time.monotonic()
            late = asked.stop or (config.minutes is not None and now - began > 60 * config.minutes)
            # Clocks differ, and all ranks must save and stop together: rank 0 says.
            save, stop = state.fabric.broadcast((now - saved > config.save_seconds, late))
            if save:
                shares.saving += _save(state, output, sampler)
                saved = time.monotonic()
            if stop:
                break
    except KeyboardInterrupt:
        logger.warning("stopped at step %d; the same command goes on", state.step)
    except ReaderDied as error:
        _save(state, output, sampler)
        words = f"a process that reads data died at step {state.step} (out of memory?); the same command goes on"
        raise ReaderDied(f"{output / CHECKPOINT}: {words}") from error
    finally:
        asked.listen_no_more()
    if asked.stop:
        logger.warning("stopped at step %d; the same command goes on", state.step)
    _save(state, output, sampler)
    return shares


class _Asked:
    """Whether Ctrl-C asked for the end: at the next step, which leaves no step half done. The exception that Python
    makes of it is at times swallowed by what runs underneath. Pressed again, it ends at once."""

    def __init__(self):
        self.stop = False
        main = threading.current_thread() is threading.main_thread()
        self.before = signal.signal(signal.SIGINT, self._heard) if main else None

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.stop:
            raise KeyboardInterrupt
        self.stop = True

    def listen_no_more(self) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)


def _drawn(stream: Iterator, count: int) -> list:
    """The next `count` items, fewer at the end; ReaderDied where one of the loader's processes is gone."""
    try:
        return list(islice(stream, count))
    except RuntimeError as error:
        # The thread that pins ends first where a process died while it handed something over.
        if "DataLoader worker" not in str(error) and "Pin memory thread" not in str(error):
            raise
        raise ReaderDied(str(error)) from error
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # it died while it handed something over
        raise ReaderDied(str(error)) from error


def _leave_steps_whole() -> None:
    """When a reader dies, torch raises in the middle of whatever runs, were it an optimizer's step. Without its signal
    the next draw that waits for that reader finds it out, within seconds."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _save(state: TrainingState, output: Path, sampler: Sampler) -> float:
    """Write the checkpoint; seconds it took. A full disk must not end a run of days."""
    clock = time.monotonic()
    try:
        state.save(output / CHECKPOINT, sampler.state_dict())
    except OSError as error:
        logger.warning("checkpoint of step %d not written, the last one stays: %s", state.step, error)
    return time.monotonic() - clock
