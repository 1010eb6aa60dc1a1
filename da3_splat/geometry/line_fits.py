"""Scale and shift between two measurements of the same pixels, where many of them are wrong. Rows are pictures."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_SCALE = 1e-6  # scales are positive: near stays near


def evenly_chosen(mask: Tensor, count: int) -> Tensor:
    """Indices (N,count) of True entries of mask (N,P), evenly spread in their order; entries repeat where there are
    fewer than `count`, and mean nothing in rows without any."""
    valid_first = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)
    middle = (torch.arange(count, device=mask.device) + 0.5) / count
    ranks = (middle * mask.sum(dim=1, keepdim=True)).long().clamp_max(mask.shape[1] - 1)
    return valid_first.gather(1, ranks)


def robust_line(
    source: Tensor, target: Tensor, weights: Tensor, truncation: float, pivots: int = 64
) -> tuple[Tensor, Tensor]:
    """Scale > 0 and shift (N) that make sum_p min(w_p |s x_p + t - y_p|, truncation) least; x, y, w >= 0 are (N,P).

    A best line passes through one of the points. So for each of `pivots` points (evenly spread) the best scale of a
    line through it is found, and of these lines the best one is taken: the robust, optimal and efficient alignment
    (ROE) of MoGe (Wang 2024), exact where every point is a pivot. Rows whose points are at one place get scale 1; rows
    without weight get 1 and 0. Not differentiated.
    """
    with torch.no_grad():
        x, y, w = source.double(), target.double(), weights.double()
        index = evenly_chosen(w > 0, min(pivots, x.shape[1]))
        x0, y0 = x.gather(1, index)[..., None], y.gather(1, index)[..., None]  # (N,K,1)
        dx, dy = x[:, None] - x0, y[:, None] - y0  # (N,K,P)
        leverage = w[:, None] * dx.abs()
        scale = _best_slope(dy / torch.where(dx == 0, 1, dx), leverage, truncation)
        scale = torch.where((leverage > 0).any(dim=-1), scale, torch.ones_like(scale))
        shift = y0[..., 0] - scale * x0[..., 0]
        distance = (scale[..., None] * x[:, None] + shift[..., None] - y[:, None]).abs() * w[:, None]
        best = distance.clamp_max(truncation).sum(dim=-1).argmin(dim=1, keepdim=True)
        scale, shift = scale.gather(1, best)[:, 0], shift.gather(1, best)[:, 0]
        known = (w > 0).any(dim=1)
        scale, shift = torch.where(known, scale, 1.0), torch.where(known, shift, 0.0)
        return scale.to(source.dtype), shift.to(source.dtype)


def _best_slope(slopes: Tensor, leverage: Tensor, truncation: float) -> Tensor:
    """The s >= SMALLEST_SCALE (...) that makes sum_p min(l_p |s - r_p|, truncation) least; r, l (...,P).

    The sum is piecewise linear: from -infinity on it bends by -l where a point begins to count, by 2 l where the line
    hits it, by -l where it no longer counts. One sweep over the sorted bends gives the sum at all of them.
    """
    known = leverage > 0
    slopes, reach = torch.where(known, slopes, 0), torch.where(known, truncation / torch.where(known, leverage, 1), 0)
    end = torch.full_like(slopes[..., :1], SMALLEST_SCALE)  # the smallest allowed slope is a candidate, too
    places = torch.cat([slopes - reach, slopes, slopes + reach, end], dim=-1)
    bends = torch.cat([-leverage, 2 * leverage, -leverage, torch.zeros_like(end)], dim=-1)
    places, order = places.sort(dim=-1)
    steepness = bends.gather(-1, order).cumsum(dim=-1)
    rise = (steepness[..., :-1] * places.diff(dim=-1)).cumsum(dim=-1)
    total = torch.cat([torch.zeros_like(end), rise], dim=-1)
    best = total.masked_fill(places < SMALLEST_SCALE, float("inf")).argmin(dim=-1, keepdim=True)
    return places.gather(-1, best)[..., 0]
