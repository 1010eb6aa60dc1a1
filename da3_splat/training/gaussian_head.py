"""Training a Gaussian head: context views in, other views of the same scene rendered and compared (section 5)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from da3_splat.backbone.network import DepthAnything3
from da3_splat.fusion.merging import merge_pixels
from da3_splat.geometry.frames import baseline_scale, cameras_for_encoder
from da3_splat.losses import fit_colors, scale_shift_invariant_depth_loss, static_pixels
from da3_splat.metrics import ssim
from da3_splat.model import Da3Splat
from da3_splat.rendering import render
from da3_splat.training.geometry import exact
from da3_splat.types import Gaussians, Geometry, Record, Rendering, Views


@dataclass(frozen=True)
class HeadLossConfig:
    """Weights of the loss; the paper names MSE, LPIPS and depth, but not their weights."""

    mse: float = 1.0
    absolute: float = 0.0
    """of the mean absolute difference, which outliers bend less than the square"""
    ssim: float = 0.05
    lpips: float = 0.05
    """where the perceptual network's weights are on this machine"""
    depth: float = 0.05
    """of rendered depth in one context view, scale-shift-invariant"""
    opacity: float = 0.0
    """of the mean opacity, which thins out what is not needed"""
    fit_colors: bool = False
    """compare after an affine change of colour for each target: photos of many cameras and hours"""
    static_share: float = 1.0
    """compare only the share of each target's pixels that fits best: people and cars are in one photo only"""


@dataclass(frozen=True)
class HeadBatch(Record):
    """Context (B,S) and target (B,V) views with cameras, and the contexts' true depth (B,S,H,W; 0: none) where known.

    `pose_free`: the backbone poses all views, targets as queries that the contexts never see. `merged`: Gaussians are
    merged before they are rendered, as a reconstruction does. `supervised_context` is the view whose depth is compared.
    """

    context: Views
    target: Views
    depth: Tensor | None = None
    pose_free: bool = False
    merged: bool = False
    supervised_context: int = 0


@dataclass(frozen=True)
class Prediction:
    """What the head made of a batch: Gaussians (of all scenes together, or merged ones scene by scene), the targets as
    rendered, and the geometry they were lifted from."""

    gaussians: list[Gaussians]
    targets: Rendering
    geometry: Geometry


class HeadObjective(nn.Module):
    """Loss of a model's Gaussian head, and of its backbone where that has parameters to learn."""

    def __init__(
        self,
        model: Da3Splat,
        config: HeadLossConfig = HeadLossConfig(),
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
        timed: Callable[[str], AbstractContextManager] = lambda part: nullcontext(),
    ):
        """`perceptual` is LPIPS of two batches of pictures in [0,1]; `timed(part)` may time backbone, head, render."""
        super().__init__()
        self.model, self.config, self.perceptual, self.timed = model, config, perceptual, timed

    def forward(self, batch: HeadBatch) -> tuple[Tensor, dict[str, float]]:
        """Loss to differentiate and its weighted parts as numbers."""
        prediction = self.predict(batch)
        config, clouds = self.config, prediction.gaussians
        with exact(batch.context.images):
            parts = self._color_loss(prediction.targets.color.flatten(0, 1), batch.target)
            if config.depth:
                parts["depth"] = config.depth * self._depth_loss(clouds, batch, prediction.geometry)
            if config.opacity:
                parts["opacity"] = config.opacity * torch.stack([cloud.opacities.mean() for cloud in clouds]).mean()
            loss = torch.stack(list(parts.values())).sum()
        return loss, {name: float(value.detach()) for name, value in {**parts, "loss": loss}.items()}

    def predict(self, batch: HeadBatch) -> Prediction:
        """Gaussians from the contexts, rendered where the targets are. No target picture reaches the Gaussians."""
        network, views = self.model.network, batch.context.images.shape[1]
        learns = any(parameter.requires_grad for parameter in network.parameters())
        with self.timed("backbone"), torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            if batch.pose_free:
                features, cameras = self._with_queries(batch)
                context_cameras, target_cameras = cameras.select(slice(views)), cameras.select(slice(views, None))
                target_cameras = target_cameras.resized(*batch.target.images.shape[-2:])
                features = features.select(list(range(views)))
                geometry = network.decode(features)
            else:
                context_cameras, target_cameras = batch.context.known_cameras, batch.target.known_cameras
                with exact(batch.context.images):
                    given = cameras_for_encoder(context_cameras)
                features = network.encode(batch.context.images, given)
                geometry = self._scaled(network.decode(features), batch)
        geometry = Geometry(depth=geometry.depth, confidence=geometry.confidence, cameras=context_cameras)
        with self.timed("head"):
            gaussians = self.model.gs_head(features, batch.context.images, geometry.to(torch.float32))
        with self.timed("render"), exact(batch.context.images):
            if not batch.merged:
                return Prediction([gaussians], render(gaussians, target_cameras), geometry)
            scenes = range(len(geometry.depth))
            clouds = [merge_pixels(geometry.item(i), gaussians.item(i))[0] for i in scenes]
            parts = [render(cloud, target_cameras.item(item)) for item, cloud in enumerate(clouds)]
            maps = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("color", "depth", "alpha")}
            return Prediction(clouds, Rendering(**maps), geometry)

    def _with_queries(self, batch: HeadBatch):
        """Features and predicted cameras of contexts and targets. The targets' are for rendering at their own size."""
        size = batch.context.images.shape[-2:]
        targets = batch.target.images
        if targets.shape[-2:] != size:
            shape = targets.shape[:2]
            targets = nn.functional.interpolate(targets.flatten(0, 1), size, mode="bilinear", antialias=True)
            targets = targets.unflatten(0, shape)
        images = torch.cat([batch.context.images, targets], dim=1)
        network = self.model.network
        if not isinstance(network, DepthAnything3):
            raise ValueError(f"pose-free training: expected a Depth Anything 3 network, got {type(network).__name__}")
        features = network.encode(images, reference_view="first", queries=targets.shape[1])
        return features, network.cameras(features)

    def _scaled(self, geometry: Geometry, batch: HeadBatch) -> Geometry:
        """Depth in the units of the given cameras: by the true depth, else by the distances between the cameras."""
        if batch.depth is None:
            scale = baseline_scale(geometry.known_cameras, batch.context.known_cameras)
            return replace(geometry, depth=geometry.depth * scale.nan_to_num(1.0)[:, None, None, None])
        return replace(geometry, depth=_scaled_to(geometry.depth, batch.depth))

    def _color_loss(self, rendered: Tensor, target: Views) -> dict[str, Tensor]:
        config, true = self.config, target.images.flatten(0, 1)
        mask = torch.ones_like(true[:, 0], dtype=torch.bool)
        if target.masks is not None:
            mask = target.masks.flatten(0, 1)
        if config.fit_colors:
            rendered = fit_colors(rendered, true, mask)
        if config.static_share < 1:
            mask = mask & static_pixels(rendered, true, config.static_share)
        # Pixels that are not compared are made equal, so that windows across the mask's border see no edge.
        rendered = torch.where(mask[:, None], rendered, true)
        share = mask.float().mean().clamp_min(1e-3)
        difference = rendered - true
        parts = {}
        if config.mse:
            parts["mse"] = config.mse * difference.square().mean() / share
        if config.absolute:
            parts["absolute"] = config.absolute * difference.abs().mean() / share
        if config.ssim:
            parts["ssim"] = config.ssim * (1 - ssim(rendered, true).mean()) / share
        if config.lpips and self.perceptual is not None:
            parts["lpips"] = config.lpips * self.perceptual(rendered.clamp(0, 1), true).mean()
        return parts

    def _depth_loss(self, clouds: list[Gaussians], batch: HeadBatch, geometry: Geometry) -> Tensor:
        view = [batch.supervised_context]
        cameras = geometry.known_cameras.select(view)
        if batch.merged:
            depth = torch.cat([render(cloud, cameras.item(item)).depth[:, 0] for item, cloud in enumerate(clouds)])
        else:
            depth = render(clouds[0], cameras).depth[:, 0]
        # Where nothing better is known, the backbone's depth keeps the head from moving surfaces.
        target = (geometry.depth.detach() if batch.depth is None else batch.depth)[:, view[0]]
        return scale_shift_invariant_depth_loss(depth, target, target > 0)


def _scaled_to(depth: Tensor, true: Tensor) -> Tensor:
    ratios = [(t[t > 0] / d[t > 0]).median() if (t > 0).any() else d.new_ones(()) for d, t in zip(depth, true)]
    return depth * torch.stack(ratios)[:, None, None, None]
