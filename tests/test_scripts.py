"""The scripts start, train a little, resume, and write what the package loads."""

import json
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
@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        "train_mini.py",
        "train_geometry.py",
        "train_head.py",
        "train_chain.py",
        "label_depth.py",
        "plan_training.py",
        "evaluate_mini.py",
        "benchmark_training.py",
        "benchmark_rasterizer.py",
        "benchmark_network.py",
        "benchmark_fusion.py",
        "benchmark_refinement.py",
        "check_parity.py",
    ],
)
def test_help(name):
    assert "usage" in run(name, "--help")


@pytest.mark.slow
@pytest.mark.long
def test_training_resumes_and_ships(tmp_path):
    """Seconds of the three stages of `mini`, twice: the second run goes on where the first one stopped."""
    for _ in range(2):
        out = run("train_mini.py", "--output", tmp_path, "--minutes", 0.1, 0.1, 0.1)
    assert out.count("resumed at step") == 3
    for stage in ("patches", "geometry", "head"):
        state = torch.load(tmp_path / stage / "checkpoint.pt", weights_only=True)
        assert state["step"] >= 2 and state["skipped"] == 0
    load_checkpoint(create_backbone("mini"), tmp_path / "geometry" / "geometry.safetensors")
    assert load_model(tmp_path / "head" / "model.safetensors").config.sh_degree == 1
    assert list((tmp_path / "head").glob("events.out.tfevents*"))
    score = ["--model", tmp_path / "head" / "model.safetensors", "--count", 1, "--json", tmp_path / "scores.json"]
    command = [sys.executable, str(SCRIPTS / "evaluate_mini.py"), *map(str, score)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode in (0, 1), result.stderr[-2000:]  # so little training may well miss its demands
    means = json.loads((tmp_path / "scores.json").read_text())["means"]
    assert len(means) == 5 and all("model" in row for row in means.values())
