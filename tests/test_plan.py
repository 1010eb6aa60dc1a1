"""Planning a training: operations against hand counts, memory and times against hand-worked cases."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from da3_splat.training.plan import GIB, DryRun, Machine, cost, dry_run

ROOT = Path(__file__).parents[1]


def test_operations_of_a_student_by_hand():
    """mini: 8 blocks of width 192, those of index 3, 5 and 7 across the views; patches are 588 numbers each."""
    scenes, views, height, width = 2, 3, 42, 70
    patches = 3 * 5
    tokens, dim = scenes * views * (patches + 1), 192
    linear = 8 * 24 * tokens * dim**2  # 12 dim^2 weights a block, a product and a sum each
    within = 5 * 4 * tokens * (patches + 1) * dim
    across = 3 * 4 * tokens * views * (patches + 1) * dim
    embedding = 2 * scenes * views * patches * 588 * dim
    run = dry_run("mini", scenes, views, height, width, checkpointing=False)
    assert run.tokens == tokens
    assert run.transformer_operations == pytest.approx(linear + within + across + embedding, rel=1e-6)
    assert run.parameters["transformer"] == 3_940_608 and run.block_parameters == 445_504


def test_activations_of_a_student():
    """Twice the scenes keep twice as much; checkpointing keeps the inputs of the blocks in place of their insides."""
    one, two = (dry_run("mini", scenes, 2, 42, 70, checkpointing=False) for scenes in (1, 2))
    assert two.saved_bytes == pytest.approx(2 * one.saved_bytes, rel=0.1)
    kept = dry_run("mini", 2, 2, 42, 70, checkpointing=True)
    inputs = 8 * two.tokens * 192 * 2
    assert two.saved_bytes - kept.saved_bytes == pytest.approx(8 * two.block_bytes - inputs, rel=0.2)
    assert kept.transformer_operations == two.transformer_operations


@pytest.mark.parametrize("preset", ["da3-giant", "da3teacher-large", "da3metric-large"])
def test_full_size_students_and_teachers_fit_the_meta_device(preset):
    run = dry_run(preset, 1, 18 if preset == "da3-giant" else 1, 504, 336, checkpointing=True)
    wanted = {"da3-giant": 1_136_489_216}.get(preset, 304_000_000)
    assert run.parameters["transformer"] == pytest.approx(wanted, rel=0.01)
    assert ("camera head" in run.parameters) == (preset == "da3-giant")


def test_cost_of_a_student_by_hand():
    gigabytes = GIB // 4
    run = DryRun(
        tokens=10, parameters={"transformer": 3 * gigabytes, "dense heads": gigabytes}, transformer_operations=2e12,
        head_operations=1e12, saved_bytes=5 * GIB, block_bytes=GIB, block_parameters=gigabytes // 2,
    )  # fmt: skip
    machine = Machine(peak_tflops=100, utilisation=0.5, memory_gib=30, spare_gib=1, bandwidth_gb=GIB / 1e9)
    alone = cost(run, 1, "alone", 4, 3600, pictures=0, checkpointing=False, machine=machine)
    assert alone.compute_seconds == pytest.approx(4 * 9e12 / 50e12) and alone.communication_seconds == 0
    assert alone.memory_gib == pytest.approx(20 + 5 + 1) and alone.fits and alone.hours == pytest.approx(0.72)
    ddp = cost(run, 2, "ddp", 2, 3600, 0, True, machine)
    assert ddp.compute_seconds == pytest.approx(2 * 11e12 / 50e12)
    assert ddp.communication_seconds == pytest.approx(2 * 4 * 0.5)
    assert ddp.memory_gib == pytest.approx(20 + 4 + 5 + 1 + 1) and not ddp.fits
    assert ddp.bottleneck == "communication" and ddp.hours == pytest.approx(4)
    fsdp = cost(run, 2, "fsdp", 2, 3600, 0, False, machine)
    assert fsdp.communication_seconds == pytest.approx(2 * 3 * 4 * 0.5)
    assert fsdp.memory_gib == pytest.approx(10 + 2 * 1.5 + 5 + 1)


@pytest.mark.slow
@pytest.mark.long
def test_planning_script(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "plan_training.py"), "--presets", "--json", str(tmp_path / "p")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "calculated, not measured" in result.stdout.splitlines()[-1]
    rows = json.loads((tmp_path / "p").read_text())["rows"]
    assert {row["preset"] for row in rows} == {"da3-giant"} and {row["gpus"] for row in rows} == {1, 8, 128}
    small = subprocess.run([*command[:2], "--presets", "--memory-gib", "10"], capture_output=True, check=False)
    assert small.returncode == 1
