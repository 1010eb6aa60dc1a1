"""Evaluation: protocols, no leak of the targets, resuming, sharding, scenes that cannot be read, published layouts."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from captures import small_capture
from evaluation_methods import Oracle, Planes
from scenes import random_cameras, random_gaussians

from da3_splat import load_model, load_views, render
from da3_splat.cli import main
from da3_splat.data.benchmarks.table import rules_at
from da3_splat.data.layouts import scene_hash, write_dl3dv_scene, write_megadepth_scene
from da3_splat.data.synthetic import make_scenes
from da3_splat.data.view_index import ViewIndex, write_view_index
from da3_splat.data.view_selection import pose_distance
from da3_splat.evaluation.depth import Depth, at_original_size
from da3_splat.evaluation.image_scores import ImageScores
from da3_splat.evaluation.methods import OurMethod, ResultsOnDisk, load_method
from da3_splat.evaluation.novel_views import NovelViews
from da3_splat.evaluation.pictures import load_at
from da3_splat.evaluation.poses import Poses
from da3_splat.evaluation.protocol import NovelViewProtocol, Size
from da3_splat.evaluation.reconstruction import Reconstruction
from da3_splat.evaluation.results import ResultsFolder, file_name
from da3_splat.evaluation.runner import run
from da3_splat.evaluation.scenes import CaptureScene, SyntheticScene, scenes_at
from da3_splat.evaluation.target_poses import aligned_to_pictures, moved_to_prediction
from da3_splat.geometry.alignment import transform_cameras, transform_gaussians, umeyama
from da3_splat.metrics import psnr, relative_pose_errors
from da3_splat.scene_folder import save_scene
from da3_splat.types import Views, Window

NO_LPIPS = ImageScores(missing={"vgg": "left out", "alex": "left out"})
SMALL = NovelViewProtocol(contexts=3, size=Size(56, 70))
WORLD = SyntheticScene(seed=77, views=9, height=56, width=70)
INDOORS = 78  # a world without sky


def task(method=None, settings=SMALL) -> NovelViews:
    return NovelViews(method or Planes(), settings, NO_LPIPS)


def without_timing(results: dict) -> dict:
    return {name: value for name, value in results.items() if name != "timing"}


# Protocol -------------------------------------------------------------------------------------------------------------


def test_sizes():
    for text, network in (("270x480", "266x476"), ("252x252", "252x252"), ("256x448", "252x448"), ("native", "native")):
        size = Size.parse(text)
        assert str(size) == text and str(size.network) == network
    for text in ("270", "270x", "x480", "270x480x3", "8x480", "-270x480", "big"):
        with pytest.raises(ValueError, match="size: expected native or HEIGHTxWIDTH"):
            Size.parse(text)


def test_contexts_are_farthest_points_and_never_targets():
    cameras = random_cameras(views=21, seed=3)
    chosen = NovelViewProtocol(contexts=5).choose(cameras, None, "scene")
    assert chosen.target == (0, 8, 16) and not chosen.shared and len(chosen.context) == 5
    distance = pose_distance(cameras)
    rest = [view for view in range(21) if view not in chosen.target]
    least = min(float(distance[i, j]) for i in chosen.context for j in chosen.context if i != j)
    left = [min(float(distance[i, j]) for j in chosen.context) for i in rest if i not in chosen.context]
    assert least >= max(left) - 1e-9  # else one of those left out would have been taken
    assert len(NovelViewProtocol(contexts=100).choose(cameras, None, "scene").context) == 18
    with pytest.raises(ValueError, match="no contexts"):
        NovelViewProtocol().choose(random_cameras(views=1), None, "scene")
    for wrong in ({"contexts": 0}, {"every": 1}, {"alignment_steps": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            NovelViewProtocol(**wrong)


def test_index_with_and_without_shared_targets(tmp_path):
    """A target that is a context too scores better, and both means are there."""
    write_view_index(tmp_path / "index.json", {WORLD.name: ViewIndex((1, 4, 7), (4, 5)), "other": None})
    settings = replace(SMALL, index=tmp_path / "index.json")
    score = task(settings=settings).score(WORLD).scores
    shared, apart = score["views"]
    assert [view["index"] for view in score["views"]] == [4, 5] and score["contexts"] == [1, 4, 7]
    assert shared["is_context"] and not apart["is_context"]
    assert score["without_contexts"]["psnr"] == apart["psnr"] != score["psnr"]
    assert score["psnr"] == pytest.approx((shared["psnr"] + apart["psnr"]) / 2)
    summary = task(settings=settings).summary([{"name": WORLD.name, **score}])
    assert summary["targets"] == 2 and summary["targets_that_are_contexts"] == 1
    assert summary["lpips"] == {"vgg": None, "alex": None}
    write_view_index(tmp_path / "index.json", {WORLD.name: ViewIndex((1, 4, 7), (4, 9))})
    with pytest.raises(ValueError, match="asks for frame 9"):
        task(settings=settings).score(WORLD)
    with pytest.raises(ValueError, match="says nothing of the scene"):
        task(settings=settings).score(replace(WORLD, seed=78))


def test_pictures_at_the_size_asked_for(tmp_path):
    """A picture of that size is untouched; another is covered and cropped with its camera; K stays right."""
    frames = WORLD.frames()
    same = load_at(frames[:2], Size(56, 70))
    pixels = np.asarray(frames[1].picture, np.float32) / 255
    np.testing.assert_allclose(same.images[0, 1].permute(1, 2, 0).numpy(), pixels, atol=1e-6)
    assert torch.equal(same.cameras.intrinsics[0, 1], frames[1].intrinsics.float())
    cropped = load_at(frames[:2], Size(28, 42))
    assert cropped.images.shape == (1, 2, 3, 28, 42) and cropped.cameras.width == 42
    # 56x70 covers 28x42 at 34x42 (scale 0.6), of which three rows are cut off above.
    want = frames[0].intrinsics[:2, 2] * torch.tensor([42 / 70, 34 / 56]) - torch.tensor([0.0, 3.0])
    torch.testing.assert_close(cropped.cameras.intrinsics[0, 0, :2, 2].double(), want.double(), atol=1e-4, rtol=0)
    assert load_at(frames[:1], Size()).images.shape[-2:] == (56, 70)
    photo = small_capture(tmp_path / "capture", views=2) / "images"
    with pytest.raises(ValueError, match="has no camera"):
        task().score(CaptureScene("photos", photo))


# Poses of targets -----------------------------------------------------------------------------------------------------


def test_targets_move_with_the_prediction():
    """Gaussians and contexts in a frame of their own: the moved targets see what the given ones saw."""
    gaussians, cameras = random_gaussians(seed=5), random_cameras(views=5, seed=6)
    source = torch.randn(6, 3, generator=torch.Generator().manual_seed(7))
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, -1, 0.3], [1, 0, 0.2], [-0.3, -0.2, 0]]))
    motion = umeyama(source, 1.7 * source @ turn.T + torch.tensor([1.0, 2.0, 3.0]))
    contexts, targets = cameras.select([0, 2, 4]), cameras.select([1, 3])
    moved = moved_to_prediction(targets, transform_cameras(motion, contexts), contexts)
    before = render(gaussians, targets, near=0.01).color
    after = render(transform_gaussians(motion, gaussians), moved, near=0.017).color
    torch.testing.assert_close(after, before, atol=2e-3, rtol=0)
    two = moved_to_prediction(targets, transform_cameras(motion, contexts.select([0, 1])), contexts.select([0, 1]))
    torch.testing.assert_close(two.world_to_camera, moved.world_to_camera, atol=1e-3, rtol=0)


def test_aligned_targets_find_home():
    """Poses off by a degree and more come back; one that is right already stays; nothing gets worse."""
    scene = Oracle(WORLD).predict(load_at(WORLD.frames()[::2], Size(56, 70)))
    cameras = scene.cameras.select([1, 2])
    images = render(scene.gaussians, cameras).color
    pose = cameras.world_to_camera.clone()
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, -0.01, 0.02], [0.01, 0, 0.01], [-0.02, -0.01, 0]]))
    pose[0, 0, :3] = turn @ pose[0, 0, :3]
    pose[0, 0, 0, 3] += 0.04
    off = replace(cameras, world_to_camera=pose)
    found = aligned_to_pictures(scene.gaussians, Views(images=images, cameras=off), steps=50)
    before, after = (psnr(render(scene.gaussians, c).color[0], images[0]) for c in (off, found))
    assert float(before[0]) < 25 and float(after[0]) > before[0] + 8
    assert (found.centers[0, 0] - cameras.centers[0, 0]).norm() < 0.25 * (
        off.centers[0, 0] - cameras.centers[0, 0]
    ).norm()
    assert torch.equal(found.world_to_camera[0, 1], cameras.world_to_camera[0, 1])


def test_three_pose_protocols_of_a_method_that_knows_all():
    """Raw in another frame and scale scores as posed does; contexts off cost dBs, alignment gives some back."""
    close = NovelViewProtocol(contexts=6, size=SMALL.size, alignment_steps=40)
    world = replace(WORLD, arc=20.0)

    def score(method: Oracle, poses: str) -> float:
        return task(method, replace(close, poses=poses)).score(world).scores["psnr"]

    posed, raw = score(Oracle(world), "posed"), score(Oracle(world), "raw")
    assert posed > 18 and raw == pytest.approx(posed, abs=0.05)
    off = Oracle(world, pose_noise=0.05)
    assert score(off, "raw") < raw - 0.5 and score(off, "aligned") > score(off, "raw") + 0.5


# No leak --------------------------------------------------------------------------------------------------------------


def test_poisoned_targets_change_no_gaussian(tmp_path):
    """The network's Gaussians are the same to the bit whatever the target pictures hold; no target is given to it."""
    capture = small_capture(tmp_path / "capture", views=9)
    model = load_model("mini")

    class Recorded(Planes):
        def predict(self, views: Views, scene: str = "") -> object:
            self.seen.append(views)
            self.scenes.append(model.reconstruct(views))
            return self.scenes[-1]

    before, after = Recorded(), Recorded()
    scene = CaptureScene("capture", capture)
    first = task(before).score(scene).scores
    targets = [view["name"] for view in first["views"]]
    assert targets == ["view_0000.png", "view_0008.png"]
    generator = np.random.default_rng(0)
    from da3_splat.io.images import write_image

    for name in targets:
        write_image(capture / "images" / name, generator.random((56, 84, 3)))
    second = task(after).score(scene).scores
    for name in ("means", "quats", "scales", "opacities", "sh"):
        assert torch.equal(getattr(before.scenes[0].gaussians, name), getattr(after.scenes[0].gaussians, name))
    assert not set(before.seen[0].names) & set(targets) and len(before.seen[0].names) == 3
    assert before.seen[0].points is None  # sparse points, which the targets helped to find
    assert second["psnr"] < first["psnr"] - 2  # and yet the pictures were looked at


def test_nothing_of_a_target_is_read_before_the_prediction(tmp_path):
    """Targets that cannot be read at all: the method has answered by the time anyone notices."""
    capture = small_capture(tmp_path / "capture", views=9)
    for name in ("view_0000.png", "view_0008.png"):
        (capture / "images" / name).write_bytes(b"garbage")
    method = Planes()
    with pytest.raises(ValueError, match="view_0000.png: not a readable image"):
        task(method).score(CaptureScene("capture", capture))
    assert len(method.scenes) == 1


# Running --------------------------------------------------------------------------------------------------------------


def worlds(count=3):
    return [replace(WORLD, seed=80 + 2 * index) for index in range(count)]


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


class Interrupting(Planes):
    """Ctrl-C in the second scene."""

    def predict(self, views, scene=""):
        if len(self.scenes) == 1:
            raise KeyboardInterrupt
        return super().predict(views, scene)


def test_interrupted_and_resumed(tmp_path):
    whole = run(task(), worlds(), tmp_path / "whole", {"format": "synthetic"})
    assert results_of(tmp_path / "whole") == json.loads(json.dumps(whole))
    with pytest.raises(KeyboardInterrupt):
        run(task(Interrupting()), worlds(), tmp_path / "parts", {"format": "synthetic"})
    assert not (tmp_path / "parts" / "results.json").exists()
    resumed = Planes()
    run(task(resumed), worlds(), tmp_path / "parts", {"format": "synthetic"})
    assert len(resumed.scenes) == 2  # the first was done
    assert without_timing(results_of(tmp_path / "parts")) == without_timing(results_of(tmp_path / "whole"))
    again = Planes()
    run(task(again), worlds(), tmp_path / "parts", {"format": "synthetic"})
    assert not again.scenes
    other = Planes()
    run(task(other, replace(SMALL, contexts=2)), worlds(), tmp_path / "parts", {"format": "synthetic"})
    assert len(other.scenes) == 3 and results_of(tmp_path / "parts")["protocol"]["contexts"] == 2


def test_two_processes_give_what_one_gives(tmp_path, monkeypatch):
    one = run(task(), worlds(), tmp_path / "one", {"format": "synthetic"})
    monkeypatch.setenv("WORLD_SIZE", "2")
    methods = {}
    for rank, done in ((1, False), (0, True)):
        monkeypatch.setenv("RANK", str(rank))
        methods[rank] = Planes()
        results = run(task(methods[rank]), worlds(), tmp_path / "two", {"format": "synthetic"})
        assert (results is not None) == done == (tmp_path / "two" / "results.json").exists()
    assert [len(methods[rank].scenes) for rank in (0, 1)] == [2, 1]
    assert without_timing(results_of(tmp_path / "two")) == without_timing(json.loads(json.dumps(one)))
    assert set(results_of(tmp_path / "two")["timing"]["scenes"]) == {scene.name for scene in worlds()}
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ValueError, match="RANK"):
        run(task(), worlds(), tmp_path / "two", {"format": "synthetic"})


def test_a_corrupt_scene_is_reported_and_the_rest_is_scored(tmp_path, capsys):
    for name in ("a", "b", "c"):
        small_capture(tmp_path / "data" / name, views=5)
    (tmp_path / "data" / "b" / "transforms.json").write_text("{broken")
    (tmp_path / "data" / "no capture").mkdir()
    arguments = [
        "evaluate",
        "novel-views",
        "--data",
        tmp_path / "data",
        "--output",
        tmp_path / "out",
        "--size",
        "56x70",
    ]
    arguments = [str(argument) for argument in (*arguments, "--contexts", 2, "--every", 4)]
    main(arguments)
    out = capsys.readouterr().out
    assert "(2 of 3 scenes)" in out.splitlines()[-1] and "2 contexts, targets every 4, 56x70, posed" in out
    results = results_of(tmp_path / "out")
    assert results["scenes_scored"] == 2 and results["scenes_failed"] == 1 and len(results["scenes"]) == 2
    assert results["failed"][0]["name"] == "b" and "not readable as JSON" in results["failed"][0]["error"]
    assert results["psnr"] == pytest.approx(sum(scene["psnr"] for scene in results["scenes"]) / 2)
    report = (tmp_path / "out" / "report.html").read_text()
    assert "(2 of 3 scenes)" in report and "not readable as JSON" in report
    small_capture(tmp_path / "data" / "b", views=5)  # repaired: the next run scores it, and it alone
    before = (tmp_path / "out" / "scenes" / "a.json").stat().st_mtime_ns
    main([*arguments, "--json"])
    means = json.loads(capsys.readouterr().out)
    assert means["scenes_scored"] == 3 and not means["scenes_failed"]
    assert (tmp_path / "out" / "scenes" / "a.json").stat().st_mtime_ns == before


def test_records_of_others_do_not_count(tmp_path):
    folder = ResultsFolder(tmp_path, "mine")
    folder.save("scene/1", {"scores": {"psnr": 1.0}, "timing": {}})
    assert folder.record("scene/1")["scores"] == {"psnr": 1.0} and folder.record("scene_1") is None
    assert ResultsFolder(tmp_path, "yours").record("scene/1") is None
    (tmp_path / "scenes" / f"{file_name('scene/1')}.json").write_text('{"identity": "mi')
    assert folder.record("scene/1") is None
    assert file_name("../up") != file_name(".._up") and "/" not in file_name("../up")
    with pytest.raises(ValueError):
        folder.save("other", {"scores": {"psnr": float("nan")}})
    assert folder.record("other") is None


# Methods --------------------------------------------------------------------------------------------------------------


def test_results_of_another_tool_score_as_the_model_that_wrote_them(tmp_path):
    """What `reconstruct` wrote is read back: posed scores agree, and unposed ones move by its own cameras."""
    ours = OurMethod(load_model("mini"), {"name": "mini"})
    for poses in ("posed", "raw"):
        settings = replace(SMALL, poses=poses)
        contexts = load_at(
            [WORLD.frames()[i] for i in task(ours, settings).score(WORLD).scores["contexts"]], SMALL.size
        )
        given = contexts if poses == "posed" else replace(contexts, cameras=None)
        save_scene(ours.predict(given), given, tmp_path / poses / WORLD.name)
        method = load_method(str(tmp_path / poses))
        assert isinstance(method, ResultsOnDisk) and method.identity["name"] == poses
        ours_psnr = task(ours, settings).score(WORLD).scores["psnr"]
        assert task(method, settings).score(WORLD).scores["psnr"] == pytest.approx(ours_psnr, abs=0.1)
    before = method.identity
    with (tmp_path / "raw" / WORLD.name / "scene.ply").open("r+b") as file:
        file.seek(-2, 2)
        file.write(b"\x01")
    assert method.identity != before
    with pytest.raises(ValueError, match="no scene.ply of this scene"):
        task(method).score(replace(WORLD, seed=99))
    (tmp_path / "raw" / WORLD.name / "transforms.json").unlink()
    with pytest.raises(ValueError, match="no such file"):
        task(method).score(WORLD)


def test_methods_are_told_apart(tmp_path):
    assert load_method("mini").identity == load_method("mini").identity
    assert set(load_method("mini").identity) == {"name", "kind", "sha256"}
    with pytest.raises(ValueError, match="no such checkpoint"):
        load_method(str(tmp_path / "nothing.safetensors"))


# Poses and depth ------------------------------------------------------------------------------------------------------


def test_poses_of_a_method_that_knows_all(tmp_path):
    exact = Poses(Oracle(WORLD), views=4, resolution=70).score(WORLD).scores
    assert exact["auc_3"] == exact["auc_30"] == 100.0 and len(exact["pairs"]) == 6 and sum(exact["histogram"]) == 6
    off = Poses(Oracle(WORLD, pose_noise=0.1), views=9, resolution=70)
    results = run(off, [WORLD], tmp_path, {"format": "synthetic"})
    scene = results["scenes"][0]
    assert scene["auc_3"] <= scene["auc_5"] <= scene["auc_15"] <= scene["auc_30"] < 100 and len(scene["pairs"]) == 36
    assert results["auc_30"] == scene["auc_30"] and results["histogram"] == scene["histogram"]
    frames = WORLD.frames()
    views = load_at(frames, Size(56, 70))
    found = off.predictor.predict(replace(views, cameras=None)).cameras
    rotation, direction = relative_pose_errors(found, views.cameras)
    assert [pair["direction_deg"] for pair in scene["pairs"]] == direction[0].tolist()
    assert [pair["rotation_deg"] for pair in scene["pairs"]] == rotation[0].tolist()
    with pytest.raises(ValueError, match="views"):
        Poses(Planes(), views=1)


def test_depth_of_a_method_that_knows_all():
    """Exact but for the scale of its own frame: scale and shift find it, `none` does not."""
    one = replace(WORLD, views=2)
    for alignment, worst in (("scale", 1e-4), ("scale-shift", 1e-4)):
        scores = Depth(Oracle(one), alignment, resolution=70).score(one).scores
        assert scores["absolute_relative"] < worst and scores["delta1"] == 1.0 and len(scores["views"]) == 2
    none = Depth(Oracle(one), "none", resolution=70).score(one).scores
    assert none["absolute_relative"] == pytest.approx(0.63, abs=1e-4) and none["delta3"] == 0.0


def test_depth_at_the_size_of_the_truth():
    """A plane that grows to the right, cropped and scaled: its values stand where the original's pixels are."""
    columns = (torch.arange(40) + 0.5).expand(20, 40)
    window = Window(24, 60, 2.0, 10.0, 20.0, 40.0)  # rows 2 to 22, columns 10 to 50 of 24x60
    full = at_original_size(columns, window, 24, 60)
    assert (
        full[:2].isnan().all() and full[22:].isnan().all() and full[:, :10].isnan().all() and full[:, 50:].isnan().all()
    )
    torch.testing.assert_close(full[5, 10:50], torch.arange(40) + 0.5)
    half = at_original_size(columns, window, 12, 30)
    torch.testing.assert_close(half[5, 5:25], 2 * torch.arange(20) + 1.0)


def test_reconstruction_of_a_method_that_knows_all():
    """Exact points score 1 whatever frame they came in; planes do not."""
    indoors = replace(WORLD, seed=INDOORS)
    for poses in ("posed", "free"):
        points = Reconstruction(Oracle(indoors), rules_at(0.05, "points"), poses, views=3, resolution=70)
        exact = points.score(indoors).scores
        assert exact["f1"] == 1.0 and exact["chamfer"] < 1e-3 and exact["frames"] == [0, 4, 8]
        fused = Reconstruction(Oracle(indoors), rules_at(0.4), poses, views=3, resolution=70).score(indoors).scores
        assert fused["f1"] > 0.97 and fused["accuracy"] < 0.06
    planes = Reconstruction(Planes(), rules_at(0.4), "posed", views=3, resolution=70).score(indoors).scores
    assert planes["f1"] < 0.5 and planes["chamfer"] > 0.2


# Published layouts, end to end ----------------------------------------------------------------------------------------


def test_the_papers_protocol_on_a_dl3dv_benchmark_scene(tmp_path, capsys):
    views, _ = make_scenes(1, 9, 56, 98, seed=31, arc=40, supersample=1)
    names = [scene_hash(1), scene_hash(2)]
    for name in names:
        write_dl3dv_scene(tmp_path / "DL3DV-Benchmark", views, name, benchmark=True)
    common = ["evaluate", "novel-views", "--data", str(tmp_path / "DL3DV-Benchmark"), "--format", "dl3dv"]
    common += ["--size", "56x90", "--contexts", "3"]
    main([*common, "--output", str(tmp_path / "paper"), "--poses", "raw", "--json"])
    means = json.loads(capsys.readouterr().out)
    assert means["scenes_scored"] == 2 and means["targets"] == 4 and np.isfinite(means["psnr"])
    assert means["protocol"]["network_at"] == "56x84" and means["protocol"]["scored_at"] == "56x90"
    assert means["protocol"]["poses"] == "raw"
    index = {names[0]: ViewIndex((0, 4, 8), (2, 4)), names[1]: None, scene_hash(3): ViewIndex((0, 1), (2,))}
    write_view_index(tmp_path / "index.json", index)
    main([*common, "--output", str(tmp_path / "index"), "--index", str(tmp_path / "index.json"), "--json"])
    means = json.loads(capsys.readouterr().out)
    assert means["scenes_scored"] == 1 and means["targets_that_are_contexts"] == 1
    assert means["data"]["index_notes"][0].startswith("1 of 2 scenes of the index are not here")
    assert means["without_contexts"]["psnr"] != means["psnr"]
    report = (tmp_path / "index" / "report.html").read_text()
    assert "1 of 2 targets are contexts too" in report and report.count("data:image/jpeg;base64,") == 5
    assert "http://" not in report.replace("https://download.pytorch.org", "")  # nothing is loaded from elsewhere


def test_megadepth_novel_views_and_depth(tmp_path, capsys):
    """Pictures of mixed size and aspect, native and covered; depth beside true depth; landmarks of training refused."""
    write_megadepth_scene(tmp_path / "data", "5003", 0, views=5, height=140, width=196, seed=5, supersample=1)
    common = ["--data", str(tmp_path / "data"), "--format", "megadepth", "--json"]
    for size in ("56x70", "native"):
        output = tmp_path / size
        arguments = ["--size", size, "--contexts", "2", "--every", "4", "--output", str(output)]
        main(["evaluate", "novel-views", *common, *arguments])
        means = json.loads(capsys.readouterr().out)
        assert means["scenes_scored"] == 1 and means["targets"] == 2 and np.isfinite(means["psnr"])
        assert means["gaussians"] > 0
    main(["evaluate", "depth", *common, "--output", str(tmp_path / "depth"), "--resolution", "70", "--views", "3"])
    means = json.loads(capsys.readouterr().out)
    assert (
        means["pictures"] == 3 and 0 < means["absolute_relative"] < 5 and 0 <= means["delta1"] <= means["delta3"] <= 1
    )
    write_megadepth_scene(tmp_path / "train", "0001", 0, views=2, height=56, width=70, seed=6, supersample=1)
    with pytest.raises(ValueError, match="none of the landmarks 5000 to 5018"):
        scenes_at(tmp_path / "train", "megadepth")
    for path in (tmp_path / "data").rglob("*.h5"):
        with h5py.File(path, "r+") as file:
            file["depth"][...] = 0
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "depth", *common, "--output", str(tmp_path / "none"), "--resolution", "70"])
    assert stop.value.code == 2 and "no picture has true depth" in capsys.readouterr().err


# Command and report ---------------------------------------------------------------------------------------------------


def test_command_poses_and_depth_on_worlds(tmp_path, capsys):
    shared = ["--format", "synthetic", "--worlds", "1", "--resolution", "70"]
    main(["evaluate", "poses", *shared, "--views", "3", "--output", str(tmp_path / "poses")])
    assert "AUC30" in capsys.readouterr().out.splitlines()[-1]
    report = (tmp_path / "poses" / "report.html").read_text()
    assert "Table 2: pose" in report and "not measured here" in report and "<svg" in report
    main(["evaluate", "depth", *shared, "--views", "1", "--align", "scale-shift", "--output", str(tmp_path / "depth")])
    assert "alignment scale-shift" in capsys.readouterr().out.splitlines()[-1]
    assert results_of(tmp_path / "depth")["hardware"]["threads"] == torch.get_num_threads()


def test_command_says_what_is_wrong(tmp_path, capsys):
    small_capture(tmp_path / "capture", views=2)
    novel = ["evaluate", "novel-views", "--output", str(tmp_path / "out")]
    for arguments, message in (
        (novel, "--data: expected the folder of the captures scenes"),
        ([*novel, "--data", str(tmp_path / "nowhere")], "nowhere: no such file or folder"),
        ([*novel, "--data", str(tmp_path / "capture" / "images")], "no scene of the format captures here"),
        ([*novel, "--data", str(tmp_path / "capture"), "--size", "12"], "size: expected native"),
        ([*novel, "--data", str(tmp_path / "capture"), "--model", "no.safetensors"], "no such checkpoint"),
        ([*novel, "--format", "synthetic", "--worlds", "0"], "--worlds of at least 1"),
        ([*novel, "--data", str(tmp_path / "capture"), "--index", str(tmp_path / "i.json")], "i.json: no such file"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        captured = capsys.readouterr()
        assert stop.value.code == 2 and message in captured.err, captured.err
        assert len(captured.err.strip().splitlines()) == 1 and not captured.out
    assert not (tmp_path / "out").exists()
    for command in (
        ["evaluate"],
        *(["evaluate", name] for name in ("novel-views", "poses", "depth", "reconstruction")),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*command, "--help"])
        assert stop.value.code == 0 and "da3-splat evaluate" in capsys.readouterr().out


@pytest.mark.slow
def test_real_captures(captures, tmp_path, capsys):
    """Both real captures under each pose protocol; aligned poses never score below raw ones."""
    found = {}
    for poses in ("posed", "raw", "aligned"):
        arguments = ["--size", "168x168", "--contexts", "6", "--poses", poses, "--steps", "30", "--json"]
        main(["evaluate", "novel-views", "--data", str(captures), "--output", str(tmp_path / poses), *arguments])
        found[poses] = json.loads(capsys.readouterr().out)
        assert found[poses]["scenes_scored"] == 2 and found[poses]["scenes_failed"] == 0
    assert found["aligned"]["psnr"] >= found["raw"]["psnr"]
    assert found["posed"]["psnr"] > 12
    assert load_views(captures / "fox").images.shape[1] > 0
