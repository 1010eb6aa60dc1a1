"""Recipes of the geometry networks: what the files say, what is built of them, mixtures of data sets, whole runs."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from da3_splat.backbone import create_backbone, load_checkpoint
from da3_splat.backbone.network import metres
from da3_splat.backbone.presets import Preset, build_backbone
from da3_splat.config import load_config
from da3_splat.data.depth_captures import (
    DepthCapture,
    find_depth_scenes,
    label_path,
    nearest,
    read_depth_views,
    write_depth_capture,
)
from da3_splat.data.geometry_mixture import LabelUse, MixedBatches, SourceConfig
from da3_splat.data.synthetic import make_scenes
from da3_splat.data.synthetic_batches import StepSampler, WorldsConfig, batch_shape, make_batch
from da3_splat.io.frames import Frame
from da3_splat.training.geometry_recipe import GeometryRecipe, build_network, build_objective, parameter_groups
from da3_splat.training.single_view import (
    MetricObjective,
    MonoObjective,
    TeacherObjective,
    anchor,
    canonical_depth,
    predict_maps,
)

ROOT = Path(__file__).parents[1]
TINY = WorldsConfig(sizes=((28, 42),), views=(1,), pixels=3 * 28 * 42, objects=True)
SMALL = Preset(48, 4, 3, (0, 1, 2, 3), None, 16, (16, 16, 16, 16), objects=True)


@pytest.fixture(scope="module")
def recipes():
    return {path.stem: load_config(GeometryRecipe, path) for path in (ROOT / "configs" / "geometry").glob("*.yaml")}


def test_recipes_of_teacher_and_student_say_what_the_paper_says(recipes):
    assert {"mini", "mini-patches", "teacher", "student", "mono", "metric"} <= set(recipes)
    student, metric = recipes["student"], recipes["metric"]
    rates = student.optimization
    assert (rates.steps, rates.warmup_steps, rates.rate) == (200_000, 8_000, 2e-4)
    assert student.labels.start * rates.steps == 120_000
    assert student.worlds.given_share == 0.2 and student.worlds.views == tuple(range(2, 19))
    assert len(student.worlds.sizes) == 8 and (896, 504) in student.worlds.sizes
    rates = metric.optimization
    assert (rates.steps, rates.backbone_rate, rates.rate) == (160_000, 5e-6, 5e-5)
    assert metric.labels == LabelUse(0.0, 0.2)
    assert all(side % 14 == 0 for recipe in recipes.values() for size in recipe.worlds.sizes for side in size)


def test_one_eight_and_128_gpus_take_the_same_steps(recipes):
    """Batches of a step are as many, and the rest of the recipe is the same."""
    whole = recipes["student"]
    for processes in (1, 8):
        fewer = recipes[f"student-{processes}gpu"]
        assert processes * fewer.optimization.accumulate == 128 == 128 * whole.optimization.accumulate
        same = replace(fewer.optimization, accumulate=1)
        assert replace(fewer, preset=whole.preset, strategy=whole.strategy, optimization=same) == whole


def test_student_batches_keep_to_the_token_budget(recipes):
    """Tokens of a step lie near the budget in every size, and never more than two views of a scene above it."""
    worlds = recipes["student"].worlds
    shapes = [batch_shape(worlds, position) for position in range(800)]
    assert len({(shape.height, shape.width) for shape in shapes}) == 8
    budget = worlds.pixels / 14**2
    tokens = [shape.count * shape.views * shape.height * shape.width / 14**2 for shape in shapes]
    assert np.mean(tokens) == pytest.approx(budget, rel=0.1) and max(tokens) < 1.5 * budget
    assert np.mean([shape.give_cameras for shape in shapes]) == pytest.approx(0.2, abs=0.06)
    assert {shape.views for shape in shapes if shape.height == shape.width} == set(range(2, 19))


@pytest.mark.parametrize("kind", ["teacher", "mono", "metric"])
def test_single_view_objectives_learn(kind):
    """Every term is there and finite, gradients reach transformer and head, and steps on one batch lower the loss."""
    torch.manual_seed(0)
    network = build_backbone(SMALL).train()
    teacher = build_backbone(SMALL)
    objective = {
        "teacher": lambda: TeacherObjective(network),
        "mono": lambda: MonoObjective(network, teacher),
        "metric": lambda: MetricObjective(network),
    }[kind]()
    batch = make_batch(TINY, 0)
    loss, parts = objective(batch)
    names = {"depth", "gradient", "sky"} if kind == "metric" else {"gradient", "global_local", "normal", "sky"}
    more = {"teacher": {"object", "anchor"}, "mono": {"anchor"}, "metric": set()}
    assert set(parts) == names | more[kind]
    assert loss.item() == pytest.approx(sum(parts.values()), rel=1e-5)
    loss.backward()
    assert network.backbone.blocks[0].mlp.fc1.weight.grad.abs().sum() > 0
    assert all(name.startswith("network.") for name, _ in objective.named_parameters())
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(25):
        optimizer.zero_grad()
        now, _ = objective(batch)
        now.backward()
        optimizer.step()
    assert now < 0.97 * loss


def test_metric_depth_is_canonical_and_back():
    """Focal length 150 of 300: half as far away looks the same; `metres` undoes it."""
    batch = make_batch(TINY, 1)
    cameras = batch.truth.cameras
    focal = cameras.intrinsics[..., 0, 0]
    canonical = canonical_depth(batch.truth.depth, cameras)
    torch.testing.assert_close(canonical, batch.truth.depth * (300 / focal)[..., None, None])
    torch.testing.assert_close(metres(canonical, cameras), batch.truth.depth)


def test_teacher_presets_and_objectives_must_fit():
    with pytest.raises(ValueError, match="monocular"):
        build_objective(GeometryRecipe(objective="teacher"), create_backbone("mini"))
    with pytest.raises(ValueError, match="any-view"):
        build_objective(GeometryRecipe(objective="student", preset="small"), build_backbone(SMALL))
    with pytest.raises(ValueError, match="teacher: expected the weights"):
        build_objective(GeometryRecipe(objective="mono", preset="small"), build_backbone(SMALL))
    with pytest.raises(ValueError, match="monocular"):
        predict_maps(create_backbone("mini"), torch.rand(1, 1, 3, 28, 42))
    with pytest.raises(ValueError, match="no DINOv2"):
        build_network(GeometryRecipe(start="timm"))


def test_student_starts_from_timm(tmp_path):
    """A file with timm's keys fills the transformer and leaves heads and camera token fresh."""
    import timm

    theirs = timm.create_model("vit_small_patch14_dinov2", num_classes=0).state_dict()
    save_file({name: value.contiguous() for name, value in theirs.items()}, tmp_path / "dinov2.safetensors")
    network = build_network(GeometryRecipe(preset="da3-small", start=str(tmp_path / "dinov2.safetensors")))
    torch.testing.assert_close(network.backbone.blocks[5].attn.qkv.weight, theirs["blocks.5.attn.qkv.weight"])


def test_rates_of_student_layers():
    """The transformer learns at its own rate where the recipe gives one, everything at one rate where not."""
    objective = MetricObjective(build_backbone(SMALL))
    recipe = GeometryRecipe(objective="metric")
    assert list(parameter_groups(recipe, objective)) == [1e-3]
    recipe = replace(recipe, optimization=replace(recipe.optimization, rate=5e-5, backbone_rate=5e-6))
    groups = parameter_groups(recipe, objective)
    assert set(groups) == {5e-5, 5e-6}
    assert sum(len(group) for group in groups.values()) == len(list(objective.parameters()))
    assert len(groups[5e-6]) == len(list(objective.network.backbone.parameters()))


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Three captures with exact depth, six views of 56x84 each; the last one's depth files are broken."""
    root = tmp_path_factory.mktemp("collection")
    for number, name in enumerate(("a/one", "a/two", "b/broken")):
        views, truth = make_scenes(1, 6, 56, 84, seed=40 + number, supersample=1)
        write_depth_capture(root / name, views, truth.depth)
    for path in (root / "b/broken/depth").iterdir():
        path.write_bytes(b"nothing")
    return root


def test_nearest_depth_of_labels_by_hand():
    """A map of half the picture's size, seen by a camera that shows its right half twice as large."""
    depth = torch.arange(6.0).reshape(2, 3) + 1
    intrinsics = torch.tensor([[4.0, 0, 3], [0, 4, 2], [0, 0, 1]])
    frame = Frame(path=Path("a"), height=4, width=6, intrinsics=intrinsics, world_to_camera=torch.eye(4))
    same = nearest(depth, frame, intrinsics, 4, 6)
    assert same.tolist() == depth.repeat_interleave(2, 0).repeat_interleave(2, 1).tolist()
    zoomed = torch.tensor([[8.0, 0, 0], [0, 8, 4], [0, 0, 1]])  # the centre of the picture is its left border
    found = nearest(depth, frame, zoomed, 8, 8)
    assert found[0].tolist() == [2, 2, 3, 3, 3, 3, 0, 0] and found[7, 0] == 5


def test_depth_views_agree_with_the_cameras(collection):
    """Scaled, cropped pictures and their depth: points of two views lie on one surface."""
    scene = DepthCapture(collection / "a/one/transforms.json", "a/one")
    measured = scene.measured()
    views, depth = read_depth_views(measured[:2], 42, 42)
    _, truth = make_scenes(1, 6, 56, 84, seed=40, supersample=1)
    for index in range(2):
        want = nearest(truth.depth[0, index], measured[index].frame, views.cameras.intrinsics[0, index], 42, 42)
        torch.testing.assert_close(depth[0, index], want)
    clipped = read_depth_views(measured[:2], 42, 42, far=3.0)[1]
    assert clipped.max() <= 3 and ((clipped == 0) | (clipped == depth)).all() and (depth > 3).any()


def mixture(collection, tmp_path, **options) -> MixedBatches:
    config = WorldsConfig(sizes=((28, 42),), views=(2,), pixels=4 * 28 * 42)
    source = SourceConfig("captures", collection, labels=tmp_path, leave_out=("broken",), **options)
    return MixedBatches(StepSampler(config), [source], LabelUse(0.5), positions=4)


def test_labels_take_the_place_of_measured_depth(collection, tmp_path):
    """From the start of their share on, where there is a file; a pure function of the position."""
    for scene in find_depth_scenes("captures", collection, ["broken"]):
        for item in scene.measured():
            path = label_path(tmp_path, scene.name, item.frame)
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.full((14, 21), 777.0, dtype=np.float32))
    batches = mixture(collection, tmp_path)
    early, late = batches.batch(1), batches.batch(2)
    assert early.truth.depth.max() < 500 and (late.truth.depth == 777).all()
    assert early.images.shape == (2, 2, 3, 28, 42) and early.skipped == ()
    assert torch.equal(mixture(collection, tmp_path).batch(1).images, early.images)
    positions = [position for position, _ in islice(batches, 2)]
    assert positions == [0, 1]
    raw = mixture(collection, tmp_path)
    raw.use = LabelUse(0.0, raw_share=1.0)
    assert raw.batch(2).truth.depth.max() < 500


def test_mixture_of_student_data(collection, tmp_path):
    """Weights decide the source; what cannot be read is skipped and named; bad recipes say what is wrong."""
    config = WorldsConfig(sizes=((28, 42),), views=(2,), pixels=2 * 28 * 42)
    sources = [SourceConfig("captures", collection, weight=3), SourceConfig(weight=1)]
    batches = MixedBatches(StepSampler(config), sources, LabelUse(), positions=10)
    drawn = [batches.batch(position) for position in range(40)]
    real = [batch.truth.sky is None for batch in drawn]
    assert 20 <= sum(real) <= 38
    skipped = [line for batch in drawn for line in batch.skipped]
    assert skipped and all("b/broken" in line for line in skipped)
    with pytest.raises(ValueError, match="weight above 0"):
        MixedBatches(StepSampler(config), [SourceConfig(weight=0)], LabelUse(), 10)
    with pytest.raises(ValueError, match="no scenes of captures"):
        MixedBatches(StepSampler(config), [SourceConfig("captures", tmp_path)], LabelUse(), 10)
    with pytest.raises(ValueError, match="no such folder"):
        find_depth_scenes("captures", tmp_path / "none")
    only = [SourceConfig("captures", collection / "b")]
    with pytest.raises(ValueError, match="cannot be used"):
        MixedBatches(StepSampler(config), only, LabelUse(), 10).batch(0)


def test_sampler_goes_on_with_other_ranks():
    """Ten batches of two ranks are twenty of one; of four, five."""
    state = StepSampler(TINY, 0, 2, position=10).state_dict()
    for ranks, position in ((1, 20), (2, 10), (4, 5), (3, 7)):
        sampler = StepSampler(TINY, 0, ranks)
        sampler.load_state_dict(state)
        assert sampler.position == position


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.long)])
def test_a_student_of_two_processes_goes_on_with_one(tmp_path, strategy):
    """Two gloo ranks train four steps; one process goes on to seven, and a plain network loads what comes out."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "worlds: {sizes: [[28, 42]], views: [2, 3], pixels: 4704, given_share: 0.5}\n"
        f"optimization: {{steps: 7, warmup_steps: 3}}\nprecision: 32-true\nstrategy: {strategy}\n"
    )
    script = [str(ROOT / "scripts" / "train_geometry.py"), "--config", str(recipe), "--output", str(tmp_path)]
    two = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *script,
        "--steps",
        "4",
    ]
    result = subprocess.run([*two, "--workers", "0"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    load_checkpoint(create_backbone("mini"), tmp_path / "geometry.safetensors")
    one = [sys.executable, *script, "--workers", "0", "--log-steps", "1"]
    result = subprocess.run(one, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "resumed at step 4" in result.stdout and "stopped at step 7" in result.stdout
    assert "skipped 0" in result.stdout
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["sampler"]["position"] == 8 + 3 and len(state["randomness"]) == 1
    load_checkpoint(create_backbone("mini"), tmp_path / "geometry.safetensors")
    assert json.dumps(state["sampler"])


def test_the_anchor_holds_the_scale_that_the_teacher_loss_leaves_open():
    """By hand; and where depth has walked off to e^9, the slope along its scale is the anchor's."""
    depth = torch.tensor([[[1.0, math.e**2]], [[math.e**3, math.e**3]]])
    assert float(anchor(depth)) == pytest.approx(0.01 * (1 + 9) / 2)
    torch.manual_seed(0)
    network, batch = build_backbone(SMALL).train(), make_batch(TINY, 0)
    with torch.no_grad():
        network.head.scratch.output_conv2[2].bias[0] += 9
    TeacherObjective(network)(batch)[0].backward()
    pull = float(network.head.scratch.output_conv2[2].bias.grad[0])
    mean = float(predict_maps(network, batch.images)["depth"].log().mean())
    assert mean > 8 and pull == pytest.approx(0.02 * mean, rel=0.4)  # the rest is of two pixels of a line
