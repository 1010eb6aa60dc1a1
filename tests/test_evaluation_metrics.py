"""Scores against cases counted by hand and against other libraries, on batches and pictures that are not square."""

import numpy as np
import pytest
import torch
from scenes import random_cameras
from skimage.metrics import peak_signal_noise_ratio
from torchmetrics.functional import mean_absolute_percentage_error, mean_squared_error

from da3_splat.evaluation.clouds import cloud_scores, thinned_to_voxels
from da3_splat.evaluation.image_scores import ImageScores
from da3_splat.metrics import (
    aligned_depth,
    depth_errors,
    error_histogram,
    pose_auc,
    pose_errors,
    relative_pose_errors,
)


def test_depth_errors_by_hand():
    target = torch.tensor([[[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]], [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]])
    depth = torch.tensor([[[1.2, 2.0, 3.0], [9.0, -1.0, 0.0]], [[1.3, 1.6, 2.0], [0.5, -1.0, 7.0]]])
    errors = depth_errors(depth, target)
    first = [(0.2 + 0 + 0.25) / 3, (0.04 + 0 + 0.25) / 3, ((0.04 + 0 + 1) / 3) ** 0.5, 2 / 3, 1, 1]
    second = [(0.3 + 0.6 + 1 + 0.5 + 2) / 5, (0.09 + 0.36 + 1 + 0.25 + 4) / 5, (5.7 / 5) ** 0.5, 0, 1 / 5, 2 / 5]
    names = ("absolute_relative", "squared_relative", "root_mean_square", "delta1", "delta2", "delta3")
    for item, want in enumerate((first, second)):
        assert [float(getattr(errors, name)[item]) for name in names] == pytest.approx(want, abs=1e-6)
    with pytest.raises(ValueError, match="item 1: no pixel has a true depth"):
        depth_errors(depth, target * torch.tensor([1.0, 0.0])[:, None, None])
    with pytest.raises(ValueError, match="not finite"):
        depth_errors(depth / 0, target)


def test_depth_errors_against_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    target = 1 + torch.rand(3, 5, 7, generator=generator)
    depth = 1 + torch.rand(3, 5, 7, generator=generator)
    errors = depth_errors(depth, target)
    for item in range(3):
        relative = mean_absolute_percentage_error(depth[item], target[item])
        square = mean_squared_error(depth[item], target[item], squared=False)
        assert float(errors.absolute_relative[item]) == pytest.approx(float(relative), rel=1e-5)
        assert float(errors.root_mean_square[item]) == pytest.approx(float(square), rel=1e-5)


def test_depth_alignment():
    generator = torch.Generator().manual_seed(1)
    target = 1 + torch.rand(2, 5, 7, generator=generator)
    target[:, 0] = 0  # not known: must not count
    off = torch.stack([(target[0] - 0.3) / 2.5, (target[1] + 1) / 0.4])
    off[:, 0] = 1e6
    fitted = aligned_depth(off, target, "scale-shift")
    torch.testing.assert_close(fitted[:, 1:], target[:, 1:], atol=1e-5, rtol=1e-5)
    scaled = aligned_depth(target * torch.tensor([3.0, 0.2])[:, None, None], target, "scale")
    torch.testing.assert_close(scaled, target, atol=1e-5, rtol=1e-5)
    assert aligned_depth(off, target, "none") is off
    # The least squares of numpy on noisy values, and the median by hand.
    noisy = target + 0.3 * torch.rand(2, 5, 7, generator=generator)
    for item in range(2):
        known = target[item] > 0
        matrix = np.stack([noisy[item][known].numpy(), np.ones(int(known.sum()))], axis=1)
        a, b = np.linalg.lstsq(matrix, target[item][known].numpy(), rcond=None)[0]
        got = aligned_depth(noisy, target, "scale-shift")[item]
        np.testing.assert_allclose(got.numpy(), a * noisy[item].numpy() + b, rtol=1e-4)
    three, truth = torch.tensor([[1.0, 2.0, 5.0]]), torch.tensor([[2.0, 6.0, 5.0]])  # ratios 2, 3, 1
    assert aligned_depth(three, truth, "scale").tolist() == [[2.0, 4.0, 10.0]]


def test_histogram_and_auc_by_hand():
    errors = torch.tensor([[0.5, 1.0, 2.9, 40.0], [0.0, 0.0, 0.0, 0.99]], dtype=torch.float64)
    assert error_histogram(errors, 3).tolist() == [[1, 1, 1], [4, 0, 0]]
    # Recall of the first set: 1/4 below 1 degree, 2/4 below 2, 3/4 below 3, and no more up to 5.
    assert pose_auc(errors, 3).tolist() == pytest.approx([(0.25 + 0.5 + 0.75) / 3, 1.0])
    assert pose_auc(errors, 5).tolist() == pytest.approx([(0.25 + 0.5 + 3 * 0.75) / 5, 1.0])


def test_auc_is_the_cumulated_histogram():
    """As the published code computes it: np.histogram in 1-degree bins, the mean of its cumulated shares."""
    errors = 45 * torch.rand(2, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for threshold in (3, 5, 15, 30):
        for item in range(2):
            counts, _ = np.histogram(errors[item].numpy(), bins=np.arange(threshold + 1))
            assert error_histogram(errors, threshold)[item].tolist() == counts.tolist()
            published = np.cumsum(counts / errors.shape[1]).mean()
            assert float(pose_auc(errors, threshold)[item]) == pytest.approx(published)


def test_pair_errors_are_the_larger_ones():
    predicted, true = random_cameras(batch=2, views=4, seed=3), random_cameras(batch=2, views=4, seed=4)
    rotation, direction = relative_pose_errors(predicted, true)
    errors = pose_errors(predicted, true)
    assert errors.shape == (2, 6)
    assert bool((errors >= rotation).all()) and bool((errors >= direction).all())
    assert bool(((errors == rotation) | (errors == direction)).all())
    alone = pose_errors(predicted.item(1), true.item(1))
    torch.testing.assert_close(alone[0], errors[1])
    with pytest.raises(ValueError, match="V of 2 or more"):
        relative_pose_errors(predicted.select([0]), true.select([0]))


def test_clouds_by_hand():
    """Four points found and three true ones: 2 of 4 within 0.5 of a true one, 2 of 3 true ones found."""
    true = np.array([[0.0, 0, 0], [4.0, 0, 0], [0.0, 3.0, 0]])
    found = np.array([[0.0, 0, 0.4], [4.0, 0.0, 0.0], [4.0, 2.0, 0.0], [0.0, 0.0, -1.0]])
    scores = cloud_scores(found, true, 0.5)
    to_true, to_found = [0.4, 0.0, 2.0, 1.0], [0.4, 0.0, np.sqrt(9 + 0.16)]
    assert scores.accuracy == pytest.approx(np.mean(to_true))
    assert scores.completeness == pytest.approx(np.mean(to_found))
    assert scores.chamfer == pytest.approx((np.mean(to_true) + np.mean(to_found)) / 2)
    assert (scores.precision, scores.recall) == (0.5, pytest.approx(2 / 3))
    assert scores.f1 == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))
    assert cloud_scores(found, true, 0.4).precision == 0.25  # at the threshold is beyond it
    assert cloud_scores(found + 100, true, 0.5).f1 == 0.0
    same = cloud_scores(true, true, 1e-9)
    assert same.f1 == 1.0 and same.chamfer == 0.0
    for wrong in (true[:0], true * np.nan, true[:, :2]):
        with pytest.raises(ValueError, match="found"):
            cloud_scores(wrong, true, 0.5)
    with pytest.raises(ValueError, match="threshold"):
        cloud_scores(found, true, 0.0)


def test_voxels_by_hand():
    points = np.array([[0.1, 0.1, 0.1], [0.3, 0.1, 0.5], [-0.1, 0.1, 0.1], [1.9, 0.0, 0.0]])
    thinned = thinned_to_voxels(points, 1.0)
    want = [[-0.1, 0.1, 0.1], [0.2, 0.1, 0.3], [1.9, 0.0, 0.0]]
    np.testing.assert_allclose(sorted(thinned.tolist()), want)


def test_masked_pictures():
    generator = torch.Generator().manual_seed(5)
    picture, truth = torch.rand(2, 3, 24, 37, generator=generator)
    mask = torch.ones(24, 37, dtype=torch.bool)
    mask[:, 20:] = False
    scores = ImageScores(missing={"vgg": "none here", "alex": "none here"})
    masked = scores(picture, truth, mask)
    want = peak_signal_noise_ratio(truth[:, :, :20].numpy(), picture[:, :, :20].numpy(), data_range=1)
    assert masked["psnr"] == pytest.approx(want, abs=1e-3)
    changed = picture.clone()
    changed[:, :, 20:] = 0.123
    assert scores(changed, truth, mask) == masked != scores(changed, truth)
    assert masked["lpips_vgg"] is None and masked["lpips_alex"] is None
    assert scores(2 * picture, truth)["psnr"] == pytest.approx(scores((2 * picture).clamp(0, 1), truth)["psnr"])
    with pytest.raises(ValueError, match="not finite"):
        scores(picture / 0, truth)
    with pytest.raises(ValueError, match="no pixel"):
        scores(picture, truth, ~torch.ones_like(mask))


def test_lpips_is_real_or_missing():
    """Without weights there is a reason and no number; with a distance given, its number is reported."""
    found = ImageScores.available()
    assert set(found.perceptual) | set(found.missing) == {"vgg", "alex"}
    assert not set(found.perceptual) & set(found.missing)
    picture, truth = torch.rand(2, 3, 33, 40)
    scores = ImageScores(perceptual={"alex": lambda a, b: (a - b).abs().mean(dim=(1, 2, 3))})(picture, truth)
    assert scores["lpips_alex"] == pytest.approx(float((picture - truth).abs().mean()))
    assert scores["lpips_vgg"] is None
