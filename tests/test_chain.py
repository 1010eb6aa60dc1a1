"""The chain at a small size: fixed worlds, their labels, students of other kinds, and the script from end to end."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from da3_splat.backbone.dpt import DualDPT, SeparateDPT
from da3_splat.backbone.presets import Preset, build_backbone
from da3_splat.data.synthetic_batches import StepSampler, WorldsConfig, make_batch
from da3_splat.training import fixed_worlds
from da3_splat.training.fixed_worlds import (
    FixedBatches,
    error_in_units,
    make_fixed_worlds,
    student_scores,
    with_labels,
)
from da3_splat.training.geometry import STUDENT_TERMS, StudentObjective
from da3_splat.types import Geometry

ROOT = Path(__file__).parents[1]
SMALL = Preset(48, 4, 3, (0, 1, 2, 3), 2, 16, (16, 16, 16, 16), camera_heads=3, camera_blocks=1)
CONFIG = WorldsConfig(sizes=((28, 42),), views=(2, 3), pixels=12 * 28 * 42)


@pytest.fixture(scope="module")
def worlds():
    return make_fixed_worlds(10, 4, 28, 42, seed=410_000_000)


def exact_teacher(worlds, monkeypatch, blind: int | None = None):
    """Stands in for a teacher: the depth of the next pictures, bent by a line; picture `blind` is all one depth."""
    waiting = list((0.3 * worlds.truth.depth + 0.2).flatten(0, 1))
    if blind is not None:
        waiting[blind] = torch.ones_like(waiting[blind])

    def answer(network, images):
        count = images.shape[0] * images.shape[1]
        depth = torch.stack([waiting.pop(0) for _ in range(count)])
        return {"depth": depth, "sky": (depth <= 0.2).float()}

    monkeypatch.setattr(fixed_worlds, "predict_maps", answer)
    return build_backbone(replace(SMALL, alternate_from=None))


def test_labels_of_the_teacher_are_better_than_what_was_measured(worlds, monkeypatch):
    """Complete where measurements are sparse, and closer to the truth; a picture that cannot be aligned keeps its
    measured depth."""
    labelled, accepted = with_labels(worlds, exact_teacher(worlds, monkeypatch, blind=5))
    assert 30 <= accepted.sum() <= 39 and not accepted[1, 1]
    truth, known = worlds.truth.depth, worlds.truth.depth > 0
    assert torch.equal(labelled.labels[1, 1], worlds.measured[1, 1])
    covered = (labelled.labels > 0).float()[known].mean()
    assert covered > 0.75 > 0.3 > (worlds.measured > 0).float()[known].mean()

    def error(depth):
        both = (depth > 0) & known
        return ((depth / truth.clamp_min(1e-6) - 1).abs() * both).sum() / both.sum()

    assert error(labelled.labels) < 0.7 * error(worlds.measured)


def test_batches_for_students_switch_to_labels(worlds):
    """A function of the position; the same pictures and cameras for everyone, depth as asked."""
    marked = replace(worlds, labels=torch.full_like(worlds.measured, 7.0))
    batches = FixedBatches(StepSampler(CONFIG), marked, labels_from=3)
    other = FixedBatches(StepSampler(CONFIG), marked, labels_from=float("inf"))
    early, late = batches.batch(2), batches.batch(3)
    assert early.truth.depth.max() != 7 and (late.truth.depth == 7).all()
    assert torch.equal(other.batch(3).images, late.images)
    assert torch.equal(other.batch(3).truth.cameras.world_to_camera, late.truth.cameras.world_to_camera)
    # Depth, pictures and cameras are of the same views.
    batch = other.batch(0)
    for item in range(len(batch.images)):
        for view in range(batch.images.shape[1]):
            pose = batch.truth.cameras.world_to_camera[item, view]
            same = (worlds.truth.cameras.world_to_camera == pose).all(dim=-1).all(dim=-1)
            world, place = same.nonzero()[0].tolist()
            assert torch.equal(batch.truth.depth[item, view], worlds.measured[world, place])


@pytest.mark.parametrize("options", [{}, {"separate_rays": True}, {"alternate_from": 0}])
def test_students_of_other_kinds(options, worlds):
    """Every kind trains in all its parts, and scores are finite numbers."""
    torch.manual_seed(0)
    network = build_backbone(replace(SMALL, **options)).train()
    assert type(network.head) is (SeparateDPT if options.get("separate_rays") else DualDPT)
    across = [network.backbone.looks_across(index) for index in range(4)]
    assert across == ([False, True] * 2 if options.get("alternate_from") == 0 else [False, False, False, True])
    batch = replace(make_batch(CONFIG, 0), give_cameras=True)
    StudentObjective(network)(batch)[0].backward()
    untouched = {name for name, p in network.named_parameters() if p.grad is None}
    assert untouched <= {"backbone.camera_token"}  # the cameras are given
    scores = student_scores(network, worlds)
    depth = {"abs_rel", "abs_rel_given_poses", "abs_rel_units", "abs_rel_units_given_poses"}
    assert set(scores) == {"auc30_head", "auc30_rays", "edge_error"} | depth
    assert all(0 <= value < 1000 for value in scores.values())


def test_depth_in_the_units_of_the_cameras(worlds):
    """Exact geometry in other units is without error; depth too large for its cameras by a tenth has one of a tenth."""
    truth = worlds.truth
    cameras = replace(truth.cameras, world_to_camera=truth.cameras.world_to_camera.clone())
    cameras.world_to_camera[..., :3, 3] *= 3
    said = Geometry(depth=3 * truth.depth, cameras=cameras)
    assert error_in_units(said, truth.cameras, truth.depth).abs().max() < 1e-4
    larger = replace(said, depth=1.1 * said.depth)
    torch.testing.assert_close(
        error_in_units(larger, truth.cameras, truth.depth), torch.full((len(truth.depth),), 0.1), atol=1e-4, rtol=0
    )
    still = replace(said, cameras=replace(cameras, world_to_camera=torch.eye(4).expand_as(cameras.world_to_camera)))
    assert torch.equal(error_in_units(still, truth.cameras, truth.depth), torch.ones(len(truth.depth)))


def test_terms_of_the_student():
    network = build_backbone(SMALL)
    batch = make_batch(CONFIG, 1)
    assert set(StudentObjective(network)(batch)[1]) >= set(STUDENT_TERMS)
    loss, parts = StudentObjective(network, ("depth", "camera"))(batch)
    assert set(parts) - {"auc30"} == {"depth", "camera"}
    assert loss.item() == pytest.approx(parts["depth"] + parts["camera"], rel=1e-5)
    with pytest.raises(ValueError, match="terms"):
        StudentObjective(network, ("colour",))


@pytest.mark.slow
@pytest.mark.long
def test_chain_of_teacher_and_students_runs_and_goes_on(tmp_path):
    """Three steps of everything; the second call does nothing anew; other settings are refused."""
    command = [sys.executable, str(ROOT / "scripts" / "train_chain.py"), "--output", str(tmp_path / "chain")]
    sizes = "--teacher-steps 2 --start-steps 2 --steps 3 --worlds 10 --held-out 4 --pictures 6 --size 28 42"
    command += [*sizes.split(), "--threads", "1", "--workers", "0"]
    first = subprocess.run([*command, "--seeds", "1"], capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr[-2000:]
    assert "giving poses changes AbsRel" in first.stdout.splitlines()[-1]
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "chain").rglob("weights.safetensors")}
    assert len(done) == 1 + 2 + 5 and (tmp_path / "chain" / "depth.png").is_file()
    more = [*command, "--seeds", "2", "--only", "DA3", "no labels", "--json", str(tmp_path / "figures.json")]
    second = subprocess.run(more, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr[-2000:]
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {name: len(found) for name, found in figures["scores"].items()} == {"DA3": 2, "no labels": 2}
    assert figures["scores"]["DA3"][0] == json.loads((tmp_path / "chain" / "DA3-0" / "scores.json").read_text())
    refused = subprocess.run([*command, "--dim", "48"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "other settings" in refused.stderr
