"""Teacher depth in the units of measured depth: RANSAC for a scale and a shift a picture (section 3.4).

Measured depth of real data is sparse, noisy and full of holes, but metric; the teacher's is complete and sharp, but
known only up to a scale and a shift. The label is s * teacher + t, with (s, t) = argmin over s > 0 of the squared
distances of the inliers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from da3_splat.geometry.line_fits import evenly_chosen

HYPOTHESES, SAMPLE, SCORED = 256, 2, 2048  # lines tried, pixels that fix one, pixels that judge them
PASSES, ROUNDS = 5, 30  # refits, and how often a threshold may tighten in each


@dataclass(frozen=True)
class LabelConfig:
    """When a picture's alignment is not to be trusted. The paper names no such rule; these are ours."""

    fewest_pixels: int = 32
    """with both measured and teacher depth"""
    fewest_agreeing: float = 0.5
    """share of the measured pixels that the label comes close to"""
    agreement: float = 0.25
    """how close: this share of the median deviation of measured depth from its median, but not less than 2 % of it"""
    seed: int = 0


@dataclass(frozen=True)
class Alignment:
    """label = scale * teacher + shift of N pictures. scale, shift, threshold (N); inliers (N,H,W) bool.

    `agreeing` (N) is the share of measured pixels that the label comes close to, `residual` (N) the median distance of
    the inliers over the median measured depth. `reasons` says for each picture why its alignment is not to be used,
    None where it is; scale and shift are 1 and 0 where nothing could be fitted.
    """

    scale: Tensor
    shift: Tensor
    inliers: Tensor
    threshold: Tensor
    agreeing: Tensor
    residual: Tensor
    reasons: tuple[str | None, ...]

    def labels(self, teacher: Tensor) -> Tensor:
        """s * teacher + t (N,H,W) of the accepted pictures; 0 (no depth) where that is not positive or not accepted."""
        label = self.scale[:, None, None] * teacher + self.shift[:, None, None]
        accepted = torch.tensor([reason is None for reason in self.reasons], device=teacher.device)[:, None, None]
        return torch.where((label > 0) & (teacher > 0) & accepted, label, torch.zeros_like(label))


@torch.no_grad()
def align_to_measured(teacher: Tensor, measured: Tensor, config: LabelConfig = LabelConfig()) -> Alignment:
    """Fit the teacher's depth (N,H,W) to measured depth (N,H,W), both 0 where there is none.

    Lines through pairs of pixels are tried; the threshold of each is the mean absolute deviation of its residuals from
    their median (section 3.4), and the line with the smallest sum of residuals, each at most its threshold, wins. Its
    inliers (the same rule applied again to what is within the threshold, while at least half of the measured pixels
    stay: outliers widen a mean) give the line of least squares, a few times over. A function of the depths and
    `config.seed`, whatever else is in the batch.
    """
    if teacher.shape != measured.shape or teacher.ndim != 3:
        raise ValueError(
            f"align_to_measured: expected two (N,H,W) of one shape, got {tuple(teacher.shape)} and "
            f"{tuple(measured.shape)}; resize the measured depth with data.depth_captures.nearest"
        )
    valid = ((measured > 0) & (teacher > 0) & measured.isfinite() & teacher.isfinite()).flatten(1)
    x = torch.where(valid, teacher.flatten(1), 0).double()
    y = torch.where(valid, measured.flatten(1), 0).double()
    scale, shift = _best_hypothesis(x, y, valid, config.seed)
    for _ in range(PASSES):
        inliers, threshold = _inliers(scale[:, None] * x + shift[:, None] - y, valid)
        scale, shift = _least_squares(x, y, inliers)
    return _judged(x, y, valid, inliers, threshold, scale, shift, teacher, config)


def _inliers(residual: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Inliers (N,P) of the residuals and the threshold (N) that made them."""
    inliers, threshold, half = valid, torch.full_like(residual[:, 0], float("inf")), valid.sum(dim=1) / 2
    for _ in range(ROUNDS):
        center = _median(residual, inliers)
        distance = (residual - center[:, None]).abs()
        tighter = _mean(distance, inliers)
        kept = inliers & (distance <= tighter[:, None])
        better = (kept.sum(dim=1) >= half) & (tighter < threshold)
        if not better.any():
            break
        threshold = torch.where(better, tighter, threshold)
        inliers = torch.where(better[:, None], kept, inliers)
    return inliers, threshold


def _best_hypothesis(x: Tensor, y: Tensor, valid: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Scale and shift (N) of the best of the lines through two pixels."""
    index = evenly_chosen(valid, min(SCORED, x.shape[1]))
    x, y = x.gather(1, index), y.gather(1, index)
    generator = torch.Generator().manual_seed(seed)
    picks = torch.rand(HYPOTHESES, SAMPLE, generator=generator).to(x.device)
    picks = (picks * x.shape[1]).long()
    first, second = picks[:, 0], picks[:, 1]
    step = x[:, second] - x[:, first]
    scale = (y[:, second] - y[:, first]) / torch.where(step == 0, 1, step)  # (N,I)
    shift = y[:, first] - scale * x[:, first]
    cost = torch.full_like(scale, float("inf"))
    for start in range(0, HYPOTHESES, 32):  # bounds the memory
        part = slice(start, start + 32)
        residual = scale[:, part, None] * x[:, None] + shift[:, part, None] - y[:, None]
        center = residual.median(dim=-1, keepdim=True).values
        threshold = (residual - center).abs().mean(dim=-1, keepdim=True)
        cost[:, part] = torch.minimum(residual.abs(), threshold).sum(dim=-1)
    cost = cost.masked_fill((scale <= 0) | (step == 0), float("inf"))
    best = cost.argmin(dim=1, keepdim=True)
    found = cost.gather(1, best)[:, 0].isfinite()
    scale, shift = scale.gather(1, best)[:, 0], shift.gather(1, best)[:, 0]
    return torch.where(found, scale, 1.0), torch.where(found, shift, 0.0)


def _least_squares(x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift (N) of least squares over the mask; a scale of 0 where the x do not differ."""
    middle_x, middle_y = _mean(x, mask), _mean(y, mask)
    dx, dy = x - middle_x[:, None], y - middle_y[:, None]
    variance = _mean(dx.square(), mask)
    flat = variance <= 1e-12 * middle_x.square()
    scale = torch.where(flat, 0.0, _mean(dx * dy, mask) / torch.where(flat, 1.0, variance))
    return scale, middle_y - scale * middle_x


def _judged(x, y, valid, inliers, threshold, scale, shift, teacher: Tensor, config: LabelConfig) -> Alignment:
    count = valid.sum(dim=1)
    distance = (scale[:, None] * x + shift[:, None] - y).abs()
    middle = _median(y, valid)
    spread = _median((y - middle[:, None]).abs(), valid)
    close = torch.maximum(config.agreement * spread, 0.02 * middle)
    agreeing = (valid & (distance <= close[:, None])).sum(dim=1) / count.clamp_min(1)
    residual = _median(distance, inliers) / middle.clamp_min(1e-12)
    reasons: list[str | None] = []
    for pixels, share, slope in zip(count.tolist(), agreeing.tolist(), scale.tolist()):
        if pixels < config.fewest_pixels:
            reasons.append(f"{pixels} pixels with measured depth, expected at least {config.fewest_pixels}")
        elif slope == 0:
            reasons.append("the teacher sees one depth only, which fixes no scale")
        elif slope < 0:
            reasons.append("what the teacher sees as nearer was measured as farther")
        elif share < config.fewest_agreeing:
            reasons.append(f"only {share:.0%} of the measured pixels agree with the best scale and shift")
        else:
            reasons.append(None)
    usable = scale > 0
    return Alignment(
        scale=torch.where(usable, scale, 1.0).to(teacher.dtype),
        shift=torch.where(usable, shift, 0.0).to(teacher.dtype),
        inliers=inliers.unflatten(1, teacher.shape[1:]),
        threshold=torch.where(threshold.isfinite(), threshold, 0.0).to(teacher.dtype),
        agreeing=agreeing.to(teacher.dtype),
        residual=residual.to(teacher.dtype),
        reasons=tuple(reasons),
    )


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0).sum(dim=1) / mask.sum(dim=1).clamp_min(1)


def _median(values: Tensor, mask: Tensor) -> Tensor:
    """Median (N) over the mask, 0 where it is empty."""
    return torch.where(mask, values, float("nan")).nanmedian(dim=1).values.nan_to_num(0.0)
