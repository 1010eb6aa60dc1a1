"""Scores of a rendered picture beside the true one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from da3_splat.metrics import psnr, ssim
from da3_splat.perceptual import BACKBONES, Net, perceptual_distance, why_unavailable

NAMES = ("psnr", "ssim", *(f"lpips_{net}" for net in BACKBONES))


@dataclass(frozen=True)
class ImageScores:
    """PSNR, SSIM, and LPIPS with each network whose weights are here; `missing` says why, of the others."""

    perceptual: Mapping[Net, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=dict)
    missing: Mapping[Net, str] = field(default_factory=dict)

    @staticmethod
    def available() -> ImageScores:
        """All that can be computed on this machine."""
        reasons = {net: why_unavailable(net) for net in BACKBONES}
        found = {net: perceptual_distance(net) for net, reason in reasons.items() if reason is None}
        return ImageScores(found, {net: reason for net, reason in reasons.items() if reason is not None})

    @torch.no_grad()
    def __call__(self, picture: Tensor, truth: Tensor, mask: Tensor | None = None) -> dict[str, float | None]:
        """One number a score, None for an LPIPS that is missing; picture, truth (3,H,W), mask (H,W) or None.

        PSNR is over the mask's pixels; for the others both pictures are black outside it.
        """
        if not bool(picture.isfinite().all()):
            raise ValueError("the rendering is not finite")
        picture, truth = picture.clamp(0, 1)[None], truth[None].to(picture)
        if mask is None:
            signal = psnr(picture, truth)
        else:
            mask = mask.to(picture.device)
            if not bool(mask.any()):
                raise ValueError("the mask leaves no pixel of a target to score")
            picture, truth = picture * mask, truth * mask
            # the error outside is zero, so the mean over all pixels only has to be spread over fewer
            signal = psnr(picture, truth) + 10 * torch.log10(mask.float().mean())
        scores: dict[str, float | None] = {"psnr": float(signal), "ssim": float(ssim(picture, truth))}
        for net in BACKBONES:
            distance = self.perceptual.get(net)
            scores[f"lpips_{net}"] = None if distance is None else float(distance(picture, truth))
        return scores
