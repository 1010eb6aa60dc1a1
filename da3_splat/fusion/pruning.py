"""Dropping Gaussians that nobody should see, and thinning what is too much."""

from __future__ import annotations

from dataclasses import replace

import torch

from da3_splat.rendering.constants import MIN_ALPHA
from da3_splat.types import Gaussians


def prune(gaussians: Gaussians, min_opacity: float = MIN_ALPHA) -> Gaussians:
    """One scene (batch size 1) without Gaussians that are not finite or below `min_opacity`."""
    if gaussians.means.shape[0] != 1:
        raise ValueError(f"prune: expected one scene, got a batch of {gaussians.means.shape[0]}")
    fields = (gaussians.means, gaussians.scales, gaussians.quats, gaussians.sh.flatten(2))
    finite = torch.stack([values[0].isfinite().all(dim=-1) for values in fields]).all(dim=0)
    return gaussians.select(torch.nonzero(finite & (gaussians.opacities[0] >= min_opacity))[:, 0])


def thinned(gaussians: Gaussians, count: int) -> Gaussians:
    """Every n-th Gaussian of a scene (batch size 1), grown so that together they still cover what all did."""
    if count < 1:
        raise ValueError(f"max_gaussians: expected at least 1, got {count}")
    total = gaussians.means.shape[1]
    if total <= count:
        return gaussians
    keep = torch.arange(count, device=gaussians.means.device) * (total - 1) // max(1, count - 1)
    kept = gaussians.select(keep)
    return replace(kept, scales=kept.scales * (total / count) ** 0.5)
