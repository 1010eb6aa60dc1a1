"""View indices: reading, writing, what they get wrong; the public ones where they are at hand."""

import os
from pathlib import Path

import pytest

from da3_splat.data.dl3dv import read_hashes
from da3_splat.data.view_index import (
    ViewIndex,
    check_length,
    read_view_index,
    targets_that_are_contexts,
    write_view_index,
)


def test_round_trip(tmp_path):
    index = {"a": ViewIndex((0, 9), (3, 4)), "b": None, "c": ViewIndex((5, 2), (2,))}
    write_view_index(tmp_path / "index.json", index)
    assert read_view_index(tmp_path / "index.json") == index
    assert list(read_view_index(tmp_path / "index.json")) == ["a", "b", "c"]
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]


def test_targets_that_are_contexts():
    views = ViewIndex((0, 4, 8), (4, 5, 8))
    assert views.shared == (4, 8) and views.without_shared() == ViewIndex((0, 4, 8), (5,))
    assert targets_that_are_contexts({"a": views, "b": None, "c": ViewIndex((0,), (1,))}) == {"a": (4, 8)}


def test_positions_beyond_the_scene():
    check_length(ViewIndex((0, 9), (3,)), 10, "index.json: a")
    with pytest.raises(ValueError, match="index.json: a: asks for frame 9, but the scene has 9"):
        check_length(ViewIndex((0, 9), (3,)), 9, "index.json: a")


@pytest.mark.parametrize(
    "text, message",
    [
        ("[1]", "not a view index"),
        ("{}", "not a view index"),
        ("{", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ('{"a": {"context": [0]}}', "a: expected null or the keys context and target, got .'context'."),
        ('{"a": {"context": [0], "target": [1], "more": 2}}', "a: expected null or the keys"),
        ('{"a": [0]}', "a: expected null or the keys context and target, got list"),
        ('{"a": {"context": [0, 0], "target": [1]}}', "a: context: expected a list of different numbers"),
        ('{"a": {"context": [], "target": [1]}}', "a: context"),
        ('{"a": {"context": [0], "target": [-1]}}', "a: target"),
        ('{"a": {"context": [0.0], "target": [1]}}', "a: context"),
        ('{"a": {"context": [true], "target": [1]}}', "a: context"),
        ('{"a": null, "a": null}', "a appears twice"),
    ],
)
def test_bad_files_name_file_and_scene(tmp_path, text, message):
    path = tmp_path / "index.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"index.json: .*{message}") as caught:
        read_view_index(path)
    assert "\n" not in str(caught.value)


def test_bad_index_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="out.json: a: target"):
        write_view_index(tmp_path / "out.json", {"a": ViewIndex((0,), ())})
    with pytest.raises(ValueError, match="no such file"):
        read_view_index(tmp_path / "out.json")


@pytest.fixture
def public_indices() -> Path:
    """The folder of published view indices, where there is one: $DA3_SPLAT_INDICES, else ../shared/indices."""
    default = Path(__file__).parents[2] / "shared" / "indices"
    path = Path(os.environ.get("DA3_SPLAT_INDICES", default))
    if not path.is_dir():
        pytest.skip("no public view indices here ($DA3_SPLAT_INDICES)")
    return path


def test_public_indices(public_indices, tmp_path):
    """140 scenes each; at 12 views, 137 of 1120 targets in 87 scenes are contexts too; the video file shares all."""
    for count in (6, 12, 24):
        path = public_indices / f"dl3dv_ctx_{count}v_tgt_8v.json"
        index = read_view_index(path)
        assert len(index) == 140 and all(len(v.context) == count and len(v.target) == 8 for v in index.values())
        shared = targets_that_are_contexts(index)
        assert (len(shared), sum(map(len, shared.values()))) == ((87, 137) if count == 12 else (0, 0))
        assert read_hashes(path) == set(index)
        write_view_index(tmp_path / "again.json", index)
        assert read_view_index(tmp_path / "again.json") == index
    video = read_view_index(public_indices / "dl3dv_distance_100_ctx_12v_video.json")
    assert all(set(views.shared) == set(views.context) for views in video.values())
