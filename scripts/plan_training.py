"""What a full training would cost: tokens, memory, operations, hours and the bottleneck, by size, GPUs and strategy.

    uv run python scripts/plan_training.py                                            configs/geometry/student.yaml
    uv run python scripts/plan_training.py --presets da3-large --gpus 8 --utilisation 0.4 --memory-gib 141

Parameters, operations and activations come from a forward pass at full size on the meta device (counted, not measured);
memory and times are calculated from them and from what is assumed of the hardware, all of it printed. The global batch
is the same for any number of GPUs: fewer accumulate gradients over more batches. Exit code 1 where the recipe's own
preset and strategy do not fit the memory of the most GPUs asked for.
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tyro

from da3_splat.config import load_config
from da3_splat.data.synthetic_batches import batch_shape
from da3_splat.training.geometry_recipe import GeometryRecipe
from da3_splat.training.plan import GIB, STATE_BYTES, Machine, cost, dry_run


@dataclass
class Settings:
    config: Path = Path(__file__).parents[1] / "configs" / "geometry" / "student.yaml"
    presets: tuple[str, ...] = ("da3-small", "da3-base", "da3-large", "da3-giant")
    """any-view or monocular; the recipe's own is always there"""
    gpus: tuple[int, ...] = (1, 8, 128)
    processes: int = 128
    """that the global batch is meant for: so many batches make a step"""
    machine: tyro.conf.OmitArgPrefixes[Machine] = field(default_factory=Machine)
    json: Path | None = None
    """write the same numbers there"""


def main(settings: Settings) -> None:
    recipe, machine = load_config(GeometryRecipe, settings.config), settings.machine
    worlds, steps = recipe.worlds, recipe.optimization.steps
    shapes = [batch_shape(worlds, position) for position in range(500)]
    pictures = sum(shape.count * shape.views for shape in shapes) / len(shapes)
    tokens = sum(s.count * s.views * (1 + s.height * s.width // 196) for s in shapes) / len(shapes)
    largest = max(shapes, key=lambda s: (s.count * s.views * s.height * s.width, s.views))
    shape = (largest.count, largest.views, largest.height, largest.width)
    print(f"{settings.config.name}: {steps} steps of {settings.processes} batches")
    print(
        f"a batch: {tokens:.0f} tokens, {pictures:.1f} pictures (mean of 500 drawn); "
        f"a step: {tokens * settings.processes:.3g} tokens"
    )
    print(f"dry run on the largest of them: {shape[0]} scenes x {shape[1]} views of {shape[2]}x{shape[3]}")
    print("assumed: " + ", ".join(f"{name} {value}" for name, value in asdict(machine).items()))
    print(
        f"assumed: {STATE_BYTES} bytes a parameter (float32 value, gradient, two moments, average), activations in "
        "bfloat16, attention fused; way back twice the way there; checkpointing one more way there; transfers overlap"
    )
    names = dict.fromkeys([*settings.presets, recipe.preset])
    rows = []
    print(f"{'preset':18}{'M par':>7}{'TFLOP':>8}{'GPUs':>6} {'strategy':9}{'accum':>6}{'ckpt':>6}{'GiB':>8}{'fits':>6}"
          f"{'compute s':>11}{'transfer s':>11}{'load s':>8}{'hours':>9}  bottleneck")  # fmt: skip
    for name in names:
        for checkpointing in (False, True):
            run = dry_run(name, *shape, checkpointing)
            forward = run.transformer_operations + run.head_operations
            for gpus in settings.gpus:
                for strategy in ("ddp", "fsdp") if gpus > 1 else ("alone",):
                    accumulate = max(1, round(settings.processes / gpus))
                    found = cost(run, gpus, strategy, accumulate, steps, pictures, checkpointing, machine)
                    rows.append(
                        {
                            "preset": name,
                            "parameters": sum(run.parameters.values()),
                            "forward_flop": forward,
                            "tokens_a_batch": run.tokens,
                            "activations_gib": run.saved_bytes / GIB,
                            "checkpointing": checkpointing,
                            **asdict(found),
                        }
                    )
                    own = (name, checkpointing) == (recipe.preset, recipe.checkpointing)
                    if own and gpus == max(settings.gpus) and strategy in (recipe.strategy, "alone"):
                        chosen = found
                    print(
                        f"{name:18}{rows[-1]['parameters'] / 1e6:7.0f}{forward / 1e12:8.1f}{gpus:6} {strategy:9}"
                        f"{accumulate:6}{'yes' if checkpointing else 'no':>6}{found.memory_gib:8.1f}"
                        f"{'yes' if found.fits else 'no':>6}{found.compute_seconds:11.2f}"
                        f"{found.communication_seconds:11.2f}{found.loading_seconds:8.2f}{found.hours:9.0f}"
                        f"  {found.bottleneck}"
                    )
    if settings.json:
        content = {"assumed": asdict(machine), "steps": steps, "tokens_a_batch": tokens, "rows": rows}
        settings.json.write_text(json.dumps(content, indent=1))
    print("published for comparison: the largest about ten days on 128 H100 (its batch is not published)")
    print(
        f"{recipe.preset} on {chosen.gpus} GPUs with {chosen.strategy}: {chosen.memory_gib:.0f} GiB each, "
        f"{chosen.hours / 24:.1f} days, limited by {chosen.bottleneck}; calculated, not measured"
    )
    sys.exit(0 if chosen.fits else 1)


main(tyro.cli(Settings, description=__doc__))
