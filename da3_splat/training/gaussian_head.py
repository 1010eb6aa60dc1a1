"""One step of training a Gaussian head: posed context views in, other views of the same world rendered and compared."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from da3_splat.fusion.merging import merge
from da3_splat.geometry.frames import cameras_for_encoder
from da3_splat.losses import image_loss
from da3_splat.model import Da3Splat
from da3_splat.rendering import render
from da3_splat.types import Geometry, Views


def head_step(
    model: Da3Splat, context: Views, targets: Views, depth: Tensor | None = None, merged: bool = False
) -> tuple[Tensor, Tensor]:
    """Loss to differentiate and the rendered targets (B,V,3,H,W); the backbone is frozen and never sees a target.

    With `merged` (batch size 1) the Gaussians are merged before they are rendered, as a reconstruction does, so that
    the head learns sizes and opacities that merging does not break.

    The Gaussians are laid from the given cameras of `context` (B,S) at the backbone's depth, scaled as a whole by the
    median ratio to the true `depth` (B,S,H,W; 0 where there is none), or left as it is.
    """
    with torch.no_grad():
        features = model.network.encode(context.images, cameras_for_encoder(context.cameras))
        geometry = model.network.decode(features)
        if depth is not None:
            geometry = replace(geometry, depth=_scaled_to(geometry.depth, depth))
    geometry = Geometry(depth=geometry.depth, confidence=geometry.confidence, cameras=context.cameras)
    gaussians = model.gs_head(features, context.images, geometry)
    if merged:
        pixels = gaussians.means.shape[1] // context.images.shape[1]
        gaussians, _ = merge(geometry, lambda i: gaussians.select(slice(i * pixels, (i + 1) * pixels)))
    rendering = render(gaussians, targets.cameras)
    loss = image_loss(rendering.color.flatten(0, 1), targets.images.flatten(0, 1))
    return loss, rendering.color


def _scaled_to(depth: Tensor, true: Tensor) -> Tensor:
    ratios = [(t[t > 0] / d[t > 0]).median() if (t > 0).any() else d.new_ones(()) for d, t in zip(depth, true)]
    return depth * torch.stack(ratios)[:, None, None, None]
