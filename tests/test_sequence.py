"""Chunks, links, the pose graph and the work folder: known answers, round trips, and whole sequences with drift."""

from dataclasses import replace

import pytest
import torch

from da3_splat import render
from da3_splat.data.disturbance import Disturbance
from da3_splat.data.synthetic import render_worlds, sample_walk, sample_worlds
from da3_splat.fusion.fuse import FusionConfig
from da3_splat.geometry.alignment import Similarity, transform_cameras
from da3_splat.geometry.rotations import quaternion_to_matrix
from da3_splat.heads.plain import PlainHead
from da3_splat.model import Da3Splat, SplatConfig
from da3_splat.sequence import reconstruct as module
from da3_splat.sequence.chunks import chunk_ranges, owned_ranges
from da3_splat.sequence.linking import Link, link
from da3_splat.sequence.pose_graph import chained, compose, optimized
from da3_splat.sequence.reconstruct import SequenceConfig, meeting, reconstruct_sequence
from da3_splat.sequence.retrieval import loop_candidates
from da3_splat.sequence.simulation import Drift, SimulatedBackbone, end_drift, trajectory_error
from da3_splat.sequence.work_folder import WorkFolder
from da3_splat.types import Geometry, Views

PLAIN_FUSION = FusionConfig(consensus=None, recolor_passes=1)


def random_similarity(seed: int, size: float = 1.0) -> Similarity:
    generator = torch.Generator().manual_seed(seed)
    turn = torch.randn(4, generator=generator, dtype=torch.float64) * size + torch.tensor([1.0, 0, 0, 0])
    return Similarity(
        torch.exp(size * torch.randn((), generator=generator, dtype=torch.float64)),
        quaternion_to_matrix(turn / turn.norm()).double(),
        size * torch.randn(3, generator=generator, dtype=torch.float64),
    )


@pytest.fixture(scope="module")
def walk() -> tuple[Views, Geometry]:
    worlds = sample_worlds(1, 7_000_003)
    cameras = sample_walk(worlds, 36, 42, 56, seed=7)
    images, truth = render_worlds(worlds, cameras, supersample=1)
    return Views(images=images), truth


def simulated(walk, drift: Drift, noise: Disturbance = Disturbance()) -> Da3Splat:
    views, truth = walk
    return Da3Splat(SimulatedBackbone(views.images, truth, drift, noise), PlainHead(), SplatConfig("simulated"))


@pytest.mark.parametrize("count, size, overlap", [(10, 10, 3), (5, 8, 2), (100, 30, 10), (61, 20, 7), (9, 4, 3)])
def test_chunks_cover_everything_and_share_enough(count, size, overlap):
    chunks = chunk_ranges(count, size, overlap)
    assert chunks[0].start == 0 and chunks[-1].stop == count and all(len(chunk) <= size for chunk in chunks)
    assert all(before.stop - after.start >= overlap for before, after in zip(chunks, chunks[1:]))
    owned = owned_ranges(chunks)
    assert [view for own in owned for view in own] == list(range(count))
    assert all(own.start >= chunk.start and own.stop <= chunk.stop for own, chunk in zip(owned, chunks))


def test_bad_cuts_are_refused():
    for size, overlap in ((1, 1), (5, 5), (5, 0)):
        with pytest.raises(ValueError, match="chunk, overlap"):
            chunk_ranges(10, size, overlap)


def test_a_link_finds_the_similarity_despite_outliers(walk):
    """The same views in another frame, a fifth of the depths wrong: the similarity comes back."""
    truth = walk[1].select(slice(3, 7))
    motion = random_similarity(4, 0.5)
    single = Similarity(motion.scale.float(), motion.rotation.float(), motion.translation.float())
    depth = truth.depth * single.scale
    wrong = torch.rand(depth.shape, generator=torch.Generator().manual_seed(0)) < 0.2
    moved = Geometry(depth=torch.where(wrong, depth * 1.7, depth), cameras=transform_cameras(single, truth.cameras))
    found = link(2, 3, moved, truth)
    assert torch.allclose(found.similarity.scale, motion.scale, rtol=1e-3)
    assert torch.allclose(found.similarity.rotation, motion.rotation, atol=1e-3)
    assert torch.allclose(found.similarity.translation, motion.translation, atol=5e-3)
    assert found.inliers > 0.7 and found.error < 1e-3
    with pytest.raises(ValueError, match="10 pixels"):
        link(0, 1, replace(truth, depth=torch.zeros_like(truth.depth)), truth)


def test_pose_graph_by_hand_and_with_a_false_loop():
    """Exact links give the true places; biased steps are mended by one true loop; a false one bends little."""
    true = [random_similarity(seed, 0.3) for seed in range(6)]
    true = [compose(true[0].inverse(), one) for one in true]

    def step(i: int, j: int, bias: float = 0.0) -> Link:
        exact = compose(true[i].inverse(), true[j])
        return Link(i, j, replace(exact, scale=exact.scale * (1 + bias)), 1.0, 0.0, 1.0)

    def off(places: list[Similarity]) -> float:
        return max(float((a.scale / b.scale).log().abs()) for a, b in zip(places, true))

    exact = [step(i, i + 1) for i in range(5)]
    for places in (chained(exact, 6), optimized([*exact, step(0, 5)], 6)):
        assert off(places) < 1e-6
        assert all(torch.allclose(a.rotation, b.rotation, atol=1e-6) for a, b in zip(places, true))
    biased = [step(i, i + 1, 0.01) for i in range(5)]
    mended = optimized([*biased, step(0, 5)], 6)
    assert off(mended) < 0.5 * off(chained(biased, 6))
    lie = Link(0, 5, random_similarity(99), 1.0, 0.0, 1.0)
    assert off(optimized([*exact, step(0, 4), step(1, 5), lie], 6)) < 0.05


def test_candidates_are_of_far_chunks():
    descriptions = torch.randn(12, 6, generator=torch.Generator().manual_seed(1))
    descriptions[10] = descriptions[1]
    chunks = chunk_ranges(12, 5, 1)
    assert loop_candidates(descriptions, chunks, 4)[0][2:] == (1, 10)
    assert all(j - i >= 2 for i, j, _, _ in loop_candidates(descriptions, chunks, 9))


def test_what_two_views_see_meets(walk):
    truth = walk[1]
    assert meeting(truth, 0, 1) > 0.9
    nearer = replace(truth, depth=truth.depth * torch.where(torch.arange(36) == 1, 0.5, 1.0)[None, :, None, None])
    assert meeting(nearer, 0, 1) < 0.2


def test_without_errors_the_sequence_is_the_truth(walk, tmp_path):
    """Chunks in frames and scales of their own come together to the true path, and the splat looks like the views."""
    views, truth = walk
    model = simulated(walk, Drift(0, 0, 0))
    scene = reconstruct_sequence(model, views, SequenceConfig(12, 4), tmp_path, {}, PLAIN_FUSION)
    assert trajectory_error(scene.cameras, truth.cameras) < 1e-4
    assert scene.report["chunks"] == 4 and scene.geometry.depth.shape == truth.depth.shape
    picture = render(scene.gaussians, scene.cameras.select([5, 20])).color[0]
    seen = truth.depth[0, [5, 20]] > 0
    error = (picture - views.images[0, [5, 20]]).square().mean(dim=1)[seen].mean()
    assert -10 * error.log10() > 20


def test_loops_halve_the_drift(walk, tmp_path):
    model = simulated(walk, Drift(rotation=0.5, translation=0.003, scale=0.004))
    ends, paths = {}, {}
    for loops in (False, True):
        config = SequenceConfig(10, 3, loops)
        scene = reconstruct_sequence(model, walk[0], config, tmp_path / str(loops), {}, PLAIN_FUSION)
        ends[loops] = end_drift(scene.cameras, walk[1].cameras)
        paths[loops] = trajectory_error(scene.cameras, walk[1].cameras)
    assert scene.report["loops_closed"] >= 1
    assert ends[True] < 0.5 * ends[False] and paths[True] < paths[False] < 0.02


def test_bridges_between_the_same_views_of_other_chunks(walk, tmp_path):
    """View 9 is at the end of one chunk and early in the next: its bridge to view 30 has other views for each."""
    model, work = simulated(walk, Drift(0, 0, 0)), WorkFolder(tmp_path, {})
    chunks = chunk_ranges(36, 12, 4)
    for index, chunk in enumerate(chunks):
        some = walk[0].select(slice(chunk.start, chunk.stop))
        work.save(module._name(index), module._chunk(model, some, range(len(chunk)), PLAIN_FUSION, map))
    for i in (0, 1):
        found = module._bridged(model, walk[0], chunks, (i, 3, 9, 34), 3, work, PLAIN_FUSION, map)
        assert all((one.first, one.second) == (i, 3) for one in found)
    assert len(list(tmp_path.glob("bridge*"))) == 2


def test_a_killed_run_goes_on_to_the_same_scene(walk, tmp_path, monkeypatch):
    model, config = simulated(walk, Drift()), SequenceConfig(12, 4)
    whole = reconstruct_sequence(model, walk[0], config, tmp_path / "whole", {"pictures": "a"}, PLAIN_FUSION)
    calls = []

    def dying(*args):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return chunk(*args)

    chunk = module._chunk
    monkeypatch.setattr(module, "_chunk", dying)
    with pytest.raises(KeyboardInterrupt):
        reconstruct_sequence(model, walk[0], config, tmp_path / "killed", {"pictures": "a"}, PLAIN_FUSION)
    (tmp_path / "killed" / "chunk_0001.safetensors").write_bytes(b"half a chunk")
    again = reconstruct_sequence(model, walk[0], config, tmp_path / "killed", {"pictures": "a"}, PLAIN_FUSION)
    assert again.report["chunks_found"] == 1
    assert torch.equal(again.gaussians.means, whole.gaussians.means)
    assert torch.equal(again.gaussians.sh, whole.gaussians.sh)
    with pytest.raises(ValueError, match="other pictures or settings"):
        reconstruct_sequence(model, walk[0], config, tmp_path / "killed", {"pictures": "b"}, PLAIN_FUSION)


def test_posed_sequences_stay_in_their_frame(walk, tmp_path):
    views = replace(walk[0], cameras=walk[1].cameras)
    scene = reconstruct_sequence(
        simulated(walk, Drift(0, 0, 0)), views, SequenceConfig(12, 4), tmp_path, {}, PLAIN_FUSION
    )
    assert torch.equal(scene.cameras.world_to_camera, views.cameras.world_to_camera)
