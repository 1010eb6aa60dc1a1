"""Losses and metrics against cases worked by hand, gradients against finite differences, and the libraries' own."""

import numpy as np
import pytest
import torch
from scenes import random_cameras
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from da3_splat.data.synthetic import make_scenes
from da3_splat.geometry.alignment import Similarity, transform_cameras
from da3_splat.geometry.poses import encode_cameras
from da3_splat.geometry.projection import rays_from_cameras
from da3_splat.geometry.rotations import quaternion_to_matrix
from da3_splat.losses import (
    CONFIDENCE_WEIGHT,
    camera_loss,
    depth_loss,
    gradient_loss,
    image_loss,
    point_loss,
    ray_loss,
    student_loss,
)
from da3_splat.metrics import absolute_relative_error, psnr, ssim
from da3_splat.training.geometry import normalise_truth
from da3_splat.types import Geometry, RayMap


def test_depth_loss_by_hand():
    """Two valid pixels: errors 1 and 2 with confidence 2 and 1: (2*1 - 0.2 ln 2 + 2) / 2."""
    depth = torch.tensor([[[[2.0, 5.0, 9.0]]]])
    target, confidence = torch.tensor([[[[1.0, 3.0, 1.0]]]]), torch.tensor([[[[2.0, 1.0, 7.0]]]])
    mask = torch.tensor([[[[True, True, False]]]])
    want = (2 - CONFIDENCE_WEIGHT * np.log(2) + 2) / 2
    assert depth_loss(depth, confidence, target, mask).item() == pytest.approx(want)


def test_gradient_loss_by_hand():
    """A constant offset costs nothing; a step of 3 between two of the three columns costs 3 / 2 in x."""
    target = torch.rand(1, 1, 2, 3)
    mask = torch.ones(1, 1, 2, 3, dtype=torch.bool)
    assert gradient_loss(target + 5, target, mask).item() == pytest.approx(0, abs=1e-5)
    stepped = target + torch.tensor([0.0, 3.0, 3.0])
    assert gradient_loss(stepped, target, mask).item() == pytest.approx(1.5, rel=1e-5)
    mask[..., 1] = False  # no pair of neighbours in x is left
    assert gradient_loss(stepped, target, mask).item() == pytest.approx(0, abs=1e-5)


def truth_and_perfect():
    _, truth = make_scenes(2, 3, 28, 42, seed=3, supersample=1)
    truth = normalise_truth(truth)
    rays = rays_from_cameras(truth.cameras, 16, 24)
    perfect = Geometry(
        depth=torch.where(truth.depth > 0, truth.depth, torch.ones(())), confidence=torch.ones_like(truth.depth),
        cameras=truth.cameras, ray_map=rays, camera_encoding=encode_cameras(truth.cameras),
    )  # fmt: skip
    return truth, perfect


def test_a_perfect_prediction_costs_nothing():
    truth, perfect = truth_and_perfect()
    for name, value in student_loss(perfect, truth).items():
        assert value.item() == pytest.approx(0, abs=2e-3 if name == "point" else 1e-5), name


def test_camera_loss_ignores_the_sign_and_length_of_quaternions():
    cameras = random_cameras(batch=2, views=3)
    encoding = encode_cameras(cameras)
    other = torch.cat([encoding[..., :3], -2.5 * encoding[..., 3:7], encoding[..., 7:]], dim=-1)
    assert camera_loss(other, cameras).item() == pytest.approx(0, abs=1e-6)
    other[..., 7:] += 0.25
    assert camera_loss(other, cameras).item() == pytest.approx(0.25, rel=1e-5)


def test_ray_and_point_loss_by_hand():
    zeros, ones = torch.zeros(1, 1, 2, 3, 3), torch.ones(1, 1, 2, 3, 3)
    assert ray_loss(RayMap(directions=ones, origins=2 * ones), RayMap(directions=zeros, origins=zeros)).item() == 3
    depth, mask = torch.full((1, 1, 2, 3), 4.0), torch.ones(1, 1, 2, 3, dtype=torch.bool)
    assert point_loss(depth, RayMap(directions=ones, origins=ones), zeros, mask).item() == 5


def test_truth_is_normalised_whatever_the_world():
    """A similarity of the world changes nothing: first camera at the origin, mean norm of the points 1."""
    _, truth = make_scenes(1, 3, 28, 42, seed=4, supersample=1)
    first = normalise_truth(truth)
    motion = Similarity(torch.tensor([3.0]), quaternion_to_matrix(torch.randn(1, 4)), torch.randn(1, 3))
    moved = Geometry(depth=3 * truth.depth, cameras=transform_cameras(motion, truth.cameras), sky=truth.sky)
    second = normalise_truth(moved)
    assert torch.allclose(first.depth, second.depth, atol=1e-5)
    assert torch.allclose(first.cameras.world_to_camera, second.cameras.world_to_camera, atol=1e-4)
    points = first.points()[first.depth > 0]
    assert points.norm(dim=-1).mean() == pytest.approx(1, abs=1e-4)


def test_gradients_by_finite_differences():
    truth, _ = truth_and_perfect()
    truth = truth.to(torch.float64)
    rays = rays_from_cameras(truth.cameras, 4, 6)
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    inputs = [0.5 + random(2, 3, 28, 42), 1.5 + random(2, 3, 28, 42), rays.directions + 0.3, rays.origins - 0.2]
    inputs = [value.requires_grad_() for value in (*inputs, encode_cameras(truth.cameras) + 0.1 + random(2, 3, 9))]

    def total(depth, confidence, directions, origins, encoding):
        prediction = Geometry(
            depth=depth, confidence=confidence, camera_encoding=encoding,
            ray_map=RayMap(directions=directions, origins=origins),
        )  # fmt: skip
        return sum(student_loss(prediction, truth).values())

    direction = [random(*value.shape) - 0.5 for value in inputs]
    total(*inputs).backward()
    analytic = sum((value.grad * d).sum() for value, d in zip(inputs, direction))
    with torch.no_grad():
        high, low = (total(*(v + sign * 1e-6 * d for v, d in zip(inputs, direction))) for sign in (1, -1))
    assert analytic.item() == pytest.approx(((high - low) / 2e-6).item(), rel=1e-4)


def test_metrics_against_scikit_image():
    generator = torch.Generator().manual_seed(0)
    image, target = torch.rand(2, 3, 40, 56, generator=generator), torch.rand(2, 3, 40, 56, generator=generator)
    target = 0.7 * image + 0.3 * target
    for i in range(2):
        a, b = (x[i].permute(1, 2, 0).numpy() for x in (image, target))
        assert psnr(image, target)[i].item() == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1), rel=1e-4)
        theirs = structural_similarity(
            a, b, channel_axis=2, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ssim(image, target)[i].item() == pytest.approx(theirs, abs=5e-3)
    assert image_loss(image, image).item() == pytest.approx(0, abs=1e-5)


def test_absolute_relative_error_by_hand():
    """Scale 2 is taken out; one of four valid pixels is 50 % off."""
    target = torch.tensor([[[2.0, 4.0, 6.0, 8.0, 0.0]]])
    depth = torch.tensor([[[1.0, 2.0, 3.0, 6.0, 5.0]]])
    assert absolute_relative_error(depth, target).tolist() == pytest.approx([0.125])
