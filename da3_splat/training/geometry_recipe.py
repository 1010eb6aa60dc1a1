"""The recipe of a geometry network's training, and what it asks for: network, objective, parameters, data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import nn
from torch.utils.data import IterableDataset

from da3_splat.backbone import DepthAnything3, create_single, load_checkpoint
from da3_splat.backbone.checkpoints import load_dinov2, read_safetensors, resolve
from da3_splat.data.geometry_mixture import LabelUse, MixedBatches, SourceConfig
from da3_splat.data.synthetic_batches import StepSampler, SyntheticBatches, WorldsConfig
from da3_splat.training.geometry import PatchObjective, StudentObjective, smooth_positions
from da3_splat.training.optimization import OptimizationConfig
from da3_splat.training.single_view import MetricObjective, MonoObjective, TeacherObjective

TIMM_NAMES = {
    "da3-small": "vit_small_patch14_dinov2.lvd142m",
    "da3-base": "vit_base_patch14_dinov2.lvd142m",
    "da3-large": "vit_large_patch14_dinov2.lvd142m",
    "da3-giant": "vit_giant_patch14_dinov2.lvd142m",
    "da3mono-large": "vit_large_patch14_dinov2.lvd142m",
    "da3teacher-large": "vit_large_patch14_dinov2.lvd142m",
    "da3metric-large": "vit_large_patch14_dinov2.lvd142m",
}


@dataclass(frozen=True)
class GeometryRecipe:
    """What a file in configs/geometry/ may say."""

    preset: str = "mini"
    objective: Literal["student", "patches", "teacher", "mono", "metric"] = "student"
    start: str | None = None
    """timm: DINOv2 as timm publishes it; or weights of this network or of DINOv2 (file, folder, hub id)"""
    teacher: str | None = None
    """mono: weights of a da3teacher-large"""
    teacher_preset: str = "da3teacher-large"
    precision: str = "bf16-mixed"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """with several processes: whole copies of the network, or its parameters and optimizer shared out"""
    checkpointing: bool = False
    """compute the transformer's blocks again on the way back: less memory, a third more time"""
    worlds: WorldsConfig = field(default_factory=WorldsConfig)
    """sizes, view counts and the budget of every batch, of whatever source"""
    sources: tuple[SourceConfig, ...] = ()
    """data sets and their weights; none: synthetic worlds alone"""
    labels: LabelUse = field(default_factory=LabelUse)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)


def build_network(recipe: GeometryRecipe, start: str | None = None) -> DepthAnything3:
    """The network of a recipe with the weights it starts from (`start` instead of the recipe's, where given)."""
    network = create_single(recipe.preset)
    start = start or recipe.start
    if start is None:
        smooth_positions(network)
    elif start == "timm":
        load_dinov2(network, timm_weights(recipe.preset))
    else:
        state = read_safetensors(resolve(start))
        if "patch_embed.proj.weight" in state:  # DINOv2's own keys
            load_dinov2(network, state)
        else:
            load_checkpoint(network, state)
    network.backbone.checkpointing = recipe.checkpointing
    return network


def timm_weights(preset: str) -> dict:
    """DINOv2 of a preset's size, downloaded by timm once; ValueError where there is none or it cannot be had."""
    if preset not in TIMM_NAMES:
        raise ValueError(f"start: timm has no DINOv2 of the size {preset!r}; expected one of {', '.join(TIMM_NAMES)}")
    import timm
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return timm.create_model(TIMM_NAMES[preset], pretrained=True, num_classes=0).state_dict()
    except (OSError, RuntimeError, LocalEntryNotFoundError) as error:
        raise ValueError(
            f"start: timm's {TIMM_NAMES[preset]} cannot be downloaded here ({error}); name a safetensors file instead"
        ) from error


def build_objective(recipe: GeometryRecipe, network: DepthAnything3) -> nn.Module:
    """What a recipe minimises; ValueError where its preset and objective do not fit."""
    if recipe.objective in ("student", "patches") and not network.predicts_cameras:
        raise ValueError(f"objective: {recipe.objective} needs an any-view preset, got {recipe.preset!r}")
    if recipe.objective in ("teacher", "mono", "metric") and network.predicts_cameras:
        raise ValueError(f"objective: {recipe.objective} needs a monocular preset, got {recipe.preset!r}")
    if recipe.objective == "mono":
        if recipe.teacher is None:
            raise ValueError("teacher: expected the weights of a teacher for the objective mono")
        teacher = create_single(recipe.teacher_preset)
        load_checkpoint(teacher, recipe.teacher)
        return MonoObjective(network, teacher)
    kinds = {
        "student": StudentObjective,
        "patches": PatchObjective,
        "teacher": TeacherObjective,
        "metric": MetricObjective,
    }
    return kinds[recipe.objective](network)


def parameter_groups(recipe: GeometryRecipe, objective: nn.Module) -> dict[float, list[nn.Parameter]]:
    """Learning rate -> the parameters that learn so: the transformer at `backbone_rate` where the recipe gives one."""
    rates = recipe.optimization
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        if recipe.objective == "patches" and ".head." in name:
            continue  # the dense heads are not run
        transformer = name.startswith("network.backbone.") and rates.backbone_rate > 0
        groups.setdefault(rates.backbone_rate if transformer else rates.rate, []).append(parameter)
    return groups


def build_batches(recipe: GeometryRecipe, sampler: StepSampler, steps: int) -> IterableDataset:
    """(position, batch) pairs of a run of `steps` steps."""
    if not recipe.sources:
        return SyntheticBatches(sampler)
    return MixedBatches(sampler, recipe.sources, recipe.labels, steps * recipe.optimization.accumulate)
