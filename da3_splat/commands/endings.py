"""How a command ends: well, with one line for what can be expected, or with a traceback for what is our fault."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

BAD_INPUT = 2
INTERRUPTED = 130


@contextmanager
def one_line(program: str) -> Iterator[None]:
    """Turns bad input, and what a disk refuses, into one line and exit code 2, Ctrl-C into one line and 130."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
