"""Where a walk comes home: views of far chunks that look alike, by features that the backbone has computed anyway."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def describe(tokens: Tensor) -> Tensor:
    """A description (S,D) of each view, from patch features (S,P,D): mean and spread over the patches."""
    tokens = tokens.float()
    return torch.cat([tokens.mean(dim=1), tokens.std(dim=1, correction=0)], dim=-1)


def loop_candidates(descriptions: Tensor, chunks: list[range], most: int) -> list[tuple[int, int, int, int]]:
    """Pairs (chunk, later chunk, view, view) that look alike, the likest first: one pair of views for two chunks, of
    chunks that are no neighbours, `most` in all. Only candidates: geometry has to confirm them.

    descriptions (S,D) of all views. What all views share is taken off, so that likeness is what sets them apart.
    """
    centred = descriptions - descriptions.mean(dim=0)
    unit = normalize(centred / centred.std(dim=0, correction=0).clamp_min(1e-9), dim=-1)
    found = []
    for i, first in enumerate(chunks):
        for j in range(i + 2, len(chunks)):
            second = chunks[j]
            alike = unit[first.start : first.stop] @ unit[second.start : second.stop].T
            best = int(alike.argmax())
            u, v = first.start + best // len(second), second.start + best % len(second)
            found.append((float(alike.flatten()[best]), i, j, u, v))
    found.sort(key=lambda pair: -pair[0])
    return [(i, j, u, v) for likeness, i, j, u, v in found if likeness > 0.5][:most]
