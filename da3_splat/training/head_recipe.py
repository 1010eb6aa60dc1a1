"""The recipe of a Gaussian head's training, and the model that it asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from da3_splat.backbone.checkpoints import load_checkpoint, resolve
from da3_splat.backbone.network import DepthAnything3
from da3_splat.model import Da3Splat, create_model, load_model
from da3_splat.perceptual import perceptual_distance, why_unavailable
from da3_splat.training.episodes import DataConfig
from da3_splat.training.gaussian_head import HeadLossConfig, HeadObjective
from da3_splat.training.optimization import OptimizationConfig


@dataclass(frozen=True)
class HeadRecipe:
    """What a file in configs/head/ may say."""

    model: str = "mini"
    """weights to begin with: a model of ours (its head goes on learning), or any of load_model's sources"""
    preset: str | None = None
    """with bare geometry weights (a file or hub id): their size; the head then starts as naive lifting"""
    sh_degree: int = 1
    precision: str = "bf16-mixed"
    checkpointing: bool = False
    """compute the transformer's blocks again on the way back, where the backbone learns"""
    merge_from: float = 1.0
    """share of the run after which Gaussians are merged before they are rendered; 1: never"""
    data: DataConfig = field(default_factory=DataConfig)
    loss: HeadLossConfig = field(default_factory=HeadLossConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)

    @property
    def merge_after(self) -> int:
        """Episodes of a rank before merging begins."""
        return round(self.merge_from * self.optimization.steps * self.optimization.accumulate)


def build_model(recipe: HeadRecipe) -> Da3Splat:
    """The model of a recipe; its backbone is frozen unless the recipe gives it a learning rate.

    ValueError where the head cannot be trained (naive lifting has nothing to learn).
    """
    if recipe.preset is None:
        model = load_model(recipe.model)
    else:
        model = create_model(recipe.preset, sh_degree=recipe.sh_degree)
        load_checkpoint(model.get_submodule("network"), resolve(recipe.model))
    if not any(True for _ in model.gs_head.parameters()):
        raise ValueError(f"{recipe.model}: has no trained head; name its size with preset: to start one")
    model.train()
    network = model.get_submodule("network")
    network.requires_grad_(recipe.optimization.backbone_rate > 0)
    if recipe.optimization.backbone_rate == 0:
        network.eval()
    elif isinstance(network, DepthAnything3):
        network.backbone.checkpointing = recipe.checkpointing
    else:
        raise ValueError(f"backbone_rate: expected 0, the network of {recipe.model} is not trained with its head")
    return model


def build_objective(recipe: HeadRecipe, say: Callable[[str], None], **options) -> HeadObjective:
    """What a recipe minimises; `say` is told where it asks for LPIPS and its weights are not on this machine."""
    perceptual = None
    if recipe.loss.lpips:
        reason = why_unavailable("vgg")
        if reason is None:
            perceptual = perceptual_distance("vgg")
        else:
            say(f"training without LPIPS: {reason}")
    return HeadObjective(build_model(recipe), recipe.loss, perceptual, **options)


def parameter_groups(model: Da3Splat, recipe: HeadRecipe) -> dict[float, list[nn.Parameter]]:
    """Learning rate -> the parameters that learn so."""
    groups = {recipe.optimization.rate: list(model.gs_head.parameters())}
    backbone = recipe.optimization.backbone_rate
    if backbone > 0:
        groups[backbone] = groups.get(backbone, []) + list(model.network.parameters())
    return groups
