"""How a command ends: well, with one line for what can be expected, or with a traceback for what is our fault."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BAD_INPUT = 2
INTERRUPTED = 130


@contextmanager
def one_line(program: str) -> Iterator[None]:
    """Turns bad input, and what a disk refuses, into one line and exit code 2, Ctrl-C into one line and 130 (also where
    a script has let it end the process while it imported)."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    before = threading.excepthook
    threading.excepthook = lambda found: _of_a_thread(program, found, before)
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    finally:
        threading.excepthook = before


def _of_a_thread(program: str, found: threading.ExceptHookArgs, otherwise: Callable) -> None:
    """What a disk refuses a thread in the background (tensorboard's) is one line, too."""
    if isinstance(found.exc_value, OSError):
        print(f"{program}: in the background: {' '.join(str(found.exc_value).split())}", file=sys.stderr)
    else:
        otherwise(found)
