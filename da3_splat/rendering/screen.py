"""What a densification strategy wants to know of a rendering: where the Gaussians fell on the pictures."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Screen:
    """means2d (V,N,2) in pixels, radii (V,N,2) int32 in pixels (0: not visible).

    `probe` (V,N,2) is a leaf that stands for the means: after `backward` its `.grad` is dL/dmeans2d, and where it was
    asked for its `.absgrad` the sum of the absolute values over pixels.
    """

    means2d: Tensor
    radii: Tensor
    probe: Tensor
