"""Worlds that are hard in one way each, beside the plain world of the same seed: what benchmarks leave unreported.

A world is varied as a whole (`varied_worlds`, `arc_of`), or its pictures are disturbed one by one (`moved_worlds`,
`exposure`): pictures that are held out are not, so that they ask for the same as those of the plain world do.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from da3_splat.data.ray_casting import CHECKS, CYLINDER, FACES, OBJECTS, PLAIN, Worlds

VARIATIONS = {
    "plain": "the world as it is",
    "textureless": "walls, floor and ceiling of one flat colour each",
    "mirrors": "two walls are mirrors, every other object is glossy (one reflection)",
    "thin": "every object is a rod of 3 cm",
    "repeated": "every surface has the same checks, dark and light grey",
    "wide": "the same number of views along three times the arc",
    "moving": "in pictures that are not held out, every other object has strayed, by up to 0.5 m",
    "exposure": "pictures that are not held out are brighter or darker, by up to a factor of 2",
}
WIDER = 3.0
STRAY = 0.5  # metres
ROD = 0.015  # metres, half of a rod's thickness


def varied_worlds(worlds: Worlds, variation: str) -> Worlds:
    """The worlds (B) with what the variation changes in them for all pictures."""
    surfaces = torch.zeros_like(worlds.kind, dtype=torch.float32)
    if variation == "textureless":
        kind, grain = worlds.kind.clone(), surfaces + 0.6
        kind[:, :FACES], grain[:, :FACES] = PLAIN, 0.0
        return replace(worlds, kind=kind, grain=grain)
    if variation == "mirrors":
        gloss = surfaces
        gloss[:, [0, 2]] = 0.85  # one wall along x and one along z
        gloss[:, FACES::2] = 0.5
        return replace(worlds, gloss=gloss)
    if variation == "repeated":
        return replace(
            worlds,
            kind=torch.full_like(worlds.kind, CHECKS),
            frequency=torch.full_like(worlds.frequency, 4.0),
            color_a=torch.full_like(worlds.color_a, 0.2),
            color_b=torch.full_like(worlds.color_b, 0.8),
            grain=surfaces,
        )
    if variation == "thin":
        length = worlds.size[..., 1].clamp_min(0.5)
        center = worlds.center.clone()
        center[..., 1] = worlds.room[:, 1:2] - length
        return replace(
            worlds,
            shape=torch.full_like(worlds.shape, CYLINDER),
            size=torch.stack([torch.full_like(length, ROD), length, torch.full_like(length, ROD)], dim=-1),
            center=center,
            turn=torch.eye(3).expand_as(worlds.turn).contiguous(),
        )
    if variation not in VARIATIONS:
        raise ValueError(f"variation: expected one of {', '.join(VARIATIONS)}, got {variation}")
    return worlds


def arc_of(variation: str, arc: float) -> float:
    """The angle in degrees that the cameras span, where the plain world has `arc`."""
    return arc * WIDER if variation == "wide" else arc


def moved_worlds(worlds: Worlds, variation: str, seed: int) -> Worlds:
    """The worlds (B) as one disturbed picture finds them; `seed` is the picture's own."""
    if variation != "moving":
        return worlds
    generator = torch.Generator().manual_seed(seed)
    step = STRAY * (2 * torch.rand(len(worlds.room), OBJECTS, 3, generator=generator) - 1)
    step[..., 1] = 0  # what stands on the floor stays on it
    step[:, 1::2] = 0
    return replace(worlds, center=worlds.center + step)


def exposure(variation: str, seed: int) -> float:
    """What one disturbed picture is multiplied by, before it is cut off at white."""
    if variation != "exposure":
        return 1.0
    return float(2 ** (2 * torch.rand((), generator=torch.Generator().manual_seed(seed)) - 1))
