"""Scores: one value per item, averaging is the caller's."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Peak signal to noise ratio (N) in dB of pictures (N,3,H,W) in [0,1]."""
    return -10 * torch.log10((image - target).square().mean(dim=(1, 2, 3)).clamp_min(1e-12))


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity (N) with an 11x11 Gaussian window, sigma 1.5, data range 1."""
    return structural_similarity_index_measure(
        image, target, data_range=1.0, sigma=1.5, kernel_size=11, reduction="none"
    )


def absolute_relative_error(depth: Tensor, target: Tensor) -> Tensor:
    """Mean |s depth - target| / target (B) over pixels with target > 0, s the median ratio of each item (B,...)."""
    scores = []
    for predicted, true in zip(depth, target):
        valid = true > 0
        ratio = (true[valid] / predicted[valid]).median()
        scores.append(((ratio * predicted[valid] - true[valid]).abs() / true[valid]).mean())
    return torch.stack(scores)
