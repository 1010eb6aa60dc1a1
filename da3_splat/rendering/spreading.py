"""The transpose of drawing: what pixels lack is given back to the Gaussians, by the weights they were drawn with."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from da3_splat.rendering import render
from da3_splat.spherical_harmonics import DC
from da3_splat.types import Cameras, Gaussians


def spread_back(
    gaussians: Gaussians, cameras: Cameras, image: Tensor, counted: Tensor, backend: str = "auto", weigh: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Gaussians (1,N) drawn by one camera (1,1), beside `image` (3,H,W) where `counted` (H,W) is not zero.

    For each Gaussian and channel (N,3): the sum over the counted pixels of its weight times what the drawn picture
    lacks there, and the sum of its weights; both zero in channels whose colour is clamped at black. They are the
    gradients of the picture by the colours, along the difference and along one. The CPU has a kernel that finds only
    these, other backends differentiate, once more for the weights: None in their place unless asked to `weigh`.
    """
    counted = counted.to(image)
    if backend == "cpu" or (backend == "auto" and gaussians.means.device.type == "cpu"):
        from da3_splat.rendering import cpu

        opacities = gaussians.opacities if gaussians.mask is None else gaussians.opacities * gaussians.mask
        shown = (gaussians.means[0], gaussians.quats[0], gaussians.scales[0], opacities[0], gaussians.sh[0])
        camera = (cameras.world_to_camera[0, 0], cameras.intrinsics[0, 0])
        found = cpu.spread_back(*shown, *camera, image, counted, cpu.Settings(cameras.height, cameras.width))
        return found if weigh else (found[0], None)
    with torch.enable_grad():
        constant = gaussians.sh[:, :, :1].detach().requires_grad_()
        sh = torch.cat([constant, gaussians.sh[:, :, 1:].detach()], dim=2)
        color = render(replace(gaussians.detach(), sh=sh), cameras, backend=backend).color
        along_difference = ((image - color[0, 0]).detach() * counted)[None, None]
        (spread,) = torch.autograd.grad(color, constant, along_difference, retain_graph=weigh)
        if not weigh:
            return spread[0, :, 0] / DC, None
        (weight,) = torch.autograd.grad(color, constant, counted.expand_as(image)[None, None])
    return spread[0, :, 0] / DC, weight[0, :, 0] / DC
