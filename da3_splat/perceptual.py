"""LPIPS, real or absent: the perceptual distance where its networks' weights are on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

# What torchvision calls the files of the networks that LPIPS stands on.
BACKBONES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}


def why_unavailable(net: Literal["vgg", "alex"]) -> str | None:
    """Why LPIPS with this network cannot be computed here, or None. Nothing is downloaded, nothing is made up."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONES[net]
    if path.is_file():
        return None
    return f"LPIPS-{net} not available: {path} is not there (https://download.pytorch.org/models/{BACKBONES[net]})"


def perceptual_distance(net: Literal["vgg", "alex"] = "vgg") -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS (Zhang 2018, version 0.1) of two batches of pictures (N,3,H,W) in [0,1]: one value a picture (N).

    ValueError says why where the weights are missing.
    """
    reason = why_unavailable(net)
    if reason is not None:
        raise ValueError(reason)
    import lpips  # takes a moment

    network = lpips.LPIPS(net=net, verbose=False).eval().requires_grad_(False)

    def distance(first: Tensor, second: Tensor) -> Tensor:
        network.to(first.device)
        return network(first, second, normalize=True).flatten()

    return distance
