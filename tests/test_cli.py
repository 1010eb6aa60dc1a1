"""The command line, in process: results on disk, one line and exit code 2 for what a user gets wrong."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from captures import small_capture
from PIL import Image

from da3_splat import load_ply, load_views, render
from da3_splat.check.run import Check
from da3_splat.cli import main
from da3_splat.io.ply import load_points, save_points
from da3_splat.metrics import psnr


def run(capsys, *arguments):
    """Exit code, standard output, standard error."""
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_reconstruct_a_capture(tmp_path, capsys):
    capture, output = small_capture(tmp_path / "capture", views=3), tmp_path / "out"
    code, out, err = run(capsys, "reconstruct", capture, "--output", output, "--resolution", 84, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["views"] == 3 and report["poses"] == "given" and report["scale_source"] == "sparse points"
    assert load_ply(output / "scene.ply").means.shape[1] == report["gaussians_written"]
    depth = np.load(output / "depth.npz")
    assert depth["depth"].shape == (3, 56, 84) and depth["world_to_camera"].shape == (3, 4, 4)
    assert Image.open(output / "depth" / "view_0000.png").size == (84, 56)
    again, first = load_views(output, resolution=84), load_views(capture, resolution=84)
    assert np.allclose(again.cameras.world_to_camera, first.cameras.world_to_camera, atol=1e-5)
    assert again.points is not None


def test_reconstruct_two_photos_without_poses(tmp_path, capsys):
    capture = small_capture(tmp_path / "capture", views=2)
    code, out, err = run(capsys, "reconstruct", capture / "images", "--output", tmp_path / "out", "--resolution", 84)
    assert code == 0 and "2 views (da3 poses, scale: none)" in out and out.count("note:") == 1, err
    assert len(out.splitlines()[0]) < 250
    assert "the poses found are doubtful: --poses colmap" in err
    code, _, err = run(capsys, "reconstruct", capture / "images", "--output", tmp_path / "o", "--poses", "given")
    assert code == 2 and "has no cameras" in err
    code, out, _ = run(capsys, "reconstruct", capture, "--output", tmp_path / "o", "--poses", "da3", "--resolution", 84)
    assert code == 0 and "da3 poses" in out


def test_depth_that_is_off_at_the_sparse_points_is_said(tmp_path, capsys):
    """A capture whose points lie at other depths than the network's: a note, unless refinement starts from them."""
    capture = small_capture(tmp_path / "capture", views=3)
    content = json.loads((capture / "transforms.json").read_text())
    code, out, err = run(capsys, "reconstruct", capture, "--output", tmp_path / "plain", "--resolution", 84, "--json")
    assert code == 0 and 0 < json.loads(out)["depth_error_at_points"] < 0.5, err
    points, colors = load_points(capture / content["ply_file_path"])
    middle = load_views(capture).cameras.centers[0].mean(dim=0).numpy()
    stretch = np.exp(0.5 * np.random.default_rng(0).standard_normal((len(points), 1)))
    save_points(middle + (points - middle) * stretch, colors, capture / content["ply_file_path"])
    code, _, err = run(capsys, "reconstruct", capture, "--output", tmp_path / "out", "--resolution", 84)
    assert code == 0 and "off at the sparse points of this capture: --refine 1m starts from those" in err


def bad_inputs(folder):
    (folder / "empty").mkdir()
    (folder / "text").mkdir()
    (folder / "text" / "a.jpg").write_text("hello")
    capture = small_capture(folder / "missing", views=2)
    (capture / "images" / "view_0001.png").unlink()
    yield folder / "nowhere", "nowhere"
    yield folder / "empty", "no images"
    yield folder / "text", "a.jpg: not a readable image (of no format known here)"
    yield capture, "view_0001.png: no such image"


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    for source, message in bad_inputs(tmp_path):
        code, out, err = run(capsys, "reconstruct", source, "--output", tmp_path / "out")
        assert code == 2 and message in err and len(err.strip().splitlines()) == 1 and not out
    assert not (tmp_path / "out").exists()
    capture = small_capture(tmp_path / "capture", views=2)
    code, _, err = run(
        capsys, "reconstruct", capture, "--output", tmp_path / "out", "--model", tmp_path / "no.safetensors"
    )
    assert code == 2 and "no.safetensors" in err
    (tmp_path / "file").write_text("x")
    code, _, err = run(capsys, "reconstruct", capture, "--output", tmp_path / "file" / "out", "--resolution", 84)
    assert code == 2 and len(err.strip().splitlines()) == 1


def test_the_input_is_never_overwritten(tmp_path, capsys):
    capture = small_capture(tmp_path / "capture", views=2)
    before = {path: path.read_bytes() for path in capture.rglob("*") if path.is_file()}
    for source in (capture, capture / "transforms.json", capture / "images"):
        code, _, err = run(capsys, "reconstruct", source, "--output", capture, "--resolution", 84)
        assert code == 2 and "would replace the input" in err
    assert before == {path: path.read_bytes() for path in capture.rglob("*") if path.is_file()}


def test_a_device_that_is_not_there(tmp_path, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one here")
    capture = small_capture(tmp_path / "capture", views=2)
    code, _, err = run(capsys, "reconstruct", capture, "--output", tmp_path / "o", "--device", "cuda")
    assert code == 2 and "--device cuda: torch finds no CUDA device here" in err


def test_a_gpu_that_is_too_small(tmp_path, capsys, monkeypatch):
    import torch

    def too_much(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr("da3_splat.model.load_model", too_much)
    capture = small_capture(tmp_path / "capture", views=2)
    code, _, err = run(capsys, "reconstruct", capture, "--output", tmp_path / "o", "--resolution", 84)
    assert code == 2 and "the GPU ran out of memory; use fewer views (--max-views) or a lower --resolution" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "options, message",
    [
        (["--overlap", 2], "--overlap: only with --chunk"),
        (["--chunk", 4, "--overlap", 4], "--chunk, --overlap: expected 1 <= overlap < chunk, got 4 and 4"),
        (["--chunk", 3, "--overlap", 1, "--rays", "predicted"], "--rays predicted: not by chunks"),
        (["--max-memory", "much"], "--max-memory: expected a size such as 8GB or 512MB, got 'much'"),
    ],
)
def test_options_that_do_not_go_together(options, message, tmp_path, capsys):
    capture = small_capture(tmp_path / "capture", views=5)
    code, _, err = run(capsys, "reconstruct", capture, "--output", tmp_path / "o", "--resolution", 84, *options)
    assert code == 2 and message in err.splitlines()[-1]


def test_ctrl_c_and_what_is_our_fault(tmp_path, capsys, monkeypatch):
    """130 and a line; a mistake of ours keeps its traceback (Python then leaves with 1)."""

    def stopped(*_):
        raise KeyboardInterrupt

    def broken(*_):
        raise RuntimeError("ours")

    monkeypatch.setattr("da3_splat.demo.run_demo", stopped)
    code, out, err = run(capsys, "demo", "--output", tmp_path)
    assert code == 130 and err.strip() == "da3-splat: interrupted" and not out
    monkeypatch.setattr("da3_splat.demo.run_demo", broken)
    with pytest.raises(RuntimeError, match="ours"):
        main(["demo", "--output", str(tmp_path)])


def test_demo(tmp_path, capsys):
    code, _, err = run(capsys, "demo", "--output", tmp_path / "demo", "--steps", -5)
    assert code == 2 and "--steps: expected at least 0, got -5" in err and not (tmp_path / "demo").exists()
    code, out, err = run(capsys, "demo", "--output", tmp_path / "demo", "--steps", 30, "--json")
    assert code == 0, err
    figures = json.loads(out)
    assert figures["psnr_refined_db"] > figures["psnr_feed_forward_db"] + 1
    assert Image.open(tmp_path / "demo" / "demo.png").size == (4 * 224 + 3 * 6, 168)
    assert load_ply(tmp_path / "demo" / "scene.ply").means.shape[1] == figures["gaussians"]


def test_reconstruct_options_and_export(tmp_path, capsys):
    """Fusion and its limits, skipping unreadable pictures, other formats, and exporting the result again."""
    capture = small_capture(tmp_path / "capture", views=4)
    photos = capture / "images"
    (photos / "broken.png").write_bytes((photos / "view_0000.png").read_bytes()[:60])
    common = ("reconstruct", photos, "--resolution", 84, "--json")
    code, _, err = run(capsys, *common, "--output", tmp_path / "a")
    assert code == 2 and "broken.png: not a readable image" in err and not (tmp_path / "a").exists()
    code, out, err = run(capsys, *common, "--output", tmp_path / "a", "--skip-unreadable", "--no-fusion")
    plain = json.loads(out)
    assert code == 0 and plain["views"] == 4 and plain["pixels"] == 4 * 56 * 84 and "left out: " in err
    assert plain["gaussians"] > 0.9 * plain["pixels"]
    code, out, _ = run(
        capsys, *common, "--output", tmp_path / "b", "--skip-unreadable", "--max-gaussians", 2000, "--prune", 0.2,
        "--export", "splat,colmap,glb",
    )  # fmt: skip
    fused = json.loads(out)
    assert (
        code == 0 and fused["gaussians"] == 2000 and fused["dropped_invalid"] >= 0.2 * 4 * 56 * 84 - 40
    )  # but for ties
    assert (tmp_path / "b" / "sparse" / "0" / "points3D.bin").is_file() and (tmp_path / "b" / "points.glb").is_file()
    code, out, err = run(
        capsys, "export", tmp_path / "b", "--output", tmp_path / "c", "--to", "transforms,ply", "--json"
    )
    assert code == 0, err
    assert {Path(path).name for path in json.loads(out)} == {"scene.ply", "transforms.json", "sparse_pc.ply"}
    code, out, err = run(
        capsys, "reconstruct", tmp_path / "c", "--output", tmp_path / "d", "--rays", "predicted", "--json"
    )
    assert code == 0 and json.loads(out)["poses"] == "given"
    for arguments, message in (
        (("export", tmp_path / "b", "--output", tmp_path / "e", "--to", "obj"), "expected some of ply"),
        (("export", capture, "--output", tmp_path / "e"), "no scene.ply in this folder"),
        (("export", tmp_path / "b", "--output", capture), "exists already; choose another --output"),
        ((*common, "--output", tmp_path / "e", "--max-gaussians", 0), "--max-gaussians: expected at least 1"),
        ((*common, "--output", tmp_path / "e", "--prune", 1.5), "--prune: expected a share"),
        ((*common, "--output", tmp_path / "e", "--export", "stl"), "expected some of ply"),
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 2 and message in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "e").exists()


def test_check(capsys):
    """Every row of the table passes, and a broken rasterizer is noticed."""
    code, out, err = run(capsys, "check", "--json")
    rows = json.loads(out)
    assert code == 0 and all(row["passed"] for row in rows), rows
    assert {row["name"].split("_")[0] for row in rows} >= {"mini", "small", "base"} and len(rows) >= 12
    assert not replace(Check("x", 1.0, "m", 0.5)).passed


def test_info_and_help(capsys):
    code, out, _ = run(capsys, "info", "--json")
    assert code == 0 and json.loads(out)["torch"] != "not installed"
    assert {"weights in caches", "cuda of torch", "viser", "embedded weights"} <= set(json.loads(out))
    for command in ([], ["demo"], ["reconstruct"], ["view"], ["evaluate"], ["export"], ["check"], ["info"]):
        code, out, _ = run(capsys, *command, "--help")
        assert code == 0 and "usage: da3-splat" in out
        assert not command or "Try:" in out
    code, out, _ = run(capsys, "reconstruct", "--help")
    assert "da3-splat reconstruct photos/ --output scene/" in out


@pytest.mark.parametrize("command", [[], ["reconstruct"], ["evaluate", "novel-views"]], ids=" ".join)
def test_help_imports_nothing_heavy(command):
    heavy = [
        "torch",
        "numpy",
        "scipy",
        "PIL",
        "cv2",
        "av",
        "numba",
        "timm",
        "pycolmap",
        "gsplat",
        "viser",
        "nerfstudio",
        "trimesh",
        "h5py",
    ]
    code = (
        "import sys\nfrom da3_splat.cli import main\n"
        f"try: main([*{command}, '--help'])\nexcept SystemExit: pass\n"
        f"print([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "usage: da3-splat" in result.stdout
    assert result.stderr.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "typed, offered",
    [
        (["da3-splat", "rec"], {"reconstruct"}),
        (["da3-splat", "evaluate", "n"], {"novel-views"}),
        (["da3-splat", "reconstruct", "--poses", ""], {"auto", "da3", "colmap", "given"}),
        (["da3-splat", "reconstruct", "--max-v"], {"--max-views"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bash_completes(typed, offered, tmp_path, capsys):
    """The script as the quick start has it written, sourced by bash."""
    script = tmp_path / "completion"
    assert run(capsys, "--tyro-write-completion", "bash", script)[0] == 0
    words = " ".join(f"'{word}'" for word in typed)
    asked = f"COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}; _tyro_da3_splat; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", f"source {script} && {asked}"], capture_output=True, text=True)
    assert set(done.stdout.split()) == offered, done.stderr


def test_zsh_reads_its_completion(tmp_path, capsys):
    script = tmp_path / "_da3-splat"
    assert run(capsys, "--tyro-write-completion", "zsh", script)[0] == 0
    text = script.read_text()
    assert text.startswith("#compdef da3-splat\n") and "reconstruct" in text and "--max-views" in text
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed; it reads what was written")
    assert subprocess.run(["zsh", "-n", script]).returncode == 0


@pytest.mark.slow
def test_poses_from_colmap(captures, tmp_path, capsys):
    code, out, err = run(
        capsys, "reconstruct", captures / "fox" / "images", "--output", tmp_path, "--poses", "colmap",
        "--resolution", 168, "--refine", 40, "--json",
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(out.strip().splitlines()[-1])
    assert report["views"] >= 12 and report["scale_source"] == "sparse points" and report["poses"] == "colmap"
    # COLMAP's points are the start, and its poses, which are not its last word, stay.
    assert report["start"].startswith("sparse points") and report["refine_steps"] == 40
    assert report["refined_psnr_db"] > 15


def test_reconstruct_and_refine(tmp_path, capsys):
    """By steps and by the clock; poses that were found move, given ones stay; scene and cameras fit together."""
    capture = small_capture(tmp_path / "capture", views=5)
    common = ["--resolution", 84, "--max-gaussians", 3000, "--json"]
    code, out, err = run(capsys, "reconstruct", capture, "--output", tmp_path / "a", "--refine", 40, *common)
    report = json.loads(out)
    assert code == 0 and report["refine_steps"] == 40 and "sparse points" in report["start"], err
    given, written = load_views(capture, resolution=84), load_views(tmp_path / "a", resolution=84)
    assert np.allclose(written.cameras.world_to_camera, given.cameras.world_to_camera, atol=1e-5)
    pictures = render(load_ply(tmp_path / "a" / "scene.ply"), written.cameras).color[0].clamp(0, 1)
    assert float(psnr(pictures, written.images[0]).mean()) == pytest.approx(report["refined_psnr_db"], abs=1.5)
    photos = ["reconstruct", capture / "images", "--refine", "1.5s", *common]
    code, out, err = run(capsys, *photos, "--output", tmp_path / "b")
    moved = load_views(tmp_path / "b", resolution=84).cameras.world_to_camera
    assert code == 0 and json.loads(out)["refine_steps"] > 0, err
    code, out, err = run(capsys, *photos, "--output", tmp_path / "c", "--refine-poses", "no")
    still = load_views(tmp_path / "c", resolution=84).cameras.world_to_camera
    assert code == 0 and not np.allclose(moved, still, atol=1e-4), err
    code, _, err = run(capsys, "reconstruct", capture, "--output", tmp_path / "d", "--refine", "soon")
    assert code == 2 and "--refine: expected a time such as 30s or 2m" in err and not (tmp_path / "d").exists()
