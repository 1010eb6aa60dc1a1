"""What may happen to a command while it runs, and what must be true of its output after that."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import torch
import yaml
from captures import small_capture
from PIL import Image
from safetensors import safe_open

from da3_splat.io.ply import load_points
from hostile.processes import Ended, command, interrupt, kill, kill_a_child, run

SAVE_SECONDS = 0.5  # between checkpoints, in these trainings
FUTURE = 4_102_444_800  # seconds: the year 2100
HEAD = {"data": {"sizes": [[42, 56]], "contexts": 2, "targets": 1, "workers": 0}, "precision": "32-true"}
WORLDS = {"sizes": [[42, 56]], "views": [2], "pixels": 4704}
GEOMETRY = {"objective": "patches", "precision": "32-true", "worlds": WORLDS}


@dataclass(frozen=True)
class Command:
    """`arguments(output)` of a command; `endless` ones run until they are stopped."""

    name: str
    arguments: Callable[[Path], list[str]]
    endless: bool = False


@dataclass
class Count:
    """Of the faults of one kind: tried, tracebacks, hangs, files lost or half, and what else was wrong, in words."""

    faults: int = 0
    tracebacks: int = 0
    hangs: int = 0
    lost: int = 0
    codes: list[int | None] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def note(self, ended: Ended, codes: Sequence[int | None], words: str) -> None:
        self.faults += 1
        self.codes.append(ended.code)
        self.hangs += ended.code is None
        self.tracebacks += ended.traceback
        if ended.traceback or ended.code not in codes:
            self.remarks.append(f"{words}: exit code {ended.code}: {ended.text[-600:]}")


def commands(inputs: Path) -> list[Command]:
    """The commands on the smallest inputs there are, which are written into `inputs`."""
    capture = str(small_capture(inputs / "captures" / "one", views=4, height=42, width=56))
    for name, recipe in (("head", HEAD), ("geometry", GEOMETRY)):
        recipe["optimization"] = {"steps": 100_000, "warmup_steps": 5}
        (inputs / f"{name}.yaml").write_text(yaml.safe_dump(recipe))

    def trained(script: str, name: str) -> Callable[[Path], list[str]]:
        often = ["--save-seconds", str(SAVE_SECONDS), "--log-steps", "1", "--threads", "1"]
        return lambda output: [script, "--config", str(inputs / f"{name}.yaml"), "--output", str(output), *often]

    small = ["--resolution", "56", "--device", "cpu"]
    scored = ["evaluate", "novel-views", "--data", str(inputs / "captures"), "--contexts", "2", "--every", "2"]
    return [
        Command("reconstruct", lambda output: ["reconstruct", capture, "--output", str(output), *small]),
        Command(
            "reconstruct --chunk",
            lambda output: ["reconstruct", capture, "--output", str(output), *small, "--chunk", "3", "--overlap", "2"],
        ),
        Command("refine", lambda output: ["reconstruct", capture, "--output", str(output), *small, "--refine", "30"]),
        Command("evaluate", lambda output: [*scored, "--size", "42x56", "--output", str(output)]),
        Command("label_depth", lambda output: ["label_depth.py", "--synthetic-scenes", "2", "--output", str(output)]),
        Command("train_head", trained("train_head.py", "head"), endless=True),
        Command("train_geometry", trained("train_geometry.py", "geometry"), endless=True),
    ]


def files(folder: Path) -> list[Path]:
    """What a user sees there: no hidden files, none of tensorboard's, which grow."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith((".", "events.")))
    return sorted(found)


def half_files(folder: Path) -> list[str]:
    """The files in an output that are not whole."""
    half = []
    for path in files(folder):
        try:
            _open(path)
        except Exception as error:  # whatever is wrong with a file, it is named and counted
            half.append(f"{path.name}: {error}")
    return half


def _open(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".ply":
        load_points(path)
    elif path.suffix in (".npz", ".npy"):
        found = np.load(path)
        [found[name] for name in found.files] if path.suffix == ".npz" else found
    elif path.suffix in (".png", ".jpg"):
        Image.open(path).load()
    elif path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            [file.get_tensor(name) for name in file.keys()]
    elif path.suffix == ".pt":
        torch.load(path, weights_only=True)
    elif path.suffix == ".html":
        assert path.stat().st_size > 100


def hurt_again_and_again(
    what: Command, times: int, output: Path, random: Random, hurt: Callable[[int], object], codes: Sequence[int]
) -> Count:
    """Run the command so many times on one output, hurting each run at a random moment; then let it end well."""
    count, log = Count(), output.parent / "log.txt"
    whole = _finish(what, output, log, count, "before any fault")
    for number in range(times):
        if not what.endless and what.name in ("evaluate", "label_depth", "reconstruct --chunk"):
            _forget(output)  # else there would be nothing to do
        before, kept = files(output), _step(output)
        ended = run(command(what.arguments(output)), log, hurt, random.uniform(0.1, 1.1 * whole))
        count.note(ended, codes, f"fault {number + 1}")
        if ended.code == 0 and not what.endless:
            whole = min(whole, ended.seconds)  # the first run compiles; later ones would be over before they are hurt
        gone = [path.name for path in before if not path.exists()]
        half = half_files(output)
        back = kept is not None and (_step(output) or 0) < kept
        count.lost += len(gone) + len(half) + back
        count.remarks += [f"fault {number + 1}: gone {gone}, half {half}, back {back}"] if gone or half or back else []
    _finish(what, output, log, count, "after all faults")
    return count


def _forget(output: Path) -> None:
    for name in ("scenes", "work", "world_0", "world_1"):
        shutil.rmtree(output / name, ignore_errors=True)


def _step(output: Path) -> int | None:
    """Where a training's checkpoint stands."""
    path = output / "checkpoint.pt"
    return torch.load(path, weights_only=True)["step"] if path.is_file() else None


def _finish(what: Command, output: Path, log: Path, count: Count, words: str) -> float:
    """Let a command end well, an endless one after a few seconds; how long it took."""
    limited = ["--minutes", "0.05"] if what.endless else []
    ended = run(command([*what.arguments(output), *limited]), log)
    if ended.code != 0 or ended.traceback:
        count.remarks.append(f"{what.name} {words}: exit code {ended.code}: {ended.text[-600:]}")
    count.lost += len(half_files(output))
    return ended.seconds


def killed(what: Command, times: int, output: Path, random: Random) -> Count:
    """kill -9, which a process cannot do anything about: -9 is how it must end, or well."""
    return hurt_again_and_again(what, times, output, random, kill, (0, -9))


def interrupted(what: Command, times: int, output: Path, random: Random) -> Count:
    """Ctrl-C: 130 and one line; trainings and refinement save, and end well."""
    return hurt_again_and_again(what, times, output, random, interrupt, (0, 130))


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own in `folder`; PermissionError where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True
    )
    if done.returncode:
        raise PermissionError(f"no small disk here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def full_disk(what: Command, output: Path, place: Path) -> Count:
    """Run over an old output where there is room for a third of a new one; then where nothing may be written."""
    count, log = Count(), output.parent / "log.txt"
    _finish(what, output, log, count, "before the disk was full")
    held = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    for fault in ("full", "read-only"):
        with small_disk(place, str(held + max(held // 3, 65_536))) as disk:
            copy = disk / "output"
            shutil.copytree(output, copy)
            _forget(copy)
            before = files(copy)
            if fault == "full":
                rest = os.statvfs(disk)
                (disk / ".ballast").write_bytes(bytes(max(0, rest.f_bavail * rest.f_frsize - 32_768)))
            else:
                subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
            limited = ["--minutes", "0.05"] if what.endless else []
            ended = run(command([*what.arguments(copy), *limited]), log)
            count.note(ended, (2,) if fault == "read-only" else (0, 2), fault)
            gone, half = [path.name for path in before if not path.exists()], half_files(copy)
            count.lost += len(gone) + len(half)
            count.remarks += [f"{fault}: gone {gone}, half {half}"] if gone or half else []
            count.remarks += [] if ended.code in (0, 2) else [f"{fault}: {ended.last_line}"]
    return count


def clock_jumps(what: Command, inputs: Path, output: Path) -> Count:
    """Files of the year 2100, and of 1970, among input and output: a run goes on all the same."""
    count, log = Count(), output.parent / "log.txt"
    _finish(what, output, log, count, "before the clock jumped")
    for moment in (FUTURE, 1):
        for path in (path for folder in (inputs, output) for path in folder.rglob("*")):
            os.utime(path, (moment, moment))
        if what.name == "reconstruct --chunk":
            shutil.rmtree(output / "work")  # its chunks are of pictures of another time: refused in words
        limited = ["--minutes", "0.03"] if what.endless else []
        count.note(run(command([*what.arguments(output), *limited]), log), (0,), f"files of {moment}")
        count.lost += len(half_files(output))
    for path in inputs.rglob("*"):
        os.utime(path, (time.time(), time.time()))
    return count


def worker_dies(what: Command, output: Path) -> Count:
    """The process that reads data is killed: one line, exit code 2, and the checkpoint is there."""
    count, log, found = Count(), output.parent / "log.txt", []
    seconds = _finish(what, output, log, count, "before a worker died")
    kept = _step(output)
    ended = run(command(what.arguments(output)), log, lambda process: found.append(kill_a_child(process)), seconds + 1)
    count.note(ended, (2,), "a worker died")
    count.lost += len(half_files(output)) + ((_step(output) or 0) < (kept or 0))
    if found != [True]:
        count.remarks.append("there was no worker to kill")
    _finish(what, output, log, count, "after a worker died")
    return count
