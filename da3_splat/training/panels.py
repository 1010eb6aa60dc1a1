"""What people look at while a network trains: a row of pictures."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from da3_splat.backbone import DepthAnything3
from da3_splat.data.synthetic_batches import GeometryBatch
from da3_splat.io.images import color_of_depth
from da3_splat.training.gaussian_head import HeadBatch, HeadObjective

TITLE = "input, depth, novel view, truth, error"
GEOMETRY_TITLE = "input, depth, target"


@torch.no_grad()
def panel(batch: HeadBatch, objective: HeadObjective) -> Tensor:
    """(3,H,5*W) in [0,1] of the first scene: a context, its depth, a target as rendered, as it is, and their
    difference (black: none, white: a quarter of the range or more)."""
    prediction = objective.predict(batch)
    target, rendered = batch.target.images[0, 0], prediction.targets.color[0, 0].float().clamp(0, 1)
    depth = torch.from_numpy(color_of_depth(prediction.geometry.depth[0, 0].float().cpu().numpy()))
    pictures = [
        batch.context.images[0, 0],
        depth.permute(2, 0, 1).to(target),
        rendered,
        target,
        (4 * (rendered - target).abs()).clamp(0, 1),
    ]
    size = batch.context.images.shape[-2:]
    same = [interpolate(picture[None].float(), size, mode="bilinear", antialias=True)[0] for picture in pictures]
    return torch.cat(same, dim=2).clamp(0, 1)


@torch.no_grad()
def geometry_panel(batch: GeometryBatch, network: DepthAnything3) -> Tensor:
    """(3,V*H,3*W) in [0,1] of the first scene: up to three views, their predicted depth and what it is to be."""
    learning = network.training
    network.eval()
    views = slice(0, 3)
    said = network(batch.images[:1, views], reference_view="first").depth[0].float()
    network.train(learning)
    rows = []
    for image, *maps in zip(batch.images[0, views], said, batch.truth.depth[0, views]):
        colors = [torch.from_numpy(color_of_depth(values.cpu().numpy())).permute(2, 0, 1) for values in maps]
        rows.append(torch.cat([image.cpu(), *(color.to(image.dtype) for color in colors)], dim=2))
    return torch.cat(rows, dim=1).clamp(0, 1)
