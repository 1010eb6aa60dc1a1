"""What the commands show while they work: on a terminal bars and remarks, nothing of it where the output is piped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from da3_splat.refinement import Refinement


def say(message: str) -> None:
    """A remark for whoever watches."""
    if sys.stderr.isatty():
        print(message, file=sys.stderr)


def note(message: str) -> None:
    """A remark that is worth a line in a log, too."""
    print(f"note: {message}", file=sys.stderr)


def bar(title: str) -> Callable[[Iterable], Iterable]:
    """A function that wraps an iterable in a progress bar."""

    def wrap(items: Iterable) -> Iterable:
        from rich.console import Console
        from rich.progress import track

        return track(items, title, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)

    return wrap


@contextmanager
def refining_bar() -> Iterator[Callable[[Refinement], None]]:
    """A bar for `refine`, by steps or by the clock, with the PSNR so far; what is given is its `watch`."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("refining"), BarColumn(), TextColumn("{task.fields[state]}"), TimeRemainingColumn())
    shown = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)
    with shown:
        task = shown.add_task("refining", total=1.0, state="")

        def watch(refinement: Refinement) -> None:
            state = f"{refinement.psnr:.1f} dB, {refinement.steps} steps"
            shown.update(task, completed=refinement.share, state=state)

        yield watch
