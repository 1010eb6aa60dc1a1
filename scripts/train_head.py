"""Train a model's Gaussian head over many scenes; the same command goes on where the last run stopped.

    uv run python scripts/train_head.py --config configs/head/mini.yaml --output outputs/head --minutes 30
    uv run python scripts/train_head.py --config configs/head/dl3dv.yaml --path DL3DV/ --output outputs/dl3dv
    torchrun --nproc-per-node 8 scripts/train_head.py --config configs/head/dl3dv.yaml --path DL3DV/ --output ...

Panels (input, depth, novel view, truth, error) and losses go to tensorboard: `tensorboard --logdir OUTPUT`. Writes
model.safetensors, which `load_model`, `da3-splat --model` and `ns-train da3-splat --pipeline.network` take.
"""

import os
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads must not take the workers' cores
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during these imports ends it without a traceback

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import tyro
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from da3_splat.commands.endings import one_line
from da3_splat.config import load_config
from da3_splat.io.files import check_writable
from da3_splat.model import save_model
from da3_splat.training.episodes import head_batches, make_sampler
from da3_splat.training.gaussian_head import HeadBatch
from da3_splat.training.head_recipe import HeadRecipe, build_objective, parameter_groups
from da3_splat.training.loop import CHECKPOINT, LoopConfig, Shares, run
from da3_splat.training.optimization import TrainingState, launch
from da3_splat.training.panels import TITLE, panel


@dataclass
class Settings:
    config: Path
    """the recipe"""
    output: Path
    """folder of checkpoint.pt, model.safetensors and tensorboard's files"""
    path: Path | None = None
    """folder of the data, instead of the recipe's"""
    model: str | None = None
    """weights to begin with, instead of the recipe's"""
    loop: tyro.conf.OmitArgPrefixes[LoopConfig] = field(default_factory=LoopConfig)
    steps: int | None = None
    """of the whole run, instead of the recipe's"""
    panel_steps: int = 200
    """steps between the pictures in tensorboard"""
    threads: int | None = None
    """threads of torch; its own choice without"""


def main(settings: Settings) -> None:
    recipe = load_config(HeadRecipe, settings.config)
    recipe = replace(
        recipe,
        model=settings.model or recipe.model,
        data=replace(recipe.data, path=settings.path or recipe.data.path),
        optimization=replace(recipe.optimization, steps=settings.steps or recipe.optimization.steps),
    )
    fabric = launch(recipe.precision)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    console = Console(quiet=fabric.global_rank > 0)
    objective = build_objective(recipe, console.print)
    state = TrainingState(fabric, objective, parameter_groups(objective.model, recipe), recipe.optimization)
    sampler = make_sampler(recipe.data, fabric.global_rank, fabric.world_size)
    if (settings.output / CHECKPOINT).exists():
        sampler.load_state_dict(state.load(settings.output / CHECKPOINT))
        console.print(f"resumed at step {state.step}")
    batches = head_batches(sampler, recipe.data, recipe.merge_after, fabric.device.type == "cuda")
    check_writable(settings.output)  # tensorboard would say so from a thread of its own
    writer = SummaryWriter(str(settings.output)) if fabric.global_rank == 0 else None

    def report(step: int, parts: dict[str, float], shares: Shares) -> None:
        values = "  ".join(f"{name} {value:.4f}" for name, value in parts.items())
        skipped = f"skipped {state.skipped} steps, {getattr(sampler, 'skipped', 0)} scenes"
        console.print(f"step {step}  {values}  {shares}  {skipped}")
        for name, value in parts.items() if writer else ():
            writer.add_scalar(name, value, step)

    def show(step: int, batch: HeadBatch) -> None:
        if writer and step % settings.panel_steps == 0:
            writer.add_image(TITLE, panel(batch.to(fabric.device), objective), step)

    run(state, batches, sampler, settings.output, settings.loop, report, show)
    if fabric.global_rank == 0:
        objective.load_state_dict(state.averaged())
        save_model(objective.model, settings.output / "model.safetensors")
        console.print(f"stopped at step {state.step}: {settings.output / 'model.safetensors'}")


with one_line("train_head"):
    main(tyro.cli(Settings, description=__doc__))
