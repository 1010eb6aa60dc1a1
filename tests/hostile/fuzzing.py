"""Guided by coverage: of random edits, those that reach new lines of our readers become the start of others.

Small on purpose: one tracer on the files of da3_splat, one queue of inputs. The same seed tries the same inputs.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType

import da3_splat
from hostile.case import outcome
from hostile.mutations import changed, random_edits
from hostile.readers import Reader

OURS = str(Path(da3_splat.__file__).parent)
Step = tuple[str, int, int]
"""file, line before, line"""


@dataclass
class Fuzz:
    """What came of it: inputs read and refused, steps between lines seen, and what a reader did that it must not."""

    read: int = 0
    refused: int = 0
    kept: int = 0
    steps: set[Step] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)

    @property
    def tried(self) -> int:
        return self.read + self.refused + len(self.failures)


@contextmanager
def traced(steps: set[Step]) -> Iterator[None]:
    """Collects the steps from line to line in our own files."""

    def enter(frame: FrameType, event: str, argument: object) -> Callable | None:
        name = frame.f_code.co_filename
        if not name.startswith(OURS):
            return None
        last = 0

        def line(frame: FrameType, event: str, argument: object) -> Callable:
            nonlocal last
            if event == "line":
                steps.add((name, last, frame.f_lineno))
                last = frame.f_lineno
            return line

        return line

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)


def fuzz(reader: Reader, tries: int, seed: int = 0) -> Fuzz:
    """Try damaged copies of the reader's good input, `tries` of them."""
    random, found = Random(seed), Fuzz()
    with tempfile.TemporaryDirectory() as work:
        source, folder = Path(work) / "good", Path(work) / "input"
        source.mkdir()
        given = reader.good(source).relative_to(source)
        queue = [{file: (source / file).read_bytes() for file in reader.files}]
        for _ in range(tries):
            content = dict(random.choice(queue))
            file = random.choice(list(content))
            content[file] = changed(content[file], random_edits(random))
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(source, folder)
            for name, data in content.items():
                (folder / name).write_bytes(data)
            steps: set[Step] = set()
            try:
                with traced(steps):
                    verdict = outcome(reader.read, folder / given, folder)
            except AssertionError as error:
                found.failures.append(f"{file}: {error}")
                continue
            found.read += verdict == "read"
            found.refused += verdict == "refused"
            if not steps <= found.steps:
                found.steps |= steps
                found.kept += 1
                queue.append(content)
    return found
