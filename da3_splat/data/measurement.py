"""Exact depth made as real data sets measure it: sparse, noisy, wrong in places and full of holes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate


@dataclass(frozen=True)
class Measurement:
    """What is wrong with measured depth."""

    kept: float = 0.3
    """share of the pixels that are measured at all"""
    noise: float = 0.03
    """standard deviation of the relative error"""
    outliers: float = 0.1
    """share of the measured pixels that are off by a factor between a half and two"""
    holes: float = 0.3
    """share of the picture in patches without any depth, as glass, sky and dark surfaces leave them"""


def measure(depth: Tensor, measurement: Measurement, seed: int) -> Tensor:
    """Depth (...,H,W) as measured, 0 where it is not; a function of `seed`."""
    generator = torch.Generator().manual_seed(seed)
    height, width = depth.shape[-2:]
    pictures = depth.reshape(-1, height, width)
    patches = torch.rand(len(pictures), 1, 5, 6, generator=generator)
    patches = interpolate(patches, (height, width), mode="bilinear")[:, 0]
    edge = patches.flatten(1).quantile(measurement.holes, dim=1)[:, None, None]
    kept = (torch.rand(pictures.shape, generator=generator) < measurement.kept) & (patches > edge)
    factor = torch.exp(measurement.noise * torch.randn(pictures.shape, generator=generator))
    wrong = torch.rand(pictures.shape, generator=generator) < measurement.outliers
    far_off = torch.exp2(2 * torch.rand(pictures.shape, generator=generator) - 1)
    return torch.where(kept, pictures * torch.where(wrong, far_off, factor), 0).reshape(depth.shape)
