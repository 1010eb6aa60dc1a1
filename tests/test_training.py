"""Training: the state of a run, resuming, ranks, faults; the objective of the head; recipes."""

import math
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import one_hot

from da3_splat import load_model
from da3_splat.backbone import create_backbone
from da3_splat.config import load_config
from da3_splat.data.synthetic import make_scenes
from da3_splat.data.synthetic_batches import GeometryBatch, StepSampler, SyntheticBatches, WorldsConfig, make_batch
from da3_splat.geometry.frames import camera_at_origin
from da3_splat.training.episodes import DataConfig, head_batches, make_sampler
from da3_splat.training.gaussian_head import HeadBatch, HeadLossConfig, HeadObjective
from da3_splat.training.geometry import (
    PatchObjective,
    StudentObjective,
    attention_scores,
    matching_loss,
    smooth_positions,
)
from da3_splat.training.head_recipe import HeadRecipe
from da3_splat.training.loop import CHECKPOINT, LoopConfig, run
from da3_splat.training.optimization import OptimizationConfig, TrainingState, rate_factor
from da3_splat.types import Geometry

ROOT = Path(__file__).parents[1]
TINY = WorldsConfig(sizes=((28, 42),), views=(2, 3), pixels=4 * 28 * 42)


def tiny_state(steps: int = 20, objective: nn.Module | None = None, **options) -> TrainingState:
    torch.manual_seed(0)
    objective = objective or PatchObjective(create_backbone("mini"))
    config = OptimizationConfig(steps=steps, warmup_steps=3, rate=1e-3, **options)
    return TrainingState(Fabric(accelerator="cpu"), objective, {config.rate: list(objective.parameters())}, config)


def train(state: TrainingState, sampler: StepSampler, output: Path, **options):
    return run(state, SyntheticBatches(sampler), sampler, output, LoopConfig(**options), lambda *said: None)


def test_learning_rate():
    config = OptimizationConfig(steps=100, warmup_steps=10, final_fraction=0.1)
    assert rate_factor(0, config) == pytest.approx(0.1)
    assert rate_factor(50, config) == pytest.approx(0.1 + 0.9 * 0.5)
    assert rate_factor(100, config) == rate_factor(999, config) == pytest.approx(0.1)


def test_ten_and_ten_are_twenty(tmp_path):
    """A resumed run ends where an unbroken one does: weights, averages, optimizer, sampler and random numbers."""
    whole, place = tiny_state(), StepSampler(TINY)
    train(whole, place, tmp_path / "whole")
    first, sampler = tiny_state(), StepSampler(TINY)
    first.config = replace(first.config, steps=10)
    # Only the end of the run moves: the schedule must be that of 20 steps.
    for position, batch in islice(SyntheticBatches(sampler), 10):
        first.config = whole.config
        first.advance([batch])
        sampler.advance(position)
    first.save(tmp_path / CHECKPOINT, sampler.state_dict())
    drawn = torch.rand(3)
    second, sampler = tiny_state(), StepSampler(TINY)
    sampler.load_state_dict(second.load(tmp_path / CHECKPOINT))
    assert second.step == sampler.position == 10
    assert torch.equal(torch.rand(3), drawn)
    train(second, sampler, tmp_path)
    assert second.step == whole.step == 20
    for name, value in whole.learned.items():
        torch.testing.assert_close(second.learned[name], value, rtol=0, atol=1e-6)
        torch.testing.assert_close(second.average[name], whole.average[name], rtol=0, atol=1e-6)


def test_checkpoint_of_another_model(tmp_path):
    tiny_state(objective=nn.Linear(2, 2)).save(tmp_path / "a", {})
    with pytest.raises(ValueError, match="other parameters"):
        tiny_state().load(tmp_path / "a")
    with pytest.raises(ValueError, match="another seed"):
        StepSampler(TINY).load_state_dict({"seed": 5, "world_size": 1, "position": 3})


def test_non_finite_steps_are_skipped():
    state = tiny_state()
    batch = make_batch(TINY, 0)
    state.advance([batch])
    before = {name: value.detach().clone() for name, value in state.learned.items()}
    poisoned = GeometryBatch(torch.full_like(batch.images, torch.nan), batch.truth, False)
    state.advance([poisoned])
    assert state.skipped == 1 and state.step == 2
    assert all(torch.equal(before[name], value) for name, value in state.learned.items())
    state.advance([batch])
    assert state.skipped == 1 and not torch.equal(
        before["network.backbone.cls_token"], state.learned["network.backbone.cls_token"]
    )


def test_full_disk_does_not_end_a_run(tmp_path, monkeypatch, caplog):
    state, sampler = tiny_state(steps=2), StepSampler(TINY)
    train(state, sampler, tmp_path)
    kept = (tmp_path / CHECKPOINT).read_bytes()

    def full(content, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    state.config = replace(state.config, steps=5)
    train(state, sampler, tmp_path, save_seconds=0)
    assert state.step == 5 and "not written" in caplog.text
    assert (tmp_path / CHECKPOINT).read_bytes() == kept
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


@pytest.mark.slow
def test_killed_in_the_middle(tmp_path):
    """kill -9 between checkpoints; the same command then ends where an unbroken run does."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "objective: patches\nworlds: {sizes: [[28, 42]], views: [2, 3], pixels: 4704}\n"
        "optimization: {steps: 20, warmup_steps: 3}\nprecision: 32-true\n"
    )

    def command(output: Path) -> list[str]:
        script = str(ROOT / "scripts" / "train_geometry.py")
        options = ["--config", str(recipe), "--output", str(output), "--log-steps", "1", "--save-seconds", "0"]
        return [sys.executable, script, *options]

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    process = subprocess.Popen(command(tmp_path / "killed"), stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step 10 "):
            process.kill()
            break
    process.wait()
    before = torch.load(tmp_path / "killed" / CHECKPOINT, weights_only=True)["step"]
    assert 9 <= before < 20
    out = subprocess.run(command(tmp_path / "killed"), check=True, capture_output=True, text=True).stdout
    assert f"resumed at step {before}" in out
    whole, resumed = (torch.load(tmp_path / name / CHECKPOINT, weights_only=True) for name in ("whole", "killed"))
    assert whole["step"] == resumed["step"] == 20 and whole["sampler"] == resumed["sampler"]
    for part in ("learned", "average"):
        for name, value in whole[part].items():
            torch.testing.assert_close(resumed[part][name], value, rtol=0, atol=1e-6)


def gradients(batch: GeometryBatch, fabric: Fabric) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    objective = PatchObjective(create_backbone("mini"))
    config = OptimizationConfig(clip=1e9)
    learned = [p for name, p in objective.named_parameters() if ".head." not in name]
    state = TrainingState(fabric, objective, {1e-3: learned}, config)
    state.advance([batch])
    found = {name: p.grad for name, p in state.learned.items() if "cam_enc" not in name}  # no cameras were given
    return {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in found.items()}


def half(batch: GeometryBatch, rank: int) -> GeometryBatch:
    return GeometryBatch(batch.images[rank : rank + 1], batch.truth.item(rank), False)


def two_worlds() -> GeometryBatch:
    views, truth = make_scenes(2, 2, 28, 42, seed=3, supersample=1)
    truth = replace(truth, depth=truth.depth.clamp_min(0.5))  # every pixel counts, so both halves weigh the same
    return GeometryBatch(views.images, truth, False)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_are_one_with_twice_the_batch(tmp_path, strategy):
    program = tmp_path / "rank.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "import torch\nfrom da3_splat.training.optimization import launch\n"
        "from test_training import gradients, half, two_worlds\n"
        "torch.set_num_threads(1)\n"
        f"fabric = launch(strategy={strategy!r})\n"
        "found = gradients(half(two_worlds(), fabric.global_rank), fabric)\n"
        f"torch.save(found, {str(tmp_path)!r} + f'/rank{{fabric.global_rank}}.pt')\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    result = subprocess.run(launch, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    together = gradients(two_worlds(), Fabric(accelerator="cpu"))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for name, value in together.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_query_views_are_seen_by_nobody():
    """Contexts answer as if there were no queries, whatever those show; each query answers as if it were alone."""
    torch.manual_seed(1)
    network = create_backbone("mini").eval()
    images = torch.rand(2, 5, 3, 28, 42)
    with torch.no_grad():
        alone = network.encode(images[:, :3], reference_view="saddle_balanced")
        both = network.encode(images, reference_view="saddle_balanced", queries=2)
        poisoned = images.clone()
        poisoned[:, 3:] = torch.nan
        hurt = network.encode(poisoned, reference_view="saddle_balanced", queries=2)
        one = network.encode(images[:, [0, 1, 2, 4]], reference_view="saddle_balanced", queries=1)
        plain = network.encode(images, reference_view="saddle_balanced")
    for index, tap in enumerate(alone.taps):
        torch.testing.assert_close(both.taps[index][:, :3], tap, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.taps[index][:, 3], both.taps[index][:, 4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.camera_tokens[:, :3], alone.camera_tokens, rtol=1e-4, atol=1e-5)
    assert torch.equal(hurt.reference, alone.reference)
    assert not torch.allclose(plain.taps[-1][:, :3], alone.taps[-1], atol=1e-3)


def test_checkpointing_changes_nothing_but_memory():
    torch.manual_seed(2)
    network, batch = create_backbone("mini"), make_batch(TINY, 1)
    objective = StudentObjective(network)
    found = []
    for network.backbone.checkpointing in (False, True):
        network.zero_grad()
        objective(batch)[0].backward()
        found.append(network.backbone.blocks[3].mlp.fc1.weight.grad.clone())
    torch.testing.assert_close(*found)


def test_matching_loss_by_hand():
    """Two views of a plane, the second one patch to the right: patch (r,c+1) of the first is (r,c) of the second."""
    focal, size = 28.0, (28, 42)
    cameras = camera_at_origin(focal, *size)
    poses = torch.eye(4).repeat(1, 2, 1, 1)
    poses[0, 1, 0, 3] = -14 / focal
    cameras = replace(cameras, world_to_camera=poses, intrinsics=cameras.intrinsics.expand(1, 2, 3, 3))
    truth = Geometry(depth=torch.ones(1, 2, *size), cameras=cameras)
    # Names of the places on the plane: six columns in all, of which each view shows three of two rows; class tokens 0.
    place = 1 + torch.arange(6).reshape(2, 3).remainder(3) + torch.tensor([0, 10])[:, None]
    names = torch.stack([torch.cat([torch.zeros(1).long(), view.flatten()]) for view in (place, place + 1)])
    same = one_hot(names.flatten(), 20).float() @ one_hot(names.flatten(), 20).float().T
    elsewhere = torch.arange(2).repeat_interleave(7)[:, None] != torch.arange(2).repeat_interleave(7)
    scores = 10 * (same * elsewhere)[None]
    # Every patch that counts has one partner among the 14 tokens: a score of 10 for it, 0 for the 13 others.
    right = math.log(1 + 13 * math.exp(-10))
    assert matching_loss([scores], truth).item() == pytest.approx(right, rel=1e-3)
    assert matching_loss([scores, scores.roll(1, dims=2)], truth) > 2  # one of two looks beside it
    blocked = replace(truth, depth=torch.cat([truth.depth[:, :1], 0.2 * truth.depth[:, 1:]], dim=1))
    assert matching_loss([scores], blocked) == 0  # what one view shows lies hidden from the other


def test_scores_are_those_of_the_attention():
    """What is supervised is what the block then uses: softmax of the scores mixes the values to the head's output."""
    torch.manual_seed(4)
    network = create_backbone("mini").eval()
    block, images = network.backbone.blocks[3], torch.rand(2, 3, 3, 28, 42)
    seen = {}
    block.attn.proj.register_forward_pre_hook(lambda module, inputs: seen.update(mixed=inputs[0]))
    block.attn.register_forward_pre_hook(lambda module, inputs: seen.update(tokens=inputs[0]))
    with torch.no_grad(), attention_scores(block.attn, head=1) as found:
        network.encode(images)
        value = block.attn.qkv(seen["tokens"]).unflatten(-1, (3, 3, 64))[:, :, 2, 1]
    assert found[0].shape == (2, 21, 21)
    torch.testing.assert_close(found[0].softmax(-1) @ value, seen["mixed"][..., 64:128], rtol=1e-4, atol=1e-5)
    network.encode(images)
    assert len(found) == 1  # nothing is kept any more


def test_smooth_positions():
    """Neighbouring places of the grid are alike, far ones are not, and small grids see the same places."""
    network = create_backbone("mini")
    smooth_positions(network)
    grid = network.backbone.pos_embed[0, 1:].unflatten(0, (37, 37))
    near, far = (grid[:, 1:] - grid[:, :-1]).norm(dim=-1).mean(), (grid[0, 0] - grid[36, 36]).norm()
    assert near < 0.4 * far
    coarse = network.backbone.position_embedding(6, 8)[0, 1:].unflatten(0, (6, 8))
    assert (coarse[2, 3] - grid[15, 16]).norm() < 0.5 * far


def test_batches_of_worlds():
    config = replace(TINY, widening_steps=100, arc=(10.0, 90.0))
    sampler = StepSampler(config)
    (first, a), (second, b) = islice(SyntheticBatches(sampler), 2)
    assert (first, second) == (0, 1) and not torch.equal(a.images, b.images)
    sampler.advance(first)
    position, again = next(iter(SyntheticBatches(sampler)))
    assert position == 1 and torch.equal(again.images, b.images)
    other = make_batch(config, 0, rank=1, world_size=2)
    assert other.images.shape == a.images.shape and not torch.equal(other.images, make_batch(config, 0, 0, 2).images)

    def widest(position: int) -> float:
        cameras = make_batch(replace(config, views=(2,), pixels=40 * 28 * 42), position).truth.cameras
        axis = cameras.world_to_camera[:, :, 2, :3]
        return float(torch.rad2deg(torch.acos((axis[:, 0] * axis[:, 1]).sum(-1))).mean())

    assert widest(0) < 30 < widest(100)


def head_batch(views: int = 3, targets: int = 2, batch: int = 2, size=(28, 42), **options) -> HeadBatch:
    given, truth = make_scenes(batch, views + targets, *size, seed=7, arc=20.0, supersample=1)
    context, target = list(range(views)), list(range(views, views + targets))
    return HeadBatch(given.select(context), given.select(target), truth.depth[:, context], **options)


@pytest.fixture(scope="module")
def model():
    return load_model("mini")


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("pose_free", [False, True])
def test_no_target_reaches_the_gaussians(model, pose_free, merged):
    """Poisoned targets change neither Gaussians nor depth, posed or not."""
    objective = HeadObjective(model)
    batch = head_batch(pose_free=pose_free, merged=merged)
    poisoned = replace(batch, target=replace(batch.target, images=torch.rand_like(batch.target.images)))
    with torch.no_grad():
        clean, hurt = objective.predict(batch), objective.predict(poisoned)
    assert torch.equal(clean.geometry.depth, hurt.geometry.depth)
    assert len(clean.gaussians) == (2 if merged else 1)
    for one, other in zip(clean.gaussians, hurt.gaussians):
        assert torch.equal(one.means, other.means) and torch.equal(one.sh, other.sh)


def test_head_objective_learns_the_head_alone():
    """Every weighted part is there; gradients reach the head, and the backbone only where it learns; other sizes."""
    model = load_model("mini").train()
    model.network.requires_grad_(False)
    config = HeadLossConfig(mse=1, absolute=0.5, ssim=0.1, depth=0.2, opacity=0.01, fit_colors=True, static_share=0.9)
    batch = head_batch()
    larger = replace(batch.target, images=torch.rand(2, 2, 3, 30, 44), cameras=batch.target.cameras.resized(30, 44))
    loss, parts = HeadObjective(model, config)(replace(batch, target=larger))
    assert set(parts) == {"mse", "absolute", "ssim", "depth", "opacity", "loss"}
    assert parts["loss"] == pytest.approx(sum(v for k, v in parts.items() if k != "loss"), rel=1e-5)
    loss.backward()
    assert model.gs_head.scratch.output_conv2[2].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.network.parameters())
    model.network.requires_grad_(True)
    HeadObjective(model, config)(replace(batch, pose_free=True))[0].backward()
    assert model.network.cam_dec.fc_t.weight.grad.abs().sum() > 0  # through the poses the targets are rendered at


def test_scale_without_true_depth(model):
    """Without depth the distances between the given cameras fix the scale: twice as far apart, twice as deep."""
    batch = replace(head_batch(), depth=None)

    def larger(cameras):
        moved = cameras.world_to_camera.clone()
        moved[..., :3, 3] *= 2
        return replace(cameras, world_to_camera=moved)

    twice = replace(batch, context=replace(batch.context, cameras=larger(batch.context.cameras)))
    with torch.no_grad():
        one, two = (HeadObjective(model).predict(b).geometry.depth for b in (batch, twice))
    torch.testing.assert_close(two, 2 * one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("source", ["synthetic", "captures"])
def test_head_episodes(source, tmp_path):
    """Shapes, sizes and the turn to merging; a resumed run goes on with the next episode."""
    if source == "captures":
        from da3_splat.demo import write_capture

        for seed in (1, 2):
            write_capture(tmp_path / f"scene{seed}", seed, views=6, height=56, width=70)
    config = DataConfig(source, tmp_path, sizes=((28, 42),), target_size=(30, 44), contexts=3, workers=0)
    sampler = make_sampler(config)
    pairs = list(islice(head_batches(sampler, config, merge_after=2), 3))
    assert [batch.merged for _, batch in pairs] == [False, False, True]
    assert pairs[0][1].context.images.shape == (1, 3, 3, 28, 42)
    assert pairs[0][1].target.images.shape == (1, 2, 3, 30, 44)
    assert (pairs[0][1].depth is None) == (source == "captures")
    sampler.advance(pairs[0][0])
    other = make_sampler(config)
    other.load_state_dict(sampler.state_dict())
    _, again = next(iter(head_batches(other, config, merge_after=2)))
    assert torch.equal(again.context.images, pairs[1][1].context.images)
    with pytest.raises(ValueError, match="no scenes"):
        make_sampler(DataConfig("captures", tmp_path / "nothing"))


def test_a_capture_with_both_kinds_of_cameras_is_one_scene(tmp_path):
    """transforms.json with a COLMAP model below it is one scene; a COLMAP model alone is one, too."""
    for name in ("both/transforms.json", "both/sparse/0/cameras.bin", "colmap/sparse/0/cameras.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    sampler = make_sampler(DataConfig("captures", tmp_path))
    assert [scene.path.relative_to(tmp_path).as_posix() for scene in sampler.scenes] == ["both", "colmap/sparse/0"]


def test_batches_move_whole():
    """Everything that a step computes with goes to the step's device."""
    moved = head_batch().to("meta")
    tensors = [moved.depth, moved.context.images, moved.target.images, moved.target.cameras.intrinsics]
    moved = make_batch(TINY, 0).to("meta")
    tensors += [moved.images, moved.truth.depth, moved.truth.cameras.world_to_camera]
    assert all(tensor.is_meta for tensor in tensors)


def test_recipes_load():
    """Every file in configs/ is a recipe, and says the paper's numbers where it claims to."""
    files = sorted((ROOT / "configs" / "head").glob("*.yaml"))
    recipes = {path.stem: load_config(HeadRecipe, path) for path in files}
    assert {"mini", "dl3dv", "megadepth", "captures"} <= set(recipes)
    paper = recipes["dl3dv"].data
    assert (paper.contexts, paper.target_size, paper.sizes) == (12, (270, 480), ((266, 476),))
    assert recipes["megadepth"].loss.fit_colors and recipes["megadepth"].loss.static_share < 1


def test_recipes_that_do_not_load(tmp_path):
    path = tmp_path / "recipe.yaml"
    for text, complaint in (
        ("optimization: {stepz: 3}", "stepz"),
        ("optimization: {steps: many}", "steps"),
        ("data: {source: somewhere}", "source"),
        ("- 1", "keys"),
        ("a: [", "YAML"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=complaint) as caught:
            load_config(HeadRecipe, path)
        assert str(path) in str(caught.value)
    for text, complaint in (
        ("extends: ../base.yaml", "beside this one"),
        ("extends: 3", "beside this one"),
        ("extends: recipe.yaml", "one step"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=complaint):
            load_config(HeadRecipe, path)
    (tmp_path / "base.yaml").write_text("optimization: {rate: 1e-2, steps: 7}\nprecision: 32-true")
    path.write_text("extends: base.yaml\noptimization: {rate: 1e-3}")
    extended = load_config(HeadRecipe, path)
    assert extended.optimization == OptimizationConfig(rate=1e-3, steps=7) and extended.precision == "32-true"
    path.write_text("optimization: {rate: 1e-3, steps: 7}")
    assert load_config(HeadRecipe, path).optimization == OptimizationConfig(rate=1e-3, steps=7)
    assert math.isclose(load_config(HeadRecipe, path).optimization.rate, 1e-3)
