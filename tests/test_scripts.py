"""The scripts start, train a little, resume, and write what the package loads."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from da3_splat import load_model
from da3_splat.backbone import create_backbone, load_checkpoint

SCRIPTS = Path(__file__).parents[1] / "scripts"


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_parity_script(tmp_path):
    out = run(
        "check_parity.py",
        SCRIPTS.parent / "tests" / "data" / "goldens",
        "--only",
        "small_S1",
        "--json-file",
        tmp_path / "a",
    )
    assert "1 cases, worst relative L2" in out and (tmp_path / "a").is_file()
    nothing = [sys.executable, str(SCRIPTS / "check_parity.py"), str(tmp_path / "none")]
    assert subprocess.run(nothing, capture_output=True, check=False).returncode in (1, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "train_mini.py",
        "train_mini_head.py",
        "benchmark_rasterizer.py",
        "benchmark_network.py",
        "benchmark_fusion.py",
        "check_parity.py",
    ],
)
def test_help(name):
    assert "usage" in run(name, "--help")


@pytest.mark.slow
def test_training_resumes_and_ships(tmp_path):
    """Seconds of both trainings of `mini`, twice: the second run goes on where the first one stopped."""
    for expected in ("stopped at step", "resumed at step"):
        assert expected in run("train_mini.py", "--output", tmp_path, "--minutes", 0.15, "--images", 4)
    first = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert first["step"] > 2 and first["skipped"] == 0
    load_checkpoint(create_backbone("mini"), tmp_path / "mini_geometry.safetensors")
    arguments = ("--backbone", tmp_path / "mini_geometry.safetensors", "--output", tmp_path, "--minutes", 0.1)
    assert "held-out worlds" in run("train_mini_head.py", *arguments)
    assert "resumed at step" in run("train_mini_head.py", *arguments)
    assert load_model(tmp_path / "mini.safetensors").config.sh_degree == 1
