"""Train geometry: student, teacher, monocular student or metric model; the same command goes on where it stopped.

    uv run python scripts/train_geometry.py --config configs/geometry/mini-patches.yaml --output outputs/mini/patches
    uv run python scripts/train_geometry.py --config configs/geometry/mini.yaml --output outputs/mini/geometry \\
        --start outputs/mini/patches/geometry.safetensors --minutes 30
    torchrun --nproc-per-node 8 scripts/train_geometry.py --config configs/geometry/student-8gpu.yaml --output ...

Every batch is a function of the step's number. A run may go on with another number of processes: the weights, averages
and the schedule do, and the batches are from there on those of the new number. Pictures are in tensorboard. The last
line names the weights, which are the averaged ones.
"""

import os
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads must not take the workers' cores
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during these imports ends it without a traceback

import json
import resource
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import tyro
from rich.console import Console
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter

from da3_splat.backbone.vision_transformer import PATCH
from da3_splat.commands.endings import one_line
from da3_splat.config import load_config
from da3_splat.data.synthetic_batches import GeometryBatch, StepSampler
from da3_splat.io.files import check_writable, replacing
from da3_splat.training.geometry_recipe import (
    GeometryRecipe,
    build_batches,
    build_network,
    build_objective,
    parameter_groups,
)
from da3_splat.training.loop import CHECKPOINT, LoopConfig, Shares, make_loader, run
from da3_splat.training.optimization import TrainingState, launch
from da3_splat.training.panels import GEOMETRY_TITLE, geometry_panel


@dataclass
class Settings:
    config: Path
    """the recipe"""
    output: Path
    """folder of checkpoint.pt, geometry.safetensors and tensorboard's files"""
    start: str | None = None
    """weights to begin with, instead of the recipe's; timm: DINOv2"""
    loop: tyro.conf.OmitArgPrefixes[LoopConfig] = field(default_factory=LoopConfig)
    steps: int | None = None
    """of the whole run, instead of the recipe's"""
    workers: int = 1
    """processes that make worlds"""
    threads: int = 1
    panel_steps: int = 500
    """steps between the pictures in tensorboard; none where the network is sharded"""
    json: Path | None = None
    """write the last figures there"""


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
    loader = make_loader(
        build_batches(recipe, sampler, optimization.steps), settings.workers, fabric.device.type == "cuda"
    )
    check_writable(settings.output)  # tensorboard would say so from a thread of its own
    writer = SummaryWriter(str(settings.output)) if fabric.global_rank == 0 else None
    shown = writer if recipe.strategy == "ddp" else None
    unread = tokens = 0
    figures: dict[str, float] = {}

    def after_step(step: int, batch: GeometryBatch) -> None:
        nonlocal unread, tokens
        unread += len(batch.skipped)
        height, width = batch.images.shape[-2:]
        tokens += batch.images.shape[0] * batch.images.shape[1] * (1 + height * width // PATCH**2)
        if shown and step % settings.panel_steps == 0:
            shown.add_image(GEOMETRY_TITLE, geometry_panel(batch.to(fabric.device), network), step)

    def report(step: int, parts: dict[str, float], shares: Shares) -> None:
        figures.update(parts)
        # Of the last batch of each step, on this rank.
        figures["tokens_per_second"] = tokens / max(1e-9, shares.data + shares.steps)
        figures["peak_memory_gib"] = peak_memory(fabric.device) / 2**30
        figures.update(step=step, skipped_steps=state.skipped, unread_scenes=unread)
        values = "  ".join(f"{name} {value:.3f}" for name, value in parts.items())
        rates = f"{figures['tokens_per_second']:.0f} tokens/s  {figures['peak_memory_gib']:.1f} GiB"
        console.print(f"step {step}  {values}  {shares}  {rates}  skipped {state.skipped}  unread {unread}")
        for name, value in figures.items() if writer else ():
            writer.add_scalar(name, value, step)

    run(state, loader, sampler, settings.output, settings.loop, report, after_step)
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
        if settings.json:
            settings.json.write_text(json.dumps(figures, indent=1))
        console.print(f"stopped at step {state.step}: {path}")


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has held on its device so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


with one_line("train_geometry"):
    main(tyro.cli(Settings, description=__doc__))
