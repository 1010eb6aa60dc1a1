"""Dropping Gaussians that nobody should see."""

from __future__ import annotations

import torch

from da3_splat.rendering.constants import MIN_ALPHA
from da3_splat.types import Gaussians


def prune(gaussians: Gaussians, min_opacity: float = MIN_ALPHA, max_gaussians: int | None = None) -> Gaussians:
    """One scene (batch size 1) without Gaussians that are not finite or below `min_opacity`.

    More than `max_gaussians` are thinned to the most opaque ones; ties keep the order they came in.
    """
    if gaussians.means.shape[0] != 1:
        raise ValueError(f"prune: expected one scene, got a batch of {gaussians.means.shape[0]}")
    fields = (gaussians.means, gaussians.scales, gaussians.quats, gaussians.sh.flatten(2))
    finite = torch.stack([values[0].isfinite().all(dim=-1) for values in fields]).all(dim=0)
    keep = torch.nonzero(finite & (gaussians.opacities[0] >= min_opacity))[:, 0]
    if max_gaussians is not None and len(keep) > max_gaussians:
        best = gaussians.opacities[0, keep].argsort(descending=True, stable=True)[:max_gaussians]
        keep = keep[best.sort().values]
    return gaussians.select(keep)
