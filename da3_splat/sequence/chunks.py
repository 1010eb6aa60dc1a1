"""How a sequence is cut: overlapping ranges of views, and which of them answers for each view."""

from __future__ import annotations


def chunk_ranges(count: int, size: int, overlap: int) -> list[range]:
    """Ranges of at most `size` of `count` views, neighbours sharing `overlap` or a few more; of nearly equal length."""
    if size < 2 or not 1 <= overlap < size:
        raise ValueError(f"chunk, overlap: expected 1 <= overlap < chunk and chunk >= 2, got {size} and {overlap}")
    if count <= size:
        return [range(count)]
    chunks = 1 + -(-(count - size) // (size - overlap))
    starts = [round(index * (count - size) / (chunks - 1)) for index in range(chunks)]
    return [range(start, start + size) for start in starts]


def owned_ranges(chunks: list[range]) -> list[range]:
    """For each chunk the views that it answers for: borders are in the middle of what two share."""
    borders = [(before.stop + after.start) // 2 for before, after in zip(chunks, chunks[1:])]
    return [range(start, stop) for start, stop in zip([chunks[0].start, *borders], [*borders, chunks[-1].stop])]
