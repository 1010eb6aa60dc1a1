"""What all kinds of bad files share: the record of one, and what a reader may answer."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SECONDS = 30.0  # until a reader counts as hanging; a busy machine must not make it so
ROOM = 1536 << 20  # bytes of address space that a reader may add


class Hang(BaseException):
    """A reader that does not come back. No `except Exception` may swallow it."""


@dataclass(frozen=True)
class Case:
    """`write(folder)` makes the input in an empty folder and returns what the reader is given."""

    name: str
    write: Callable[[Path], Path]


def file_case(name: str, file: str, content: bytes | str) -> Case:
    """One file with this content."""

    def write(folder: Path) -> Path:
        path = folder / file
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        return path

    return Case(name, write)


@contextmanager
def bounded(seconds: float = SECONDS, room: int = ROOM) -> Iterator[None]:
    """Ends what runs longer with `Hang`, and what asks for more memory with MemoryError."""
    status = Path("/proc/self/statm").read_text().split()
    held = int(status[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)

    def stop(*_: object) -> None:
        raise Hang(f"not back after {seconds:.0f} s")

    handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (held + room, before[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def outcome(read: Callable[[Path], object], given: Path, folder: Path) -> str:
    """`read` or `refused`. AssertionError says what else a reader did: another exception, or no file named."""
    try:
        with bounded():
            read(given)
    except (ValueError, OSError) as error:
        said = " ".join(str(error).split())
        names = [folder.name, *(path.name for path in folder.rglob("*"))]
        assert any(name in said for name in names), f"names no file: {type(error).__name__}: {said}"
        return "refused"
    except (Exception, Hang) as error:
        raise AssertionError(f"{type(error).__module__}.{type(error).__name__}: {str(error)[:200]}") from error
    return "read"
