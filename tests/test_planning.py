"""The planner: parts by hand, growth with views, what is chosen within a limit, one clear line where nothing fits."""

import json
import re
from dataclasses import replace

import pytest
import torch
from captures import small_capture
from test_cli import run

from da3_splat.commands import memory
from da3_splat.data.captures import find_frames
from da3_splat.data.views import read_frames
from da3_splat.fusion.fuse import NO_FUSION, FusionConfig
from da3_splat.planning import Rates, gaussians_kept, make_plan, parse_memory, predict

RATES = Rates(view=0.1, score=1e-10, look=0.01, spot=1e-8, draw=1e-6)


def test_attention_and_pictures_by_hand():
    """mini, 2 views of 28x42: 7 tokens each of 192, four taps of 384 on 6 patches."""
    found = predict("mini", 2, 28, 42, 500.0, RATES, fusion=NO_FUSION)
    taps = 4 * 4 * 384 * 2 * 6
    assert found.parts["attention_mb"] * 2**20 == pytest.approx(5 * 4 * 192 * 14 + 0.75 * taps)
    assert found.parts["pictures_mb"] * 2**20 == 12 * 2 * 28 * 42
    assert found.parts["consensus_seconds"] == found.parts["merging_seconds"] == found.parts["coloring_seconds"] == 0
    assert found.parts["network_seconds"] == pytest.approx(2 * 0.1 + 3 * 192 * 14**2 * 1e-10)
    assert gaussians_kept(2, 28, 42, NO_FUSION) == 2 * 28 * 42


def test_memory_grows_in_step_with_views_and_attention_time_with_their_square():
    few, many = (predict("mini", views, 126, 168, 0.0, RATES) for views in (200, 2000))
    assert 8 < (many.parts["attention_mb"] / few.parts["attention_mb"]) < 10.1
    assert 8 < many.parts["consensus_mb"] / few.parts["consensus_mb"] < 10.1
    rest = replace(RATES, view=0.0)
    few, many = (predict("mini", views, 126, 168, 0.0, rest) for views in (200, 2000))
    assert many.parts["network_seconds"] == pytest.approx(100 * few.parts["network_seconds"])
    assert (
        predict("mini", 200, 126, 168, 0.0, RATES, features_on_disk=True).peak_mb
        < predict("mini", 200, 126, 168, 0.0, RATES).peak_mb
    )


def test_the_plan_fits_the_limit():
    free = make_plan("mini", 300, 126, 168, 1e6, 600.0)
    assert free.chunk is None and not free.features_on_disk
    tight = make_plan("mini", 300, 126, 168, free.prediction.peak_mb - 100, 600.0)
    assert tight.features_on_disk and tight.prediction.peak_mb <= free.prediction.peak_mb - 100
    most = predict("da3-small", 400, 280, 504, 700.0, features_on_disk=True).peak_mb - 50
    cut = make_plan("da3-small", 400, 280, 504, most, 700.0)
    assert cut.chunk is not None and 0 < cut.overlap < cut.chunk < 400
    assert "in chunks of" in cut.line and cut.prediction.peak_mb <= most
    asked = make_plan("mini", 300, 126, 168, 1e6, 600.0, RATES, chunk=50, overlap=9)
    assert (asked.chunk, asked.overlap) == (50, 9) and asked.prediction.seconds > 0
    only = replace(RATES, view=0.0, score=0.0, spot=0.0, draw=0.0)
    looking = make_plan("mini", 300, 126, 168, 1e6, 600.0, only, chunk=50, overlap=10).prediction
    of_chunk = 50 * 6 * 12 * only.look  # 8 chunks, 8 bridges of 14 views, and all 300 once more
    assert looking.seconds == pytest.approx(of_chunk * (8 + 8 * 14 / 50 + 6))
    with pytest.raises(ValueError, match="more --max-memory"):
        make_plan("mini", 300, 126, 168, 700.0, 600.0)
    unfused = make_plan("mini", 300, 126, 168, 1e6, 600.0, fusion=replace(FusionConfig(), consensus=None))
    assert unfused.prediction.peak_mb <= free.prediction.peak_mb


def test_sizes_are_read():
    assert parse_memory("8GB") == 8192 and parse_memory("512MB") == 512 and parse_memory("1.5g") == 1536
    for text in ("8", "GB", "-1GB", "much", "nanGB", "infGB"):
        with pytest.raises(ValueError, match="--max-memory: expected a size"):
            parse_memory(text)


def test_the_command_cuts_refuses_and_goes_on(tmp_path, capsys):
    """--chunk makes one scene of chunks that stay on disk for the next time; too little memory is one line, code 2."""
    capture = small_capture(tmp_path / "photos", views=9)
    photos = tmp_path / "plain"
    photos.mkdir()
    for file in sorted((capture / "images").iterdir()):
        (photos / file.name).write_bytes(file.read_bytes())
    arguments = ["reconstruct", photos, "--output", tmp_path / "scene", "--resolution", 84]
    found = []
    for _ in range(2):
        code, out, err = run(capsys, *arguments, "--chunk", 5, "--overlap", 2, "--json")
        assert code == 0 and "in chunks of 5 that share 2" in err, err
        found.append(json.loads(out))
    assert [report["chunks_found"] for report in found] == [0, 3] and found[0]["chunks"] == 3
    assert found[0]["gaussians"] == found[1]["gaussians"]
    for wrong in (["--max-memory", "100MB"], ["--max-memory", "lots"], ["--overlap", "2"], ["--chunk", "1"]):
        code, _, err = run(capsys, *arguments, *wrong)
        assert code == 2 and len(err.strip().splitlines()) == 1, err


def test_views_on_disk_are_those_in_memory(tmp_path, monkeypatch):
    """Read four at a time into a mapped file: pictures, cameras, names, windows and points as at once."""
    monkeypatch.setattr(memory, "READ_AT_A_TIME", 4)
    capture = find_frames(small_capture(tmp_path / "capture", views=9))
    arguments = (capture.frames, capture.points, capture.colors, 70)
    whole = read_frames(*arguments)
    mapped = memory.views_on_disk(*arguments, lambda items: items, tmp_path / "work")
    assert torch.equal(mapped.images, whole.images) and torch.equal(mapped.points, whole.points)
    assert torch.equal(mapped.cameras.world_to_camera, whole.cameras.world_to_camera)
    assert mapped.names == whole.names and mapped.windows == whole.windows and mapped.masks is None


def test_long_reconstructions_are_told_how_long(tmp_path, monkeypatch, capsys):
    """From LONG views on the machine is measured first; before, the plan is not even mentioned."""
    capture = small_capture(tmp_path / "capture", views=3)
    arguments = ("reconstruct", capture, "--resolution", 56, "--output")
    code, _, err = run(capsys, *arguments, tmp_path / "short")
    assert code == 0 and "one pass over" not in err
    monkeypatch.setattr(memory, "LONG", 3)
    code, _, err = run(capsys, *arguments, tmp_path / "long")
    assert code == 0 and re.search(r"one pass over 3 views, about \d\.\d GB, \d+ s", err), err
