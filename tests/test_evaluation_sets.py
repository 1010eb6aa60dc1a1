"""Scores on public data sets and on captures with depth maps: their rules are kept, end to end from the command."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import benchmark_layouts as layouts
import numpy as np
import pytest
import torch
from captures import small_capture
from evaluation_methods import IDENTITY
from PIL import Image

from da3_splat.cli import main
from da3_splat.commands import evaluate as commands
from da3_splat.data.benchmarks.scene import DepthRules
from da3_splat.data.benchmarks.table import BENCHMARKS
from da3_splat.evaluation.depth import Depth
from da3_splat.evaluation.scenes import scenes_at
from da3_splat.io.frames import Frame
from da3_splat.types import Geometry, Scene, Views

WORLD = layouts.world()


@dataclass
class Knows:
    """Answers with the depth of the world's view whose picture it is shown, times a factor."""

    factor: float = 1.0
    identity = IDENTITY

    def predict(self, views: Views, scene: str = "") -> Scene:
        pixels = views.images[0, 0].permute(1, 2, 0).numpy()
        apart = [np.abs(pixels - known / 255).mean() for known in WORLD.pixels]
        depth = torch.from_numpy(WORLD.depth[int(np.argmin(apart))])
        depth = torch.where(depth > 0, depth, 1.0)[None, None] * self.factor
        return Scene(geometry=Geometry(depth=depth), gaussians=None, cameras=None)


SETS = {
    "kitti": layouts.kitti,
    "nyuv2": layouts.nyuv2,
    "sintel": layouts.sintel,
    "eth3d": layouts.eth3d,
    "diode": layouts.diode,
    "sun-rgbd": layouts.sun_rgbd,
    "hiroom": layouts.hiroom,
    "7scenes": layouts.seven_scenes,
}


@pytest.mark.parametrize("name", SETS)
def test_a_method_that_knows_all(name, tmp_path):
    """Its only error is the rounding of the set's own files (HiRoom's step is 1.5 mm)."""
    SETS[name](tmp_path, WORLD)
    scenes, _ = scenes_at(tmp_path, name)
    task = Depth(Knows(), "none", None, 70, rules=BENCHMARKS[name].depth)
    scores = task.score(scenes[0] if name != "eth3d" else scenes[1]).scores
    assert scores["absolute_relative"] < 2e-3 and scores["delta1"] == 1.0
    twice = Depth(Knows(1.25), "none", None, 70, rules=BENCHMARKS[name].depth)
    assert twice.score(scenes[0] if name != "eth3d" else scenes[1]).scores["absolute_relative"] > 0.2


def test_rules_leave_pixels_out_and_clamp():
    """Of the world's depth only 2 to 3 m counts; an answer ten times too far is taken as 3 m."""

    class One:
        name, surface, judged = "one", None, None

        def frames(self):
            picture = Image.fromarray(WORLD.pixels[0])
            return [Frame(path=Path("one.png"), picture=picture)]

        def has_depth(self, index):
            return True

        def depth(self, index):
            return torch.from_numpy(WORLD.depth[0])

    rules = DepthRules(2.0, 3.0, "made up")
    counted = WORLD.depth[0][(WORLD.depth[0] > 2) & (WORLD.depth[0] <= 3)]
    far = Depth(Knows(10.0), "none", None, 70, rules=rules).score(One()).scores
    assert far["absolute_relative"] == pytest.approx(float(((3 - counted) / counted).mean()), rel=1e-4)
    with pytest.raises(ValueError, match="no picture has true depth that counts"):
        Depth(Knows(), "none", None, 70, rules=DepthRules(900.0, 999.0, "made up")).score(One())


def test_means_over_pictures_or_scenes():
    """One scene of three pictures with error 1 and one of one with error 0: 3/4 over pictures, 1/2 over scenes."""
    names = ("absolute_relative", "squared_relative", "root_mean_square", "delta1", "delta2", "delta3")
    first = {**dict.fromkeys(names, 1.0), "views": [dict.fromkeys(names, 1.0)] * 3}
    second = {**dict.fromkeys(names, 0.0), "views": [dict.fromkeys(names, 0.0)]}
    over_pictures = Depth(Knows(), rules=DepthRules(0, 1, "")).summary([first, second])
    assert over_pictures["delta1"] == 0.75 and over_pictures["pictures"] == 4
    rules = DepthRules(0, 1, "", average="scenes")
    assert Depth(Knows(), rules=rules).summary([first, second])["delta1"] == 0.5
    assert Depth(Knows()).summary([first, second])["delta1"] == 0.5


def test_captures_that_bring_depth(tmp_path):
    """Frames by name, each with its own map, whatever the order of the file; pictures without one are left out."""
    capture = small_capture(tmp_path / "capture", views=3)
    content = json.loads((capture / "transforms.json").read_text())
    for number, frame in enumerate(content["frames"][:2]):
        map_of = np.full((56, 84), 1000 * (number + 1), np.uint16)
        Image.fromarray(map_of).save(capture / f"map_{number}.png")
        frame["depth_file_path"] = f"map_{number}.png"
    content["frames"].reverse()
    (capture / "transforms.json").write_text(json.dumps(content))
    scene = scenes_at(capture, "captures")[0][0]
    assert [frame.name for frame in scene.frames()] == [f"view_{index:04d}.png" for index in range(3)]
    assert [scene.has_depth(index) for index in range(3)] == [True, True, False]
    assert float(scene.depth(0).max()) == 1.0 and float(scene.depth(1).max()) == 2.0 and scene.depth(2) is None
    arguments = ["--data", str(capture), "--format", "captures", "--output", str(tmp_path / "out")]
    main(["evaluate", "depth", *arguments, "--resolution", "84", "--json"])
    means = json.loads((tmp_path / "out" / "results.json").read_text())
    assert means["pictures"] == 2 and means["scenes_scored"] == 1


def test_commands_know_every_set():
    """What the commands offer is what the sets can be scored on."""
    offered = {
        "novel-views": commands.NovelViewFormat,
        "poses": commands.PoseFormat,
        "depth": commands.DepthFormat,
        "reconstruction": commands.ReconstructionFormat,
    }
    for task, formats in offered.items():
        ours = {"captures", "synthetic", "dl3dv", "megadepth"}
        assert set(get_args(formats)) - ours == {name for name, s in BENCHMARKS.items() if task in s.tasks}, task


def test_commands_on_sets(tmp_path, capsys):
    layouts.kitti(tmp_path / "kitti", WORLD)
    arguments = ["--data", str(tmp_path / "kitti"), "--format", "kitti", "--resolution", "70"]
    main(["evaluate", "depth", *arguments, "--output", str(tmp_path / "a"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["pictures"] == 3 and found["protocol"]["views"] == "all" and "Garg" in found["protocol"]["rules"]
    layouts.hiroom(tmp_path / "hiroom", WORLD)
    arguments = ["--data", str(tmp_path / "hiroom"), "--format", "hiroom", "--resolution", "70"]
    main(["evaluate", "poses", *arguments, "--output", str(tmp_path / "b"), "--json"])
    assert len(json.loads(capsys.readouterr().out)["histogram"]) == 30
    big = layouts.world(views=9, height=70, width=98)
    layouts.tanks_and_temples(tmp_path / "tandt", big)
    arguments = ["--data", str(tmp_path / "tandt"), "--format", "tanks-and-temples", "--size", "56x84"]
    main(["evaluate", "novel-views", *arguments, "--contexts", "3", "--output", str(tmp_path / "c"), "--json"])
    assert json.loads(capsys.readouterr().out)["targets"] == 2
    with pytest.raises(SystemExit):
        main(
            [
                "evaluate",
                "depth",
                *arguments[:2],
                "--format",
                "kitti",
                "--output",
                str(tmp_path / "d"),
            ]
        )
    said = capsys.readouterr().err
    assert "no scene of the format kitti here" in said and "data/benchmarks/kitti.py" in said and said.count("\n") == 1
