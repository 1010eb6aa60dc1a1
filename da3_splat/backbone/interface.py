"""What a backbone is to the rest of the package: anything that turns pictures into `Geometry` in these two steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from da3_splat.backbone.network import Features
from da3_splat.types import Cameras, Geometry


class Backbone(Protocol):
    """A module with at least one parameter or buffer of its device. See `DepthAnything3` for the meaning of each.

    `encode` may leave `Features.taps` empty: heads that read features (heads/pixel.py) then cannot follow it, the plain
    head can. Where `predicts_cameras`, `decode` answers cameras in the frame and scale of its depth: the given ones,
    where `encode` got some and takes them as they are.
    """

    @property
    def predicts_cameras(self) -> bool: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def encode(self, images: Tensor, cameras: Cameras | None = None, reference_view: str | int = ...) -> Features:
        """Features of images (B,S,3,H,W) in [0,1]."""
        ...

    def decode(self, features: Any) -> Geometry:
        """Geometry of what its own `encode` gave."""
        ...
