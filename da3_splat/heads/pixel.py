"""The pixel-aligned Gaussian head: one Gaussian a pixel, from a DPT with a branch that looks at the picture itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from da3_splat.backbone.dpt import DPT
from da3_splat.backbone.network import Features, views_per_chunk
from da3_splat.heads.lifting import lift, lift_released, raw_channels
from da3_splat.types import Cameras, Gaussians, Geometry

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PixelHead(DPT):
    """DPT with an image branch (section 5); its keys are those of the released Gaussian head.

    `rules` "exact" are ours, "released" those of the released Giant weights (see lifting.py). An exact head starts as
    naive lifting, because its last layer starts at zero.
    """

    pixel_aligned = True

    def __init__(self, dim: int, features: int, channels: tuple[int, ...], sh_degree: int = 2, rules: str = "exact"):
        if rules not in ("exact", "released"):
            raise ValueError(f"rules: expected exact or released, got {rules!r}")
        super().__init__(dim, features, channels, outputs=raw_channels(sh_degree), uv=True)
        self.rules = rules
        width = features // 2
        self.images_merger = nn.Sequential(
            nn.Conv2d(3, width // 4, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width // 4, width // 2, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width // 2, width, 3, padding=1),
            nn.GELU(),
        )
        if rules == "exact":
            for parameter in self.scratch.output_conv2[2].parameters():
                nn.init.zeros_(parameter)

    def forward(
        self,
        features: Features,
        images: Tensor,
        geometry: Geometry,
        given: Cameras | None = None,
        rays: str = "cameras",
    ) -> Gaussians:
        """Gaussians (B,S*H*W) in the world of `geometry.cameras`. `given` cameras matter to the released rules only,
        `rays` to the exact ones (see `lift`)."""
        raw = self.raw_maps(features, images)
        # Half precision is for the maps: a point in bfloat16 would be off by centimetres.
        with torch.autocast(images.device.type, enabled=False):
            if self.rules == "released":
                return lift_released(raw, geometry, given)
            return lift(raw, images, geometry, rays)

    def raw_maps(self, features: Features, images: Tensor) -> Tensor:
        """(B,S,H,W,R) before any activation, a few views at a time."""
        batch, views, _, height, width = images.shape
        flat_images = images.flatten(0, 1)
        taps = [tap.flatten(0, 1) for tap in features.taps]
        parts, size = [], views_per_chunk(images.device)
        for start in range(0, batch * views, size):
            chunk = slice(start, start + size)
            levels = self.pyramid([tap[chunk].to(self.scratch.output_conv1.weight) for tap in taps], height, width)
            x = self.image_size_features(levels, height, width) + self.images_merger(_normalised(flat_images[chunk]))
            parts.append(self.scratch.output_conv2(self.with_uv(x, height, width)))
        return torch.cat(parts).permute(0, 2, 3, 1).unflatten(0, (batch, views))


def _normalised(images: Tensor) -> Tensor:
    mean, std = images.new_tensor(_MEAN)[:, None, None], images.new_tensor(_STD)[:, None, None]
    return (images - mean) / std
