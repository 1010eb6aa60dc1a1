"""Another backbone behind the same records, without weights: depth by plane sweep (Collins 1996) from known cameras.

For each view, planes parallel to its picture at a number of depths; at each, the other views are warped onto it and
compared with the view's own colours; a pixel takes the depth at which the views agree best. It shows what a backbone
has to give, and is a baseline that has learnt nothing: `--model plane-sweep`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, grid_sample

from da3_splat.backbone.network import Features
from da3_splat.geometry.projection import inverse_intrinsics, pixel_grid
from da3_splat.types import Cameras, Geometry

NEAR, FAR = 0.4, 20.0  # in units of the median distance between cameras, which the given ones are scaled to
OUTSIDE = 1.0  # cost where a view does not see a point: as if black met white


@dataclass(frozen=True)
class Swept(Features):
    """Features that are only what the sweep needs again: the pictures and their cameras."""

    images: Tensor
    cameras: Cameras


class PlaneSweep(nn.Module):
    """Depth (B,S,H,W) of posed views: `planes` depths evenly spaced in inverse depth, the `sources` nearest views
    compared over a window of `window` pixels; the better half of them counts, for what is hidden in the other."""

    predicts_cameras = True
    inverse_depth: nn.Parameter

    def __init__(self, planes: int = 96, sources: int = 4, window: int = 7):
        super().__init__()
        self.sources, self.window = sources, window
        self.register_parameter("inverse_depth", nn.Parameter(torch.linspace(1 / FAR, 1 / NEAR, planes), False))

    def encode(self, images: Tensor, cameras: Cameras | None = None, reference_view: str | int = 0) -> Swept:
        """Keeps images (B,S,3,H,W) and cameras, whose distances have a median of 1. ValueError without cameras."""
        if cameras is None or not bool(cameras.world_to_camera.isfinite().all()) or images.shape[1] < 2:
            raise ValueError("plane-sweep: expected two views or more with cameras; it finds none itself")
        batch, views = images.shape[:2]
        nothing = images.new_zeros(batch, views, 0)
        first = torch.zeros(batch, dtype=torch.long, device=images.device)
        height, width = images.shape[-2:]
        return Swept([], nothing, {}, first, height, width, images=images, cameras=cameras)

    def decode(self, features: Swept) -> Geometry:
        """Depth and confidence (1 and more: by how much the best plane beats the average) of the given cameras."""
        scenes = range(features.images.shape[0])
        found = [[self._view(features, scene, view) for view in range(features.images.shape[1])] for scene in scenes]
        depth, confidence = (torch.stack([torch.stack([v[part] for v in views]) for views in found]) for part in (0, 1))
        return Geometry(depth=depth, confidence=confidence, cameras=features.cameras)

    def _view(self, features: Swept, scene: int, view: int) -> tuple[Tensor, Tensor]:
        """Depth and confidence (H,W) of one view."""
        cameras, images = features.cameras, features.images[scene]
        centers = cameras.centers[scene]
        order = (centers - centers[view]).norm(dim=-1).argsort().tolist()
        others = [other for other in order if other != view][: self.sources]
        costs = torch.stack([self._costs(images, cameras, scene, view, other) for other in others])
        costs = costs.sort(dim=0).values[: (len(others) + 1) // 2].mean(dim=0)
        best = costs.argmin(dim=0, keepdim=True)
        inside = best.clamp(1, len(costs) - 2)  # a parabola through three planes finds the depth between them
        low, middle, high = (costs.gather(0, inside + step) for step in (-1, 0, 1))
        shift = (0.5 * (low - high) / (low - 2 * middle + high).clamp_min(1e-6)).clamp(-0.5, 0.5)
        shift = torch.where(best == inside, shift, 0)
        step = self.inverse_depth[1] - self.inverse_depth[0]
        depth = 1 / (self.inverse_depth[best] + shift * step)
        average = costs.mean(dim=0)
        return depth[0], 1 + (average - costs.amin(dim=0)) / average.clamp_min(1e-6)

    def _costs(self, images: Tensor, cameras: Cameras, scene: int, view: int, other: int) -> Tensor:
        """Mean absolute difference (D,H,W) of the view and another one warped onto each plane."""
        height, width = images.shape[-2:]
        between = cameras.world_to_camera[scene, other] @ cameras.camera_to_world[scene, view]
        intrinsics = cameras.intrinsics[scene]
        rays = pixel_grid(height, width, images) @ inverse_intrinsics(intrinsics[view]).T
        # At inverse depth q the point is ray / q; times q it is ray, and the translation counts q times.
        moved = rays @ between[:3, :3].T + self.inverse_depth[:, None, None, None] * between[:3, 3]
        pixels = moved @ intrinsics[other].T
        behind = pixels[..., 2] <= 1e-6
        grid = pixels[..., :2] / pixels[..., 2:].clamp_min(1e-6) / images.new_tensor([width, height]) * 2 - 1
        hidden = behind | (grid.abs() > 1).any(dim=-1)
        planes = len(grid)
        seen = grid_sample(images[other].expand(planes, -1, -1, -1), grid, padding_mode="border", align_corners=False)
        cost = (seen - images[view]).abs().mean(dim=1)
        cost = torch.where(hidden, OUTSIDE, cost)
        return avg_pool2d(cost[:, None], self.window, stride=1, padding=self.window // 2, count_include_pad=False)[:, 0]
