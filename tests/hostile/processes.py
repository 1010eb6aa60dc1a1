"""Commands as processes that can be hurt: forked from this one, which has imported all they need, so each is cheap."""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"
LIMIT = 180.0  # seconds after which a command counts as hanging


@dataclass(frozen=True)
class Ended:
    """code: the exit status, negative for a signal, None where it had to be ended; text: all it wrote."""

    code: int | None
    seconds: float
    text: str

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.text

    @property
    def last_line(self) -> str:
        return self.text.strip().splitlines()[-1] if self.text.strip() else ""


def command(arguments: Sequence[str]) -> Callable[[], None]:
    """`da3-splat ...`, or, where the first word ends in .py, one of the scripts."""

    def run() -> None:
        if arguments[0].endswith(".py"):
            sys.argv = [str(SCRIPTS / arguments[0]), *arguments[1:]]
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            from da3_splat.cli import main

            main(list(arguments))

    return run


def run(
    work: Callable[[], None],
    log: Path,
    hurt: Callable[[int], object] = lambda process: None,
    after: float = 0.0,
    limit: float = LIMIT,
) -> Ended:
    """Run `work` in a process of its own group; `hurt(process)` is called `after` seconds, if it still runs."""
    began = time.monotonic()
    process = os.fork()
    if process == 0:
        _child(work, log)
    with contextlib.suppress(PermissionError):
        os.setpgid(process, process)  # as the child does for itself: whichever comes first
    waiting = True
    code: int | None = None
    while time.monotonic() - began < limit:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            break
        if waiting and time.monotonic() - began >= after:
            hurt(process)
            waiting = False
        time.sleep(0.02)
    else:
        kill(process)
        os.waitpid(process, 0)
    _end_group(process)
    return Ended(code, time.monotonic() - began, log.read_text(errors="replace"))


def kill(process: int) -> None:
    os.killpg(process, signal.SIGKILL)


def interrupt(process: int) -> None:
    """Ctrl-C, which a terminal sends to all processes of a command."""
    os.killpg(process, signal.SIGINT)


def kill_a_child(process: int) -> bool:
    """Kill one of the processes that this one has started; whether there was one."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process:
            os.kill(int(status.parent.name), signal.SIGKILL)
            return True
    return False


def _child(work: Callable[[], None], log: Path) -> None:
    """Never returns: what `work` did becomes the exit status."""
    os.setpgid(0, 0)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(target, stream)
    sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)  # noqa: PTH123, SIM115  (pytest puts its own there)
    code = 0
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end_group(process: int) -> None:
    """Workers whose parent was killed end themselves when they notice; here they are ended at once."""
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:
        return
