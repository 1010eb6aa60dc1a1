"""Try to break it: files that lie, faults while commands run, long runs. One table of what was tried and what broke.

    uv run python scripts/soak.py                     some minutes: a few of everything
    uv run python scripts/soak.py --full              half an hour: 70 kills, 1,000 reconstructions, 500 files a reader
    uv run python scripts/soak.py --only files nan    files kills interrupts disks clocks workers nan leaks viewer same

Files: each case of tests/hostile and randomly damaged ones, those that reach new lines of our readers damaged further.
Faults: kill -9 and Ctrl-C at random moments, a disk that is full, one that is read-only, files of other times, a reader
process that dies, a batch of NaN. Everything follows from --seed, but for the moments at which processes are hurt.
Exit code 1 where anything ended in a traceback, hung, or lost a file.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch
os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes are forked, which threads do not survive

import contextlib
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

# What the commands import, so that the processes forked from this one need not.
from hostile import endurance, faults
from hostile.case import outcome
from hostile.fuzzing import fuzz
from hostile.readers import READERS

import da3_splat.evaluation.novel_views
import da3_splat.refinement
import da3_splat.scene_folder
import da3_splat.starting_points
import da3_splat.training.loop  # noqa: F401
from da3_splat.data.synthetic_batches import StepSampler, SyntheticBatches, WorldsConfig
from da3_splat.training.geometry_recipe import GeometryRecipe, build_network, build_objective, parameter_groups
from da3_splat.training.optimization import TrainingState, launch

Part = Literal["files", "kills", "interrupts", "disks", "clocks", "workers", "nan", "leaks", "viewer", "same"]
FLAT_MB, FLAT_HANDLES = 64.0, 2  # more than this is growth
KILLS, INTERRUPTS = 10, 4  # of each command, in the long form
EACH = ("kills", "interrupts", "disks", "clocks", "same")  # parts that the long form does with every command
# The commands that the short form hurts; the long form hurts all.
SHORT = {
    "kills": ("reconstruct --chunk", "label_depth", "train_geometry"),
    "interrupts": ("refine", "evaluate"),
    "disks": ("reconstruct --chunk", "train_head", "train_geometry"),
    "clocks": ("reconstruct --chunk",),
    "workers": ("train_geometry",),
    "same": ("label_depth", "train_geometry"),
}


@dataclass
class Settings:
    full: bool = False
    """half an hour instead of some minutes"""
    only: tuple[Part, ...] = ()
    """these parts; none: all"""
    seed: int = 0
    json: Path | None = None
    """write the table there, too"""


@dataclass
class Row:
    """Of one thing that was tried: how often, how it ended; `remarks` say what broke."""

    name: str
    tried: int
    good: int = 0
    refused: int = 0
    tracebacks: int = 0
    hangs: int = 0
    lost: int = 0
    figures: str = ""
    remarks: list[str] = field(default_factory=list)

    @property
    def broken(self) -> bool:
        return bool(self.tracebacks or self.hangs or self.lost or self.remarks)


def bad_files(settings: Settings, work: Path) -> Iterator[Row]:
    for name, reader in READERS.items():
        row = Row(f"files: {name}", 0)
        for case in reader.cases():
            with tempfile.TemporaryDirectory(dir=work) as folder:
                given = case.write(Path(folder))
                _judge(
                    row,
                    case.name,
                    lambda reader=reader, given=given, folder=folder: outcome(reader.read, given, Path(folder)),
                )
        found = fuzz(reader, 500 if settings.full else 15, settings.seed)
        row.tried, row.good, row.refused = row.tried + found.tried, row.good + found.read, row.refused + found.refused
        _blame(row, found.failures)
        row.figures = f"{len(found.steps)} steps of our code, {found.kept} inputs led on"
        yield row


def _judge(row: Row, name: str, tried: Callable[[], str]) -> None:
    row.tried += 1
    try:
        verdict = tried()
    except AssertionError as error:
        _blame(row, [f"{name}: {error}"])
        return
    row.good += verdict == "read"
    row.refused += verdict == "refused"


def _blame(row: Row, failures: list[str]) -> None:
    row.hangs += sum("Hang" in line for line in failures)
    row.tracebacks += sum("Hang" not in line for line in failures)
    row.remarks += failures


def _row(name: str, count: faults.Count) -> Row:
    ends = Counter(count.codes)
    figures = "exit codes: " + ", ".join(f"{code} ({number}x)" for code, number in ends.most_common())
    return Row(name, count.faults, 0, 0, count.tracebacks, count.hangs, count.lost, figures, count.remarks)


def faults_of_commands(settings: Settings, work: Path) -> Iterator[Row]:
    commands, random = faults.commands(work / "inputs"), Random(settings.seed)

    def output(what: faults.Command, fault: str) -> Path:
        folder = work / fault / what.name.replace(" ", "_")
        folder.mkdir(parents=True)
        return folder / "output"

    def chosen(part: Part) -> list[faults.Command]:
        names = [what.name for what in commands] if settings.full and part in EACH else SHORT[part]
        return [what for what in commands if what.name in names and wanted(settings, part)]

    for what in chosen("kills"):
        found = faults.killed(what, KILLS if settings.full else 1, output(what, "kill"), random)
        yield _row(f"kill -9: {what.name}", found)
    for what in chosen("interrupts"):
        found = faults.interrupted(what, INTERRUPTS if settings.full else 1, output(what, "interrupt"), random)
        yield _row(f"Ctrl-C: {what.name}", found)
    for what in chosen("disks"):
        name = f"disk full, read-only: {what.name}"
        try:
            yield _row(name, faults.full_disk(what, output(what, "disk"), work / "small_disk"))
        except PermissionError as error:
            yield Row(name, 0, figures=f"skipped: {error}")
    for what in chosen("clocks"):
        yield _row(f"clock jumps: {what.name}", faults.clock_jumps(what, work / "inputs", output(what, "clock")))
    for what in chosen("workers"):
        yield _row(f"a worker dies: {what.name}", faults.worker_dies(what, output(what, "worker")))
    for what in chosen("same"):
        compared, differ = endurance.same_bytes(what, work / "same" / what.name.replace(" ", "_"))
        yield Row(f"run twice: {what.name}", 2, figures=f"{compared} files, {len(differ)} differ", remarks=differ)


def nan_in_a_batch() -> Row:
    """One batch of NaN among good ones: nothing is learnt of it, and it is counted."""
    recipe = GeometryRecipe(objective="patches", precision="32-true", worlds=WorldsConfig(((42, 56),), (2,), 4704))
    network = build_network(recipe)
    objective = build_objective(recipe, network)
    state = TrainingState(launch(recipe.precision), objective, parameter_groups(recipe, objective), recipe.optimization)
    batches = iter(SyntheticBatches(StepSampler(recipe.worlds)))
    state.advance([next(batches)[1]])
    before = {name: value.clone() for name, value in state.learned.items()}
    batch = next(batches)[1]
    state.advance([replace(batch, images=torch.full_like(batch.images, float("nan")))])
    same = all(torch.equal(value, before[name]) for name, value in state.learned.items())
    finite = all(bool(value.isfinite().all()) for value in state.average.values())
    state.advance([next(batches)[1]])
    learnt = any(not torch.equal(value, before[name]) for name, value in state.learned.items())
    judged = {"weights moved": same, "averages are not finite": finite, "no step after it": learnt}
    wrong = [words for words, good in judged.items() if not good]
    return Row("a batch of NaN: train_geometry", 1, figures=f"{state.skipped} step skipped", remarks=wrong)


def long_runs(settings: Settings, work: Path) -> Iterator[Row]:
    if wanted(settings, "leaks"):
        times = 1000 if settings.full else 30
        yield _held(f"{times} reconstructions", times, *endurance.many_reconstructions(times, work / "leaks"), [])
    if wanted(settings, "viewer"):
        times, together = (100, 20) if settings.full else (20, 20)
        before, after, wrong = endurance.many_clients(times, together, work / "viewer")
        yield _held(f"viewer: {times} clients in turn, {together} at once", times + together, before, after, wrong)


def _held(name: str, tried: int, before: endurance.Held, after: endurance.Held, wrong: list[str]) -> Row:
    grown, opened = after.memory_mb - before.memory_mb, after.handles - before.handles
    if grown > FLAT_MB or opened > FLAT_HANDLES:
        wrong = [*wrong, f"grew by {grown:.0f} MB and {opened} open files"]
    figures = f"{before.memory_mb:.0f} to {after.memory_mb:.0f} MB, {before.handles} to {after.handles} open files"
    return Row(name, tried, figures=figures, remarks=wrong)


def wanted(settings: Settings, part: Part) -> bool:
    return not settings.only or part in settings.only


def rows_of(settings: Settings, work: Path) -> Iterator[Row]:
    (work / "inputs").mkdir()
    yield from faults_of_commands(settings, work)  # first: what is forked must not have computed anything
    if wanted(settings, "nan"):
        yield nan_in_a_batch()
    yield from long_runs(settings, work)
    if wanted(settings, "files"):
        yield from bad_files(settings, work)


def main(settings: Settings) -> int:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # what a command would say of pictures it leaves out
    console, began = Console(width=150), time.monotonic()
    table = Table("what", "tried", "good", "refused", "tracebacks", "hangs", "lost", "figures")
    rows = []
    with tempfile.TemporaryDirectory(prefix="da3_splat_soak_") as folder, contextlib.chdir(folder):
        for row in rows_of(settings, Path(folder)):
            rows.append(row)
            values = (row.tried, row.good, row.refused, row.tracebacks, row.hangs, row.lost)
            table.add_row(row.name, *map(str, values), row.figures)
            console.print(f"{time.monotonic() - began:6.0f} s  {row.name}: {'BROKEN' if row.broken else 'held'}")
            for remark in row.remarks:
                console.print(f"    {remark}", markup=False)
    console.print(table)
    if settings.json:
        settings.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    totals = {name: sum(getattr(row, name) for row in rows) for name in ("tried", "tracebacks", "hangs", "lost")}
    console.print(
        f"{totals['tried']} tries in {(time.monotonic() - began) / 60:.1f} min: {totals['tracebacks']} tracebacks, "
        f"{totals['hangs']} hangs, {totals['lost']} files lost; "
        f"{sum(row.broken for row in rows)} of {len(rows)} broken",
        soft_wrap=True,
    )
    return int(any(row.broken for row in rows))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
