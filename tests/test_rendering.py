"""The CPU rasterizer against the oracle, the oracle against hand numbers and gradcheck."""

from dataclasses import fields, replace

import pytest
import torch
from scenes import random_cameras, random_gaussians

from da3_splat.rendering import reference, render, render_with_screen
from da3_splat.spherical_harmonics import rgb_to_dc
from da3_splat.types import Cameras, Gaussians

FIELDS = ("means", "quats", "scales", "opacities", "sh")


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-12))


def gradients(gaussians, cameras, backend, seed=0, **options):
    """A rendering and the gradients of a random functional of colour, alpha and depth by every input."""
    inputs = {name: getattr(gaussians, name).clone().requires_grad_() for name in FIELDS}
    pose = cameras.world_to_camera.clone().requires_grad_()
    background = torch.tensor([0.2, 0.5, 0.9], dtype=pose.dtype, requires_grad=True)
    rendering = render(
        replace(gaussians, **inputs),
        replace(cameras, world_to_camera=pose),
        background=background,
        backend=backend,
        **options,
    )
    generator = torch.Generator().manual_seed(seed)
    loss = 0
    for value in (rendering.color, rendering.alpha, rendering.alpha * rendering.depth):
        loss = loss + (value * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)).sum()
    loss.backward()
    return rendering, {name: value.grad for name, value in inputs.items()} | {
        "world_to_camera": pose.grad[..., :3, :], "background": background.grad
    }  # fmt: skip


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("antialiased", [False, True])
def test_cpu_equals_oracle(degree, antialiased):
    gaussians = random_gaussians(batch=2, count=120, degree=degree, seed=degree, dtype=torch.float64)
    cameras = random_cameras(batch=2, seed=degree, dtype=torch.float64)
    want, want_gradients = gradients(gaussians, cameras, "reference", antialiased=antialiased)
    got, got_gradients = gradients(
        gaussians.to(torch.float32), cameras.to(torch.float32), "cpu", antialiased=antialiased
    )
    for item in fields(want):
        difference = (getattr(got, item.name) - getattr(want, item.name)).detach().abs().max()
        assert difference < 1e-5 * max(1, float(getattr(want, item.name).detach().abs().max())), item.name
    for name, value in want_gradients.items():
        assert relative(got_gradients[name], value) < 1e-4, name


@pytest.mark.parametrize(
    "options", [dict(radius_clip=3.0), dict(near=3.0, far=4.5), dict(eps2d=0.0), dict(sh_degree=1)]
)
def test_options_equal_oracle(options):
    gaussians = random_gaussians(count=150, degree=2, seed=3, dtype=torch.float64)
    cameras = random_cameras(seed=4, dtype=torch.float64)
    want, want_gradients = gradients(gaussians, cameras, "reference", **options)
    got, got_gradients = gradients(gaussians.to(torch.float32), cameras.to(torch.float32), "cpu", **options)
    assert (got.color - want.color).abs().max() < 1e-5
    for name in ("means", "scales", "opacities", "sh", "world_to_camera"):
        assert relative(got_gradients[name], want_gradients[name]) < 1e-4, name


def test_oracle_gradients_by_finite_differences():
    gaussians = random_gaussians(count=5, degree=1, seed=1, dtype=torch.float64, size=0.5)
    gaussians = replace(gaussians, opacities=gaussians.opacities.clamp(0.1, 0.8))
    cameras = random_cameras(views=1, height=5, width=7, dtype=torch.float64)
    rest = dict(height=5, width=7, near=0.01, far=1e10, eps2d=0.3, radius_clip=0.0, antialiased=False)

    def draw(*inputs):
        picture, alpha, _, _ = reference.rasterize(*inputs, cameras.intrinsics[0, 0], **rest)
        return picture, alpha

    inputs = [getattr(gaussians, name)[0].clone().requires_grad_() for name in FIELDS]
    pose = cameras.world_to_camera[0, 0].clone().requires_grad_()
    assert torch.autograd.gradcheck(draw, (*inputs, pose), eps=1e-7, atol=1e-5)


def one_gaussian(opacity, scale=10.0, z=2.0, color=(0.9, 0.5, 0.1)):
    return Gaussians(
        means=torch.tensor([[[0.0, 0.0, z]]]),
        quats=torch.tensor([[[1.0, 0, 0, 0]]]),
        scales=torch.full((1, 1, 3), scale),
        opacities=torch.tensor([[opacity]]),
        sh=rgb_to_dc(torch.tensor([[[color]]])),
    )


def plain_camera(height=6, width=9):
    intrinsics = torch.tensor([[[[10.0, 0, width / 2], [0, 10.0, height / 2], [0, 0, 1]]]])
    return Cameras(world_to_camera=torch.eye(4)[None, None], intrinsics=intrinsics, height=height, width=width)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_hand_numbers(backend):
    """A huge Gaussian covers the picture evenly: colour and depth follow from its opacity alone."""
    rendering = render(one_gaussian(0.4), plain_camera(), background=torch.tensor([0.0, 0.0, 1.0]), backend=backend)
    centre = rendering.color[0, 0, :, 2, 4]
    assert torch.allclose(centre, torch.tensor([0.36, 0.2, 0.04 + 0.6]), atol=1e-3)
    assert torch.allclose(rendering.alpha[0, 0, 2, 4], torch.tensor(0.4), atol=1e-3)
    assert torch.allclose(rendering.depth[0, 0], torch.tensor(2.0), atol=1e-4)
    two = Gaussians.concatenate(
        [one_gaussian(0.5, z=3.0, color=(0, 0, 1.0)), one_gaussian(0.5, z=2.0, color=(1.0, 0, 0))]
    )
    color = render(two, plain_camera(), backend=backend).color[0, 0, :, 2, 4]
    assert torch.allclose(color, torch.tensor([0.5, 0.0, 0.25]), atol=1e-3)


@pytest.mark.parametrize("count", [0, 1])
def test_zero_and_one_gaussian(count):
    gaussians = one_gaussian(0.7).select(torch.arange(count))
    means = gaussians.means.clone().requires_grad_()
    rendering = render(replace(gaussians, means=means), plain_camera(), backend="cpu")
    rendering.color.sum().backward()
    assert rendering.alpha.detach().max() == pytest.approx(0.7 * count, abs=1e-3)
    assert means.grad.shape == gaussians.means.shape


def test_same_bits_over_runs_and_threads():
    gaussians, cameras = random_gaussians(count=5000, degree=2), random_cameras(height=75, width=110)
    threads = torch.get_num_threads()
    answers = []
    for count in (1, 2, 3, 2):
        torch.set_num_threads(count)
        answers.append(gradients(gaussians, cameras, "cpu"))
    torch.set_num_threads(threads)
    first, first_gradients = answers[0]
    for other, other_gradients in answers[1:]:
        assert torch.equal(first.color, other.color) and torch.equal(first.depth, other.depth)
        assert all(torch.equal(first_gradients[name], other_gradients[name]) for name in first_gradients)


def test_mask_hides_padding():
    gaussians, cameras = random_gaussians(count=50), random_cameras()
    mask = torch.arange(50)[None] < 30
    assert torch.equal(
        render(replace(gaussians, mask=mask), cameras).color, render(gaussians.select(torch.arange(30)), cameras).color
    )


def test_screen_holds_what_densification_needs():
    gaussians, cameras = random_gaussians(count=200), random_cameras(views=1)
    assert not render(gaussians, cameras).color.requires_grad
    gaussians.means.requires_grad_()
    rendering, (screen,) = render_with_screen(gaussians, cameras, absolute=True)
    oracle, (want,) = render_with_screen(
        gaussians.detach().to(torch.float64), cameras.to(torch.float64), backend="reference"
    )
    visible = want.radii[..., 0] > 0
    assert torch.equal(screen.radii, want.radii)
    assert torch.allclose(screen.means2d[visible], want.means2d[visible].float(), atol=1e-3)
    rendering.color.square().sum().backward()
    assert screen.probe.grad.shape == screen.probe.absgrad.shape == (1, 200, 2)
    assert bool((screen.probe.absgrad + 1e-6 >= screen.probe.grad.abs() * 0.999).all())
    assert screen.probe.absgrad.max() > 0


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="backend"):
        render(one_gaussian(0.5), plain_camera(), backend="opengl")
    with pytest.raises(ValueError, match="batch size 1"):
        render(one_gaussian(0.5), random_cameras(batch=2))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="CUDA"):
            render(one_gaussian(0.5), plain_camera(), backend="gsplat")


def test_renders_from_two_threads_and_after_a_fork():
    from concurrent.futures import ThreadPoolExecutor
    from multiprocessing import get_context

    gaussians, cameras = random_gaussians(count=300), random_cameras()
    want = render(gaussians, cameras).color
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: render(gaussians, cameras).color, range(12)):
            assert torch.equal(got, want)
    with get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_checksum, (0,)).get(timeout=60) == _checksum(0)


def _checksum(_):
    torch.set_num_threads(1)
    return float(render(random_gaussians(count=300), random_cameras()).color.detach().double().sum())
