"""Gaussian heads: features of the backbone, pictures and geometry -> Gaussians."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from da3_splat.backbone.network import Features
from da3_splat.types import Gaussians, Geometry


class GaussianHead(Protocol):
    """What any Gaussian head is: a module that is called like this."""

    def __call__(self, features: Features, images: Tensor, geometry: Geometry) -> Gaussians:
        """Gaussians (B,N) in the world of `geometry.cameras`, from images (B,S,3,H,W) in [0,1]."""
        ...
