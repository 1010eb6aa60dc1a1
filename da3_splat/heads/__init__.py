"""Gaussian heads: features of the backbone, pictures and geometry -> Gaussians."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from da3_splat.backbone.network import Features
from da3_splat.types import Cameras, Gaussians, Geometry


class GaussianHead(Protocol):
    """What any Gaussian head is: a module that is called like this.

    `pixel_aligned` heads answer one Gaussian a pixel, view after view in row order, and a view's Gaussians depend on
    that view's features alone: fusion asks them for one view at a time and merges by pixels.
    """

    rules: str
    pixel_aligned: bool

    def __call__(
        self,
        features: Features,
        images: Tensor,
        geometry: Geometry,
        given: Cameras | None = None,
        rays: str = "cameras",
    ) -> Gaussians:
        """Gaussians (B,N) in the world of `geometry.cameras`, from images (B,S,3,H,W) in [0,1]."""
        ...
