"""The head without weights: every pixel becomes one Gaussian of its colour. For backbones that have no trained head."""

from __future__ import annotations

from torch import Tensor, nn

from da3_splat.backbone.network import Features
from da3_splat.heads.lifting import lift, raw_channels
from da3_splat.types import Cameras, Gaussians, Geometry


class PlainHead(nn.Module):
    """Naive lifting: what an untrained `PixelHead` answers, without computing it."""

    rules = "exact"
    pixel_aligned = True

    def forward(
        self,
        features: Features,
        images: Tensor,
        geometry: Geometry,
        given: Cameras | None = None,
        rays: str = "cameras",
    ) -> Gaussians:
        """Gaussians (B,S*H*W) in the world of `geometry.cameras`; `rays` as in `lift`."""
        batch, views, _, height, width = images.shape
        raw = images.new_zeros(batch, views, height, width, raw_channels(sh_degree=0))
        return lift(raw, images, geometry, rays)
