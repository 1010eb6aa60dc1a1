"""The sizes of DA3: the only place that knows them."""

from __future__ import annotations

from dataclasses import dataclass

from da3_splat.backbone.camera import CameraDecoder, CameraEncoder
from da3_splat.backbone.dpt import DualDPT, MonocularHead, SeparateDPT
from da3_splat.backbone.network import DepthAnything3, NestedDepthAnything3
from da3_splat.backbone.vision_transformer import VisionTransformer


@dataclass(frozen=True)
class Preset:
    """dim, depth, heads of the transformer; taps and first cross-view-capable block; width and channels of the DPT."""

    dim: int
    depth: int
    heads: int
    taps: tuple[int, int, int, int]
    alternate_from: int | None
    features: int
    channels: tuple[int, int, int, int]
    swiglu: bool = False
    camera_heads: int = 16
    camera_blocks: int = 4
    objects: bool = False
    """a monocular head that also says where objects stand"""
    separate_rays: bool = False
    """rays from a pyramid of their own instead of the dual DPT, for comparison"""

    @property
    def feature_dim(self) -> int:
        """D of the tapped features."""
        return self.dim if self.alternate_from is None else 2 * self.dim


_LARGE_CHANNELS = (256, 512, 1024, 1024)
PRESETS = {
    "mini": Preset(192, 8, 3, (1, 3, 5, 7), 2, 32, (32, 64, 96, 192), camera_heads=6, camera_blocks=2),
    "da3-small": Preset(384, 12, 6, (5, 7, 9, 11), 4, 64, (48, 96, 192, 384)),
    "da3-base": Preset(768, 12, 12, (5, 7, 9, 11), 4, 128, (96, 192, 384, 768)),
    "da3-large": Preset(1024, 24, 16, (11, 15, 19, 23), 8, 256, _LARGE_CHANNELS),
    "da3-giant": Preset(1536, 40, 24, (19, 27, 33, 39), 13, 256, _LARGE_CHANNELS, swiglu=True),
    "da3mono-large": Preset(1024, 24, 16, (4, 11, 17, 23), None, 256, _LARGE_CHANNELS),
    "da3teacher-large": Preset(1024, 24, 16, (4, 11, 17, 23), None, 256, _LARGE_CHANNELS, objects=True),
    "da3metric-large": Preset(1024, 24, 16, (4, 11, 17, 23), None, 256, _LARGE_CHANNELS),
}
NESTED = {"da3nested-giant-large": ("da3-giant", "da3metric-large")}


def preset_names() -> tuple[str, ...]:
    return (*PRESETS, *NESTED)


def create_backbone(name: str) -> DepthAnything3 | NestedDepthAnything3:
    """A DA3 network of the named size with fresh weights: mini, da3-small, da3-base, da3-large, da3-giant,
    da3mono-large, da3teacher-large, da3metric-large or da3nested-giant-large."""
    if name in NESTED:
        return NestedDepthAnything3(*(build_backbone(PRESETS[part]) for part in NESTED[name]))
    if name not in PRESETS:
        raise ValueError(f"backbone: expected one of {', '.join(preset_names())}, got {name!r}")
    return build_backbone(PRESETS[name])


def create_single(name: str) -> DepthAnything3:
    """`create_backbone` of what is one network; ValueError for a nested pair."""
    network = create_backbone(name)
    if not isinstance(network, DepthAnything3):
        raise ValueError(f"backbone: expected a single network, got the nested {name}")
    return network


def build_backbone(preset: Preset) -> DepthAnything3:
    """A DA3 network of any size with fresh weights."""
    backbone = VisionTransformer(
        preset.dim, preset.depth, preset.heads, preset.taps, preset.alternate_from, preset.swiglu
    )
    if preset.alternate_from is None:
        return DepthAnything3(
            backbone, MonocularHead(preset.feature_dim, preset.features, preset.channels, preset.objects)
        )
    head: type[DualDPT] = SeparateDPT if preset.separate_rays else DualDPT
    return DepthAnything3(
        backbone,
        head(preset.feature_dim, preset.features, preset.channels),
        CameraDecoder(preset.feature_dim),
        CameraEncoder(preset.dim, preset.camera_heads, preset.camera_blocks),
    )
