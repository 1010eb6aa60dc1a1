"""Nerfstudio's own tools on a run of ours: ns-render in its three kinds, ns-viewer, and ns-train after a kill."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nerfstudio", reason="Nerfstudio is not installed")

from nerfstudio.scripts.render import DatasetRender, RenderCameraPath, RenderInterpolated  # noqa: E402
from nerfstudio_runs import capture_folder, config_for, train  # noqa: E402
from PIL import Image  # noqa: E402

from da3_splat.metrics import psnr  # noqa: E402

CHECKPOINTS = "step-?????????.ckpt"  # not those that are being written


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run: its folder, and its trainer."""
    config = config_for(capture_folder(tmp_path_factory), "short", 30)
    return config.get_base_dir(), train(config)


@pytest.fixture
def some_ffmpeg(tmp_path, monkeypatch):
    """ns-render asks for ffmpeg even where it writes pictures and never calls it; a bare machine has none."""
    stand_in = tmp_path / "bin" / "ffmpeg"
    stand_in.parent.mkdir()
    stand_in.write_text("#!/bin/sh\nexit 1\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(stand_in.parent), prepend=os.pathsep)


def pictures(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path).convert("RGB")) / 255.0 for path in sorted(folder.rglob("*.jp*g"))]


def test_render_dataset(run, tmp_path):
    """ns-render dataset: what is rendered at the training cameras looks like the training pictures."""
    folder, trainer = run
    DatasetRender(
        load_config=folder / "config.yml", output_path=tmp_path, split="train", rendered_output_names=["rgb"]
    ).main()
    found = pictures(tmp_path / "train" / "rgb")
    assert len(found) == len(trainer.pipeline.datamanager.train_dataset)
    for picture, item in zip(found, trainer.pipeline.datamanager.cached_train):
        true = item["image"].float() / 255
        assert float(psnr(true.new_tensor(picture).permute(2, 0, 1)[None], true.permute(2, 0, 1)[None])[0]) > 20


def test_render_interpolated(run, some_ffmpeg, tmp_path):
    """ns-render interpolate: every frame shows something, and they differ."""
    RenderInterpolated(
        load_config=run[0] / "config.yml",
        output_path=tmp_path / "path",
        pose_source="train",
        interpolation_steps=2,
        output_format="images",
    ).main()
    found = pictures(tmp_path)
    assert len(found) == 2 * (len(run[1].pipeline.datamanager.train_dataset) - 1)
    assert all(picture.std() > 0.02 for picture in found)
    assert np.abs(found[0] - found[-1]).mean() > 0.02


def test_render_camera_path(run, some_ffmpeg, tmp_path):
    """ns-render camera-path, with a camera of the capture as the viewer would save it: the picture of that camera."""
    folder, trainer = run
    cameras = trainer.pipeline.datamanager.train_dataset.cameras
    pose = np.vstack([cameras.camera_to_worlds[2].numpy(), [0, 0, 0, 1]])
    height, width = int(cameras.height[2]), int(cameras.width[2])
    angle = float(np.degrees(2 * np.arctan(0.5 * height / float(cameras.fy[2]))))
    key = {"camera_to_world": pose.flatten().tolist(), "fov": angle, "aspect": width / height}
    path = tmp_path / "camera_path.json"
    path.write_text(
        json.dumps({"render_height": height, "render_width": width, "camera_path": [key, key], "seconds": 1, "fps": 2})
    )
    RenderCameraPath(
        load_config=folder / "config.yml",
        output_path=tmp_path / "frames",
        camera_path_filename=path,
        output_format="images",
    ).main()
    found = pictures(tmp_path)
    true = trainer.pipeline.datamanager.cached_train[2]["image"].float() / 255
    assert len(found) == 2
    assert float(psnr(true.new_tensor(found[0]).permute(2, 0, 1)[None], true.permute(2, 0, 1)[None])[0]) > 20


@pytest.mark.slow
@pytest.mark.long
def test_viewer_of_a_finished_run(run):
    """ns-viewer, as a command: serves its page on loopback, with no error before it is stopped."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["ns-viewer", "--load-config", str(run[0] / "config.yml")]
    command += ["--viewer.websocket-host", "127.0.0.1", "--viewer.websocket-port", str(port)]
    with started(command) as process:
        page, deadline = b"", time.monotonic() + 120
        while not page and time.monotonic() < deadline:
            assert process.poll() is None, process.stdout.read()
            try:
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5).read()
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        assert b"<html" in page.lower()


@pytest.mark.slow
@pytest.mark.long
def test_training_goes_on_after_a_kill(run, tmp_path):
    """kill -9 in the middle of ns-train: the checkpoint is whole, and --load-dir goes on from it."""
    data = run[0].parents[3] / "capture"
    command = ["ns-train", "da3-splat", "--data", str(data), "--output-dir", str(tmp_path), "--vis", "tensorboard"]
    command += ["--machine.device-type", "cpu", "--pipeline.resolution", "84", "--pipeline.max-gaussians", "3000"]
    first = [*command, "--timestamp", "first", "--max-num-iterations", "100000", "--steps-per-save", "5"]
    with started(first) as process:
        folder, deadline = tmp_path / "capture" / "da3-splat" / "first" / "nerfstudio_models", time.monotonic() + 200
        while not any(step_of(path) >= 15 for path in folder.glob(CHECKPOINTS)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = max(folder.glob(CHECKPOINTS))
    done = subprocess.run(
        [*resolved(command), "--timestamp", "second", "--max-num-iterations", "4", "--load-dir", str(folder)],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (resumed,) = (tmp_path / "capture" / "da3-splat" / "second" / "nerfstudio_models").glob(CHECKPOINTS)
    assert step_of(resumed) == step_of(last) + 4


def step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def resolved(command: list[str]) -> list[str]:
    """The command as it lies beside this Python."""
    return [str(Path(sys.executable).with_name(command[0])), *command[1:]]


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen]:
    """The command as a process of its own, which does not outlive the block."""
    process = subprocess.Popen(
        resolved(command),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
