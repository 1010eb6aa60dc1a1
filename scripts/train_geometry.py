"""Train a DA3 network's geometry on synthetic worlds; the same command goes on where the last run stopped.

    uv run python scripts/train_geometry.py --config configs/geometry/mini-patches.yaml --output outputs/mini/patches
    uv run python scripts/train_geometry.py --config configs/geometry/mini.yaml --output outputs/mini/geometry \\
        --start outputs/mini/patches/geometry.safetensors --minutes 30
    torchrun --nproc-per-node 8 scripts/train_geometry.py --config ... --output ...

Every batch is a function of the step's number. The last line names the weights, which are the averaged ones.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads must not take the workers' cores

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.console import Console
from safetensors.torch import save_file

from da3_splat.backbone import create_backbone, load_checkpoint
from da3_splat.config import load_config
from da3_splat.data.synthetic_batches import StepSampler, SyntheticBatches, WorldsConfig
from da3_splat.io.files import replacing
from da3_splat.training.geometry import PatchObjective, StudentObjective, smooth_positions
from da3_splat.training.loop import CHECKPOINT, LoopConfig, Shares, make_loader, run
from da3_splat.training.optimization import OptimizationConfig, TrainingState, launch


@dataclass(frozen=True)
class Recipe:
    """What a configuration file may say."""

    preset: str = "mini"
    objective: Literal["student", "patches"] = "student"
    start: Path | None = None
    """weights to begin with; without, from nothing"""
    precision: str = "bf16-mixed"
    checkpointing: bool = False
    """compute the transformer's blocks again on the way back: less memory, a third more time"""
    worlds: WorldsConfig = field(default_factory=WorldsConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)


@dataclass
class Settings:
    config: Path
    """the recipe"""
    output: Path
    """folder of checkpoint.pt and geometry.safetensors"""
    start: Path | None = None
    """weights to begin with, instead of the recipe's"""
    loop: tyro.conf.OmitArgPrefixes[LoopConfig] = field(default_factory=LoopConfig)
    steps: int | None = None
    """of the whole run, instead of the recipe's"""
    workers: int = 1
    """processes that make worlds"""
    threads: int = 1


def main(settings: Settings) -> None:
    recipe = load_config(Recipe, settings.config)
    optimization = replace(recipe.optimization, steps=settings.steps or recipe.optimization.steps)
    fabric = launch(recipe.precision)
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    console = Console(quiet=fabric.global_rank > 0)
    network = create_backbone(recipe.preset)
    smooth_positions(network)
    if settings.start or recipe.start:
        load_checkpoint(network, settings.start or recipe.start)
    network.head.to(memory_format=torch.channels_last)
    network.backbone.checkpointing = recipe.checkpointing
    objective = StudentObjective(network) if recipe.objective == "student" else PatchObjective(network)
    learned = [p for name, p in objective.named_parameters() if recipe.objective == "student" or ".head." not in name]
    state = TrainingState(fabric, objective, {optimization.rate: learned}, optimization)
    sampler = StepSampler(recipe.worlds, fabric.global_rank, fabric.world_size)
    if (settings.output / CHECKPOINT).exists():
        sampler.load_state_dict(state.load(settings.output / CHECKPOINT))
        console.print(f"resumed at step {state.step}")
    loader = make_loader(SyntheticBatches(sampler), settings.workers)

    def report(step: int, parts: dict[str, float], shares: Shares) -> None:
        values = "  ".join(f"{name} {value:.3f}" for name, value in parts.items())
        console.print(f"step {step}  {values}  {shares}  skipped {state.skipped}")

    run(state, loader, sampler, settings.output, settings.loop, report)
    if fabric.global_rank == 0:
        path = settings.output / "geometry.safetensors"
        weights = {
            name.removeprefix("network."): value.half().contiguous(memory_format=torch.contiguous_format)
            for name, value in state.averaged().items()
            if name.startswith("network.")
        }
        with replacing(path) as beside:
            save_file(weights, beside)
        console.print(f"stopped at step {state.step}: {path}")


main(tyro.cli(Settings, description=__doc__))
