"""Train geometry: student, teacher, monocular student or metric model; the same command goes on where it stopped.

    uv run python scripts/train_geometry.py --config configs/geometry/mini-patches.yaml --output outputs/mini/patches
    uv run python scripts/train_geometry.py --config configs/geometry/mini.yaml --output outputs/mini/geometry \\
        --start outputs/mini/patches/geometry.safetensors --minutes 30
    torchrun --nproc-per-node 8 scripts/train_geometry.py --config configs/geometry/student.yaml --output ...

Every batch is a function of the step's number. A run may go on with another number of processes: the weights, averages
and the schedule do, and the batches are from there on those of the new number. Pictures are in tensorboard. The last
line names the weights, which are the averaged ones.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads must not take the workers' cores

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import tyro
from rich.console import Console
from safetensors.torch import save_file

from da3_splat.config import load_config
from da3_splat.data.synthetic_batches import GeometryBatch, StepSampler
from da3_splat.io.files import replacing
from da3_splat.training.geometry_recipe import (
    GeometryRecipe,
    build_batches,
    build_network,
    build_objective,
    parameter_groups,
)
from da3_splat.training.loop import CHECKPOINT, LoopConfig, Shares, make_loader, run
from da3_splat.training.optimization import TrainingState, launch


@dataclass
class Settings:
    config: Path
    """the recipe"""
    output: Path
    """folder of checkpoint.pt and geometry.safetensors"""
    start: str | None = None
    """weights to begin with, instead of the recipe's; timm: DINOv2"""
    loop: tyro.conf.OmitArgPrefixes[LoopConfig] = field(default_factory=LoopConfig)
    steps: int | None = None
    """of the whole run, instead of the recipe's"""
    workers: int = 1
    """processes that make worlds"""
    threads: int = 1


def main(settings: Settings) -> None:
    recipe = load_config(GeometryRecipe, settings.config)
    optimization = replace(recipe.optimization, steps=settings.steps or recipe.optimization.steps)
    fabric = launch(recipe.precision, recipe.strategy)
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    console = Console(quiet=fabric.global_rank > 0)
    network = build_network(recipe, settings.start)
    if recipe.strategy == "ddp":  # sharded weights keep their usual order
        network.head.to(memory_format=torch.channels_last)
    objective = build_objective(recipe, network)
    state = TrainingState(fabric, objective, parameter_groups(recipe, objective), optimization)
    sampler = StepSampler(recipe.worlds, fabric.global_rank, fabric.world_size)
    if (settings.output / CHECKPOINT).exists():
        sampler.load_state_dict(state.load(settings.output / CHECKPOINT))
        console.print(f"resumed at step {state.step}")
    loader = make_loader(build_batches(recipe, sampler, optimization.steps), settings.workers)
    unread = 0

    def count_unread(step: int, batch: GeometryBatch) -> None:
        nonlocal unread
        unread += len(batch.skipped)

    def report(step: int, parts: dict[str, float], shares: Shares) -> None:
        values = "  ".join(f"{name} {value:.3f}" for name, value in parts.items())
        console.print(f"step {step}  {values}  {shares}  skipped {state.skipped}  unread {unread}")

    run(state, loader, sampler, settings.output, settings.loop, report, count_unread)
    averaged = state.averaged()
    if fabric.global_rank == 0:
        path = settings.output / "geometry.safetensors"
        weights = {
            name.removeprefix("network."): value.half().contiguous(memory_format=torch.contiguous_format)
            for name, value in averaged.items()
            if name.startswith("network.")
        }
        with replacing(path) as beside:
            save_file(weights, beside)
        console.print(f"stopped at step {state.step}: {path}")


main(tyro.cli(Settings, description=__doc__))
