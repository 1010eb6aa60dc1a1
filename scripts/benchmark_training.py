"""Throughput of training a Gaussian head, and where the time goes, beside the same step without its overlap.

    uv run python scripts/benchmark_training.py                      the embedded model on synthetic worlds
    uv run python scripts/benchmark_training.py --config configs/head/dl3dv.yaml --path DL3DV/

The shares are measured with the data made in the same process, and the graph's way back counted as one; the baseline
is that serial run, against which worker processes are measured.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
import tyro

from da3_splat.config import load_config
from da3_splat.training.episodes import head_batches, make_sampler
from da3_splat.training.head_recipe import HeadRecipe, build_objective, parameter_groups
from da3_splat.training.optimization import TrainingState, launch

ROOT = Path(__file__).parents[1]


@dataclass
class Settings:
    config: Path = ROOT / "configs" / "head" / "captures.yaml"
    """the recipe"""
    path: Path | None = None
    """folder of its data; synthetic worlds without"""
    steps: int = 12
    """measured steps, after two to warm up"""
    json: Path | None = None
    """write the same numbers there"""


def measure(recipe: HeadRecipe, workers: int, steps: int) -> tuple[float, dict[str, float]]:
    """Seconds a step, and those of data, backbone, head, render and of what is left (loss, way back, update)."""
    spent: dict[str, float] = defaultdict(float)

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def timed(part: str):
        began = now()
        yield
        spent[part] += now() - began

    data = replace(recipe.data, workers=workers)
    objective = build_objective(recipe, print, timed=timed)
    state = TrainingState(
        launch(recipe.precision), objective, parameter_groups(objective.model, recipe), recipe.optimization
    )
    stream = head_batches(make_sampler(data), data, merge_after=1 << 60)
    for _, batch in islice(stream, 2):
        state.advance([batch])
    spent.clear()
    began = now()
    for _ in range(steps):
        clock = now()
        _, batch = next(stream)
        spent["data"] += now() - clock
        state.advance([batch])
    total = now() - began
    spent["loss, way back, update"] = total - sum(spent.values())
    return total / steps, {name: seconds / steps for name, seconds in spent.items()}


settings = tyro.cli(Settings, description=__doc__)
recipe = load_config(HeadRecipe, settings.config)
source = "synthetic" if settings.path is None else recipe.data.source
recipe = replace(recipe, data=replace(recipe.data, source=source, path=settings.path))
serial, shares = measure(recipe, 0, settings.steps)
overlapped, _ = measure(recipe, max(1, recipe.data.workers), settings.steps)
sizes = ", ".join(f"{height}x{width}" for height, width in recipe.data.sizes)
print(
    f"{settings.config.name}: {recipe.model}, {recipe.data.contexts} contexts, {recipe.data.targets} targets, {sizes}"
)
for name, seconds in shares.items():
    print(f"{name:24}{seconds:8.3f} s a step{seconds / serial:7.0%}")
if settings.json:
    numbers = {"serial_seconds_a_step": serial, "seconds_a_step": overlapped, "parts_seconds": shares}
    settings.json.write_text(json.dumps(numbers, indent=1))
print(
    f"{1 / overlapped:.2f} episodes a second, {serial / overlapped:.2f}x the speed of making data in the same process"
)
