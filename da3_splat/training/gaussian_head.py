"""One step of training a Gaussian head: posed context views in, other views of the same world rendered and compared."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from da3_splat.geometry.frames import cameras_for_encoder
from da3_splat.losses import image_loss
from da3_splat.model import Da3Splat
from da3_splat.rendering import render
from da3_splat.types import Geometry, Views


def head_step(model: Da3Splat, context: Views, targets: Views, depth: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Loss to differentiate and the rendered targets (B,V,3,H,W); the backbone is frozen and never sees a target.

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
    rendering = render(gaussians, targets.cameras)
    loss = image_loss(rendering.color.flatten(0, 1), targets.images.flatten(0, 1))
    return loss, rendering.color


def _scaled_to(depth: Tensor, true: Tensor) -> Tensor:
    ratios = [(t[t > 0] / d[t > 0]).median() if (t > 0).any() else d.new_ones(()) for d, t in zip(depth, true)]
    return depth * torch.stack(ratios)[:, None, None, None]
