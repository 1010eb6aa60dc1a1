"""Pseudo-labels: RANSAC finds scale and shift among outliers, noise and holes, and says where it cannot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from da3_splat.data.depth_captures import find_depth_scenes, label_path, write_depth_capture
from da3_splat.data.measurement import Measurement, measure
from da3_splat.data.synthetic import make_scenes
from da3_splat.io.depth_maps import read_depth
from da3_splat.training.labelling import label_scene, read_quality, summary
from da3_splat.training.pseudo_labels import LabelConfig, align_to_measured

ROOT = Path(__file__).parents[1]
SCALES, SHIFTS = torch.tensor([0.5, 3.0, 120.0]), torch.tensor([2.0, -0.4, 7.0])


def teacher_depth() -> torch.Tensor:
    """Three pictures 42x56 of depth 0.5 to about 3."""
    _, truth = make_scenes(3, 1, 42, 56, seed=12, supersample=1)
    return truth.depth[:, 0].clamp_min(0.5).clamp_max(6)


def measured_depth(teacher: torch.Tensor, seed: int, outliers=0.4, holes=0.0, noise=0.0) -> torch.Tensor:
    """Depth of SCALES and SHIFTS; a share of outliers anywhere in the range and beyond, holes, relative noise."""
    generator = torch.Generator().manual_seed(seed)
    depth = SCALES[:, None, None] * teacher + SHIFTS[:, None, None]
    depth = depth * (1 + noise * torch.randn(depth.shape, generator=generator))
    far = depth.amax(dim=(1, 2), keepdim=True) * 3 * torch.rand(depth.shape, generator=generator) + 0.01
    depth = torch.where(torch.rand(depth.shape, generator=generator) < outliers, far, depth)
    return torch.where(torch.rand(depth.shape, generator=generator) < holes, 0, depth)


@pytest.mark.parametrize("holes", [0.0, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_ransac_recovers_scale_and_shift_among_outliers(seed, holes):
    """Within 1e-3 with 40 % outliers, of all pixels or of a tenth of them."""
    teacher = teacher_depth()
    fit = align_to_measured(teacher, measured_depth(teacher, seed, holes=holes))
    assert fit.reasons == (None, None, None)
    torch.testing.assert_close(fit.scale, SCALES, rtol=1e-3, atol=0)
    torch.testing.assert_close(fit.shift, SHIFTS, rtol=1e-3, atol=1e-3)
    assert (fit.residual < 1e-3).all() and (fit.agreeing > 0.55).all()
    truth = SCALES[:, None, None] * teacher + SHIFTS[:, None, None]
    torch.testing.assert_close(fit.labels(teacher), truth, rtol=2e-3, atol=2e-3)


def test_ransac_with_noise_is_no_worse_than_least_squares_without_outliers():
    """2 % noise and 40 % outliers: within 2 %, and at least half of the pixels are inliers."""
    teacher = teacher_depth()
    fit = align_to_measured(teacher, measured_depth(teacher, 3, noise=0.02))
    assert fit.reasons == (None, None, None)
    torch.testing.assert_close(fit.scale, SCALES, rtol=0.02, atol=0)
    assert (fit.inliers.float().mean(dim=(1, 2)) >= 0.5).all()


def test_ransac_threshold_is_the_mean_deviation_from_the_median():
    """No outliers: the threshold is that of the residuals of the line, over the pixels of the round before."""
    teacher = teacher_depth()
    measured = measured_depth(teacher, 4, outliers=0.0, noise=0.02)
    fit = align_to_measured(teacher, measured)
    residual = SCALES[:, None, None] * teacher + SHIFTS[:, None, None] - measured
    spread = (residual - residual.flatten(1).median(dim=1).values[:, None, None]).abs().mean(dim=(1, 2))
    torch.testing.assert_close(fit.threshold, spread, rtol=0.1, atol=0)


def test_ransac_does_not_depend_on_the_batch_and_is_deterministic():
    teacher = teacher_depth()
    measured = measured_depth(teacher, 1, noise=0.05, holes=0.5)
    together = align_to_measured(teacher, measured)
    again = align_to_measured(teacher, measured)
    assert torch.equal(together.scale, again.scale) and torch.equal(together.inliers, again.inliers)
    for index in range(3):
        alone = align_to_measured(teacher[[index]], measured[[index]])
        assert torch.equal(alone.scale[0], together.scale[index]) and alone.shift[0] == together.shift[index]


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1000.0])
def test_ransac_works_in_any_unit(unit):
    teacher = teacher_depth()
    fit = align_to_measured(teacher / unit, unit * measured_depth(teacher, 2, noise=0.02))
    same = align_to_measured(teacher, measured_depth(teacher, 2, noise=0.02))
    torch.testing.assert_close(fit.scale, same.scale * unit**2, rtol=1e-4, atol=0)
    assert fit.reasons == same.reasons


def test_ransac_says_when_it_cannot():
    """Too few pixels, a flat teacher, reversed depth, unrelated depth, mostly outliers: a reason each and no label."""
    teacher = teacher_depth()[:1].repeat(6, 1, 1)
    measured = 2 * teacher + 1
    measured[0].flatten()[20:] = 0
    teacher[1] = 3
    measured[2] = 20 - teacher[2]
    generator = torch.Generator().manual_seed(0)
    measured[3] = 1 + 9 * torch.rand(42, 56, generator=generator)
    measured[4] = torch.where(torch.rand(42, 56, generator=generator) < 0.7, measured[3], measured[4])
    measured[5] = 0
    fit = align_to_measured(teacher, measured)
    for reason, words in zip(fit.reasons, ("20 pixels", "one depth", "nearer|agree", "agree", "agree", "0 pixels")):
        assert reason is not None and any(word in reason for word in words.split("|")), (reason, words)
    assert (fit.labels(teacher) == 0).all() and (fit.scale > 0).all()
    assert fit.scale.isfinite().all() and fit.residual.isfinite().all()


def test_pseudo_labels_of_bad_input():
    with pytest.raises(ValueError, match="one shape"):
        align_to_measured(torch.ones(1, 3, 4), torch.ones(1, 4, 3))
    broken = torch.full((1, 8, 9), torch.nan)
    fit = align_to_measured(broken, torch.ones(1, 8, 9), LabelConfig(fewest_pixels=4))
    assert "0 pixels" in fit.reasons[0] and (fit.labels(broken).nan_to_num(0) == 0).all()


def bent(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A teacher that sees the red of a picture as depth, and sky where it is nearly white."""
    return 1 + images[:, 0], (images.min(dim=1).values > 0.99).float()


@pytest.fixture
def capture(tmp_path):
    """Four pictures whose measured depth is 3 * (1 + red) - 1; of the second little is known, the third's is noise,
    the fourth's file is broken."""
    views, truth = make_scenes(1, 4, 56, 84, seed=50, supersample=1)
    depth = 3 * (1 + (views.images[:, :, 0] * 255 + 0.5).floor() / 255) - 1
    depth[0, 1, 1:] = 0
    depth[0, 1, :, 20:] = 0
    depth[0, 2] = 1 + 9 * torch.rand(56, 84, generator=torch.Generator().manual_seed(1))
    write_depth_capture(tmp_path / "data" / "scene", views, depth)
    (tmp_path / "data" / "scene" / "depth" / f"{views.names[3]}.npy").write_bytes(b"no array")
    return tmp_path


def test_pseudo_labels_of_a_scene(capture):
    """Labels where the fit is good, reasons where not; once done, nothing is done again; other settings are refused."""
    (scene,) = find_depth_scenes("captures", capture / "data")
    labels = capture / "labels"
    found = label_scene(scene, bent, labels, {"teacher": "bent"}, resolution=84)
    assert [quality.reason is None for quality in found] == [True, False, False, False]
    assert "20 pixels" in found[1].reason and "agree" in found[2].reason and "cannot be read" in found[3].reason
    assert (found[0].scale, found[0].shift) == pytest.approx((3, -1), abs=1e-3)
    measured = scene.measured()
    label = read_depth(label_path(labels, "scene", measured[0].frame))
    torch.testing.assert_close(label[label > 0], measured[0].read()[label > 0], rtol=1e-3, atol=1e-3)
    assert [path.name for path in sorted((labels / "scene").glob("*.npy"))] == ["view_0000.npy"]
    assert len(list((labels / "scene" / "pictures").iterdir())) == 3

    def never(images):
        raise AssertionError("labelled again")

    assert label_scene(scene, never, labels, {"teacher": "bent"}, resolution=84) == found
    with pytest.raises(ValueError, match="other settings"):
        label_scene(scene, bent, labels, {"teacher": "another"}, resolution=84)
    figures = summary({"scene": found}, {"other": "no transforms.json"})
    assert (figures["frames"], figures["accepted_frames"], len(figures["rejected"])) == (4, 1, 3)
    assert figures["broken_scenes"] == {"other": "no transforms.json"}
    assert summary({}, {})["median_inlier_share"] is None


def test_labels_killed_in_the_middle_of_a_scene(capture):
    """What a killed job left is written anew: no quality.json, so not done."""
    (scene,) = find_depth_scenes("captures", capture / "data")
    labels = capture / "labels"

    class Killed(BaseException):
        pass

    calls = []

    def dying(images):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return bent(images)

    with pytest.raises(Killed):
        label_scene(scene, dying, labels, {}, resolution=84)
    assert read_quality(labels / "scene") is None
    assert len(label_scene(scene, bent, labels, {}, resolution=84)) == 4


@pytest.mark.slow
@pytest.mark.long
def test_label_job_of_pseudo_labels_survives_a_kill(tmp_path):
    """kill -9 after the first scene; two shares do the rest, the first scene is left alone, the report is whole."""
    command = [sys.executable, str(ROOT / "scripts" / "label_depth.py"), "--output", str(tmp_path)]
    command += ["--synthetic-scenes", "5"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    for line in process.stdout:
        if line.startswith("world_0"):
            process.kill()
            break
    process.wait()
    before = (tmp_path / "world_0" / "quality.json").stat().st_mtime_ns
    first = subprocess.run([*command, "--world-size", "2"], capture_output=True, text=True, check=True).stdout
    second = [*command, "--world-size", "2", "--rank", "1", "--json", str(tmp_path / "figures.json")]
    out = subprocess.run(second, capture_output=True, text=True, check=True).stdout
    assert ("others' to do" in first) != ("report.html" in first) and "report.html" in out
    assert (tmp_path / "world_0" / "quality.json").stat().st_mtime_ns == before
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["scenes"] == 5 and figures["frames"] == 20 and figures["accepted_frames"] >= 16
    text = (tmp_path / "report.html").read_text()
    assert text.count("data:image/png;base64,") >= 10 and "http" not in text
    failing = subprocess.run([*command, "--demand", "1.0"], capture_output=True, text=True, check=False)
    assert failing.returncode == 1


def test_measured_depth_for_pseudo_labels_is_as_poor_as_asked():
    depth = torch.full((2, 3, 70, 84), 4.0)
    poor = measure(depth, Measurement(kept=0.4, noise=0.05, outliers=0.1, holes=0.25), seed=3)
    found = poor > 0
    assert found.float().mean() == pytest.approx(0.4 * 0.75, abs=0.02)
    error = poor[found] / 4 - 1
    assert (error.abs() > 0.25).float().mean() == pytest.approx(0.1 * 0.62, abs=0.02)
    assert error[error.abs() < 0.2].std() == pytest.approx(0.055, abs=0.01)
    assert torch.equal(poor, measure(depth, Measurement(0.4, 0.05, 0.1, 0.25), seed=3))
