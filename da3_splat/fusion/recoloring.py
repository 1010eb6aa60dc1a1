"""Colours that all views agree on: a few passes of SIRT on the constant colour of the Gaussians.

A rendering is linear in the colours, and its weights add up to the opacity of each pixel. So the colour that explains
the pictures best is found as in tomography: render every view, spread what is missing back over the Gaussians by the
weights they were drawn with, divide by their sums, repeat (Gilbert 1972). It undoes the blur of drawing pixels as
Gaussians and joins what several views sampled; every pass costs one rendering and one walk back a view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from da3_splat.ranks import Workers
from da3_splat.rendering.sight import in_sight
from da3_splat.rendering.spreading import spread_back
from da3_splat.spherical_harmonics import DC
from da3_splat.types import Gaussians, Views

FLOOR = 0.05  # pixels of weight below which a Gaussian hardly changes: it was barely seen


def recolor(
    gaussians: Gaussians,
    views: Views,
    passes: int = 2,
    progress: Callable[[Iterable], Iterable] = lambda items: items,
    workers: Workers = map,
) -> Gaussians:
    """The Gaussians (1,N), their constant colour corrected towards the pictures of the posed `views`, masks heeded."""
    count = views.images.shape[1]
    numbers = iter(progress(range(passes * count)))
    seen = torch.zeros_like(gaussians.sh[0, :, 0])  # shapes do not change, so neither do weights
    for turn in range(passes):
        missing = torch.zeros_like(seen)

        def of_view(view: int, before: Gaussians = gaussians, weigh: bool = turn == 0):
            return _of_view(before, views.select([view]), weigh)

        for shown, spread, weight in workers(of_view, range(count)):
            missing[shown] += spread
            if weight is not None:
                seen[shown] += weight
            next(numbers, None)
        constant = gaussians.sh[:, :, :1] + (missing / DC / (seen + FLOOR))[None, :, None]
        gaussians = replace(gaussians, sh=torch.cat([constant, gaussians.sh[:, :, 1:]], dim=2))
    next(numbers, None)  # lets the display of progress end
    return gaussians


def _of_view(gaussians: Gaussians, view: Views, weigh: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Which Gaussians a view may see (M), and what it lacks and, if asked for, weighs of each (M,3)."""
    shown = in_sight(gaussians, view.known_cameras)
    image = view.images[0, 0]
    counted = torch.ones_like(image[0]) if view.masks is None else view.masks[0, 0]
    return shown, *spread_back(gaussians.select(shown), view.known_cameras, image, counted, weigh=weigh)
