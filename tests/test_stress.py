"""Hard worlds: each differs from the plain one in what it names and in nothing else; their scores stand apart."""

import json
from dataclasses import replace

import pytest
import torch
from evaluation_methods import Planes

from da3_splat.cli import main
from da3_splat.data.ray_casting import FACES, cast
from da3_splat.data.stress import VARIATIONS, arc_of, exposure, moved_worlds, varied_worlds
from da3_splat.data.synthetic import render_worlds, sample_cameras, sample_worlds
from da3_splat.evaluation.image_scores import ImageScores
from da3_splat.evaluation.novel_views import NovelViews
from da3_splat.evaluation.protocol import NovelViewProtocol, Size
from da3_splat.evaluation.runner import run
from da3_splat.evaluation.scenes import SyntheticScene
from da3_splat.evaluation.stress import difference, stress_headline, stress_table, stressed

SMALL = SyntheticScene(seed=78, views=9, height=42, width=56)
WORLD = sample_worlds(1, 78)
CAMERAS = sample_cameras(WORLD, 9, 42, 56, 79, 60)


def pictures(variation: str) -> list:
    return [torch.tensor(list(frame.picture.tobytes())) for frame in replace(SMALL, variation=variation).frames()]


def test_plain_is_what_it_was():
    assert replace(SMALL, variation="plain").name == SMALL.name == "world_78"
    assert varied_worlds(WORLD, "plain") is WORLD and moved_worlds(WORLD, "plain", 3) is WORLD
    grained = replace(WORLD, grain=torch.full_like(WORLD.frequency, 0.6), gloss=torch.zeros_like(WORLD.frequency))
    was, now = (render_worlds(worlds, CAMERAS.select([0]), 1) for worlds in (WORLD, grained))
    torch.testing.assert_close(was[0], now[0], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="variation: expected one of plain, textureless"):
        varied_worlds(WORLD, "foggy")


@pytest.mark.parametrize("variation", ["textureless", "mirrors", "repeated"])
def test_surfaces_change_and_geometry_does_not(variation):
    plain, hard = (render_worlds(worlds, CAMERAS, 1) for worlds in (WORLD, varied_worlds(WORLD, variation)))
    assert torch.equal(plain[1].depth, hard[1].depth) and not torch.equal(plain[0], hard[0])


def test_a_flat_wall_has_one_colour_but_for_light():
    """Light falls off smoothly, so the ratio of the channels is the same all over a wall."""
    worlds = varied_worlds(replace(WORLD, lamp_color=torch.zeros(1, 3)), "textureless")
    origins = torch.zeros(1, 1, 20, 20, 3)
    directions = 0.1 * torch.randn(1, 1, 20, 20, 3, generator=torch.Generator().manual_seed(0))
    directions[..., 0] = -1.0  # the wall at -x, from the middle of the room
    far = replace(worlds, center=worlds.center + torch.tensor([0.0, 1000.0, 0]))
    color = cast(far, origins, directions).color.reshape(-1, 3)
    torch.testing.assert_close(color, color[:1].expand_as(color), atol=1e-5, rtol=0)


def test_a_mirror_shows_what_is_in_front_of_it():
    """A wall that mirrors everything, looked at from the middle: the colour is that of the opposite wall, seen from as
    far beyond the mirror."""
    gloss = torch.zeros_like(WORLD.frequency)
    gloss[:, 0] = 1.0
    empty = replace(WORLD, center=WORLD.center + torch.tensor([0.0, 1000.0, 0]), gloss=gloss)
    origin, direction = torch.tensor([0.3, 0.1, -0.2]), torch.tensor([1.0, 0.12, 0.3])
    shape = (1, 1, 1, 1, 3)
    mirrored = cast(empty, origin.reshape(shape), direction.reshape(shape))
    hit = origin + mirrored.distance.reshape(()) * direction
    assert float(hit[0]) == pytest.approx(float(WORLD.room[0, 0]), rel=1e-5)
    back = cast(replace(empty, gloss=None), hit.reshape(shape), (direction * torch.tensor([-1.0, 1, 1])).reshape(shape))
    torch.testing.assert_close(mirrored.color, back.color, atol=2e-3, rtol=0)


def test_thin_wide_and_disturbed():
    rods = varied_worlds(WORLD, "thin")
    assert float(rods.size[..., [0, 2]].max()) == pytest.approx(0.015)
    torch.testing.assert_close(rods.center[..., 1] + rods.size[..., 1], WORLD.room[:, 1:2].expand(1, 10))  # they stand
    assert arc_of("wide", 60) == 180 and arc_of("thin", 60) == 60
    moved = moved_worlds(WORLD, "moving", 5)
    step = (moved.center - WORLD.center)[0]
    assert (step[1::2] == 0).all() and (step[:, 1] == 0).all() and 0.1 < step[::2].abs().max() <= 0.5
    assert not torch.equal(step, (moved_worlds(WORLD, "moving", 6).center - WORLD.center)[0])
    gains = [exposure("exposure", seed) for seed in range(40)]
    assert min(gains) >= 0.5 and max(gains) <= 2 and max(gains) / min(gains) > 2 and exposure("moving", 1) == 1


@pytest.mark.parametrize("variation", ["moving", "exposure"])
def test_pictures_that_are_held_out_are_not_disturbed(variation):
    """Of nine pictures, 0 and 8 are those of the plain world to the bit, and no other is."""
    same = [torch.equal(a, b) for a, b in zip(pictures("plain"), pictures(variation))]
    assert same == [True, *[False] * 7, True]
    thirds = replace(SMALL, variation=variation, steady=3).frames()
    plain = SMALL.frames()
    assert [a.picture.tobytes() == b.picture.tobytes() for a, b in zip(thirds, plain)] == [True, False, False] * 3


def test_scores_of_every_variation_beside_the_plain(tmp_path):
    scenes, groups = stressed([SMALL, replace(SMALL, seed=80)], 8)
    assert len(scenes) == 2 * len(VARIATIONS) and list(groups) == list(VARIATIONS) and len(set(map(str, scenes))) == 16
    assert {FACES, len(groups["wide"])} == {6, 2}
    task = NovelViews(
        Planes(), NovelViewProtocol(contexts=3, size=Size(42, 56)), ImageScores(missing={"vgg": "left out"})
    )
    results = run(task, scenes, tmp_path, {"format": "synthetic", "groups": groups})
    by_name = {scene["name"]: scene["psnr"] for scene in results["scenes"]}
    plain = (by_name["world_78"] + by_name["world_80"]) / 2
    hard = (by_name["world_78_thin"] + by_name["world_80_thin"]) / 2
    assert results["psnr"] == results["groups"]["plain"]["psnr"] == pytest.approx(plain)
    assert results["groups"]["thin"]["psnr"] == pytest.approx(hard)
    assert difference(results, "thin") == pytest.approx(hard - plain) and difference(results, "plain") == 0
    titles, rows = stress_table(results)
    assert [row[0] for row in rows] == list(VARIATIONS) and all(len(row) == len(titles) for row in rows)
    assert rows[0][1] == "2 of 2" and rows[0][-1] == "+0.00" and stress_headline(results).count(",") == 8
    results["scenes"] = [scene for scene in results["scenes"] if scene["name"] != "world_80"]
    assert difference(results, "thin") == pytest.approx(by_name["world_78_thin"] - by_name["world_78"])


def test_command(tmp_path, capsys):
    arguments = ["--size", "42x56", "--contexts", "2", "--worlds", "1", "--output", str(tmp_path)]
    main(["evaluate", "novel-views", "--format", "synthetic", "--stress", *arguments])
    out = capsys.readouterr().out
    assert "beside plain" in out and "stress suite, PSNR dB: plain" in out and "(plain worlds; 8 of 8 scenes)" in out
    report = (tmp_path / "report.html").read_text()
    assert "<h2>Stress suite</h2>" in report and "mirrors: rendering" in report
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found["groups"]) == set(VARIATIONS) and found["groups"]["plain"]["psnr"] == found["psnr"]
    with pytest.raises(SystemExit):
        main(["evaluate", "poses", "--data", "x", "--format", "captures", "--stress", "--output", str(tmp_path)])
    assert "--stress: only of synthetic worlds" in capsys.readouterr().err
