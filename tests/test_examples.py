"""The three examples do what they say."""

import importlib.util
from pathlib import Path

import pytest
from captures import small_capture

from da3_splat import load_model, load_ply

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str):
    """The `main` of an example."""
    described = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module.main


def test_photos_to_splat(tmp_path, capsys):
    photos = small_capture(tmp_path / "capture", views=2) / "images"
    example("photos_to_splat")(photos, tmp_path / "scene.ply", resolution=84)
    assert f"2 views -> {load_ply(tmp_path / 'scene.ply').means.shape[1]} Gaussians" in capsys.readouterr().out


def test_posed_capture(tmp_path, capsys):
    capture = small_capture(tmp_path / "capture", views=5)
    example("posed_capture")(capture, tmp_path / "out", steps=8, resolution=84)
    assert (tmp_path / "out" / "scene.ply").is_file() and (tmp_path / "out" / "held_out.png").is_file()
    assert "held-out view: " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="has no cameras"):
        example("posed_capture")(capture / "images", tmp_path / "out")


@pytest.mark.slow
def test_train_on_your_data(tmp_path):
    for name in ("a", "b"):
        small_capture(tmp_path / "captures" / name, views=7, height=112, width=154)
    example("train_on_your_data")(tmp_path / "captures", tmp_path / "out", steps=2)
    assert load_model(tmp_path / "out" / "model.safetensors").config.sh_degree == 1
