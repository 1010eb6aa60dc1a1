"""Bytes of a good file changed a little: what a disk, a network or somebody with time makes of it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from random import Random

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = (
    b"nan",
    b"-inf",
    b"1e999",
    b"-1",
    b"99999999999999999999",
    b"../",
    b"/etc/",
    b"\0",
    b"\xff\xfe",
    b"null",
    b"[[[[",
    b"}",
)
KINDS = ("flip", "number", "word", "cut", "double", "drop")
Edit = tuple[str, float, int]
"""what, where (a share of the length), and which of the values"""


def changed(data: bytes, edits: Sequence[Edit]) -> bytes:
    """The bytes after some edits, one after the other."""
    for kind, share, value in edits:
        at = min(int(share * len(data)), max(0, len(data) - 1))
        if kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ (1 << value % 8)]) + data[at + 1 :]
        elif kind == "number":
            size = (1, 2, 4, 8)[value % 4]
            number = NUMBERS[value % len(NUMBERS)] % 2 ** (8 * size)
            data = data[:at] + struct.pack("<Q", number)[:size] + data[at + size :]
        elif kind == "word":
            word = WORDS[value % len(WORDS)]
            data = data[:at] + word + data[at + len(word) * (value % 2) :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "double":
            data = data[:at] + data[at : at + 1 + value % 64] * 2 + data[at + 1 + value % 64 :]
        elif kind == "drop":
            data = data[:at] + data[at + 1 + value % 64 :]
    return data


def random_edits(random: Random, most: int = 4) -> list[Edit]:
    """A few edits, by the generator's seed."""
    return [(random.choice(KINDS), random.random(), random.randrange(256)) for _ in range(random.randint(1, most))]
