"""Which Gaussians a camera can see at all, found without drawing them."""

from __future__ import annotations

import torch
from torch import Tensor

from da3_splat.rendering.constants import MAX_EXTENT, NEAR
from da3_splat.types import Cameras, Gaussians

BLUR = 3.0  # pixels by which the renderer's eps2d, and rounding to whole pixels, may widen a Gaussian


def in_sight(gaussians: Gaussians, cameras: Cameras, near: float = NEAR) -> Tensor:
    """Indices (M), in order, of the Gaussians (1,N) that can touch the picture of one camera (1,1).

    A bound, never too tight: a Gaussian reaches MAX_EXTENT of its longest axis, stretched as far as the projection at
    its mean can stretch, |J| <= f / z * sqrt(1 + (x / z)^2 + (y / z)^2). Costs a few sums a Gaussian.
    """
    pose, k = cameras.world_to_camera[0, 0], cameras.intrinsics[0, 0]
    x, y, z = (gaussians.means[0].detach() @ pose[:3, :3].T + pose[:3, 3]).unbind(-1)
    front = z > near
    x, y = x / z.clamp_min(near), y / z.clamp_min(near)
    focal = torch.maximum(k[0, 0], k[1, 1])
    longest = gaussians.scales[0].detach().amax(dim=-1)
    reach = BLUR + MAX_EXTENT * longest * focal / z.clamp_min(near) * (1 + x.square() + y.square()).sqrt()
    column, row = k[0, 0] * x + k[0, 1] * y + k[0, 2], k[1, 1] * y + k[1, 2]
    inside = (column > -reach) & (column < cameras.width + reach) & (row > -reach) & (row < cameras.height + reach)
    return torch.nonzero(front & inside)[:, 0]
