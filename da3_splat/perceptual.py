"""LPIPS, real or absent: the perceptual distance where its networks' weights are on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

# What torchvision calls the files of the networks that LPIPS stands on: the name ends as the file's SHA-256 begins.
Net = Literal["vgg", "alex"]
BACKBONES: dict[Net, str] = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}


def why_unavailable(net: Net) -> str | None:
    """Why LPIPS with this network cannot be computed here, or None. Nothing is downloaded, nothing is made up."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONES[net]
    home = Path.home()
    shown = Path("~") / path.relative_to(home) if path.is_relative_to(home) else path  # reports are shared
    if not path.is_file():
        return f"LPIPS-{net} not available: {shown} is not there (https://download.pytorch.org/models/{BACKBONES[net]})"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(path.stem.rsplit("-", 1)[-1]):
        return f"LPIPS-{net} not available: {shown} is not the published file, whose SHA-256 begins as its name ends"
    return None


def perceptual_distance(net: Net = "vgg") -> Callable[[Tensor, Tensor], Tensor]:
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
