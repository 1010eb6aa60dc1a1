"""Gaussians in the small formats of web viewers, through gsplat's exporter: .splat, and SuperSplat's compressed PLY."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from gsplat.exporter import export_splats

from da3_splat.io.files import replacing
from da3_splat.io.ply import drawable
from da3_splat.types import Gaussians


def save_compressed(gaussians: Gaussians, path: str | Path, kind: Literal["splat", "ply_compressed"]) -> int:
    """Write one scene (batch size 1) and return how many Gaussians it holds: those of `drawable`.

    `splat`: 32 bytes a Gaussian, no view dependence; `ply_compressed`: 16 bytes and one byte for each SH coefficient.
    """
    gaussians = drawable(gaussians)
    count = gaussians.means.shape[1]
    if count == 0:
        raise ValueError(f"{path}: no Gaussians to write")
    data = export_splats(
        means=gaussians.means[0],
        scales=gaussians.scales[0].log(),
        quats=torch.nn.functional.normalize(gaussians.quats[0], dim=-1),
        opacities=torch.logit(gaussians.opacities[0], eps=1e-6),
        sh0=gaussians.sh[0, :, :1],
        shN=gaussians.sh[0, :, 1:],
        format=kind,
    )
    with replacing(path) as beside:
        beside.write_bytes(data)
    return count
