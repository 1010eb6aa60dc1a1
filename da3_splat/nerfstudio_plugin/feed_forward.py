"""What the network said before refinement, kept beside the model: for the viewer's switch, and through checkpoints."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from da3_splat.rendering import render
from da3_splat.spherical_harmonics import rgb_to_dc
from da3_splat.types import Cameras, Gaussians


def to_state(gaussians: Gaussians | None) -> dict[str, Tensor]:
    """Plain tensors for a checkpoint; none where there are no Gaussians."""
    return {} if gaussians is None else gaussians.kept_on_disk()


def from_state(state: dict[str, Tensor], device: torch.device) -> Gaussians | None:
    """What `to_state` made; None for checkpoints that hold none."""
    return Gaussians(**state).to(device) if state else None


@torch.no_grad()
def confidence_picture(gaussians: Gaussians, camera: Cameras) -> Tensor:
    """(H,W) in [0,1]: the network's confidence in what is seen, as the share of Gaussians it trusts less; 0 where there
    is nothing, or where it gave no confidence."""
    if gaussians.confidence is None:
        return torch.zeros(camera.height, camera.width, device=gaussians.means.device)
    rank = gaussians.confidence.argsort(dim=1).argsort(dim=1) / max(1, gaussians.confidence.shape[1] - 1)
    shades = replace(gaussians, sh=rgb_to_dc(rank[..., None, None].expand(-1, -1, 1, 3).float()))
    seen = render(shades, camera)
    return seen.color[0, 0, 0] / seen.alpha[0, 0].clamp_min(1e-6)
