"""Colours that all views agree on: a few passes of SIRT on the constant colour of the Gaussians.

A rendering is linear in the colours, and its weights add up to the opacity of each pixel. So the colour that explains
the pictures best is found as in tomography: render every view, spread what is missing back over the Gaussians by the
weights they were drawn with, divide by their sums, repeat (Gilbert 1972). It undoes the blur of drawing pixels as
Gaussians and joins what several views sampled; every pass costs one rendering with its gradient a view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from da3_splat.ranks import Workers
from da3_splat.rendering import render
from da3_splat.rendering.sight import in_sight
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
    seen = torch.zeros_like(gaussians.sh[:, :, :1])
    numbers = iter(progress(range(passes * count)))
    for turn in range(passes):
        missing, before = torch.zeros_like(seen), gaussians

        def spread_back(view: int, before: Gaussians = before, first: bool = turn == 0):
            return _spread_back(before, views.select([view]), weigh=first)

        for shown, spread, weight in workers(spread_back, range(count)):
            missing[:, shown] += spread
            seen[:, shown] += weight
            next(numbers, None)
        constant = gaussians.sh[:, :, :1] + missing / DC**2 / (seen / DC + FLOOR)
        gaussians = replace(gaussians, sh=torch.cat([constant, gaussians.sh[:, :, 1:]], dim=2))
    next(numbers, None)  # lets the display of progress end
    return gaussians


@torch.enable_grad()
def _spread_back(gaussians: Gaussians, view: Views, weigh: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Which Gaussians a view may see (M), and their gradients (1,M,1,3) of the drawn colour: along the residual of the
    view, and, if asked for, along one."""
    shown = in_sight(gaussians, view.known_cameras)
    gaussians = gaussians.select(shown).detach()
    constant = gaussians.sh[:, :, :1].requires_grad_()
    sh = torch.cat([constant, gaussians.sh[:, :, 1:]], dim=2)
    color = render(replace(gaussians, sh=sh), view.known_cameras).color
    counted = torch.ones_like(color) if view.masks is None else view.masks[:, :, None].expand_as(color).to(color)
    residual = (view.images - color).detach() * counted
    (spread,) = torch.autograd.grad(color, constant, grad_outputs=residual, retain_graph=weigh)
    if not weigh:
        return shown, spread, torch.zeros_like(spread)
    return shown, spread, torch.autograd.grad(color, constant, grad_outputs=counted)[0]
