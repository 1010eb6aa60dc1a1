"""Pictures for the report: numbers as colours that a reader can compare between scenes."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from da3_splat.io.images import color_of_depth

FULL_ERROR = 0.5  # mean absolute difference of the channels that is shown white
STOPS = np.array([[0.0, 0.0, 0.0], [0.45, 0.0, 0.25], [0.9, 0.2, 0.1], [1.0, 0.75, 0.2], [1.0, 1.0, 1.0]])


def color_of_error(error: np.ndarray, full: float = FULL_ERROR) -> np.ndarray:
    """Errors (H,W) >= 0 as colours (H,W,3) in [0,1]: none is black, `full` and more is white."""
    position = (error / full).clip(0, 1) * (len(STOPS) - 1)
    index = np.minimum(position.astype(int), len(STOPS) - 2)
    blend = (position - index)[..., None]
    return STOPS[index] * (1 - blend) + STOPS[index + 1] * blend


def picture(values: Tensor) -> np.ndarray:
    """A picture (3,H,W) in [0,1] as (H,W,3)."""
    return values.detach().clamp(0, 1).permute(1, 2, 0).cpu().numpy()


def depth_picture(depth: Tensor, shown: Tensor | None = None) -> np.ndarray:
    """Depth (H,W) as colours (H,W,3), near is bright; black where `shown` (H,W) bool is False."""
    depth = depth.detach() if shown is None else depth.detach() * shown
    return color_of_depth(depth.cpu().numpy())


def error_picture(rendered: Tensor, truth: Tensor) -> np.ndarray:
    """The difference of two pictures (3,H,W) as colours (H,W,3)."""
    return color_of_error((rendered - truth).detach().abs().mean(dim=0).cpu().numpy())
