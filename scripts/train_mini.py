"""Train the embedded model `mini` from nothing: patches, then all of the geometry, then the Gaussian head.

    uv run python scripts/train_mini.py --output outputs/mini                     as the recipes say: hours
    uv run python scripts/train_mini.py --output outputs/mini --minutes 60 30 20  at most so long a stage

Each stage goes on from its checkpoint, so the same command continues a run. What it makes is
OUTPUT/head/model.safetensors; `scripts/evaluate_mini.py --model` scores it.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[1]


@dataclass
class Settings:
    output: Path = Path("outputs/mini")
    """folder of the three stages"""
    minutes: tuple[float, float, float] | None = None
    """at most so long for patches, geometry and head"""


def stage(script: str, config: str, output: Path, minutes: float | None, *options: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / script), "--config", str(ROOT / "configs" / config)]
    command += ["--output", str(output), *options]
    if minutes is not None:
        command += ["--minutes", str(minutes)]
    print(f"--- {config}", flush=True)
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"{script} failed; the same command goes on where it stopped")


settings = tyro.cli(Settings, description=__doc__)
patches, geometry, head = (settings.output / name for name in ("patches", "geometry", "head"))
minutes = settings.minutes or (None, None, None)
stage("train_geometry.py", "geometry/mini-patches.yaml", patches, minutes[0])
start = str(patches / "geometry.safetensors")
stage("train_geometry.py", "geometry/mini.yaml", geometry, minutes[1], "--start", start)
stage("train_head.py", "head/mini.yaml", head, minutes[2], "--model", str(geometry / "geometry.safetensors"))
print(f"{head / 'model.safetensors'}")
