"""Depth Anything 3: the network, its sizes and its weights."""

from da3_splat.backbone.checkpoints import load_checkpoint
from da3_splat.backbone.network import DepthAnything3, NestedDepthAnything3
from da3_splat.backbone.presets import create_backbone, create_single

__all__ = ["DepthAnything3", "NestedDepthAnything3", "create_backbone", "create_single", "load_checkpoint"]
