"""Lifting by hand, exactness of unprojection, the released rules against the official adapter."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scenes import random_cameras

from da3_splat.backbone import create_backbone
from da3_splat.geometry.alignment import Similarity, transform_cameras, transform_gaussians
from da3_splat.geometry.projection import project
from da3_splat.geometry.rotations import quaternion_to_matrix
from da3_splat.heads.lifting import FOOTPRINT, lift, lift_released, raw_channels
from da3_splat.heads.pixel import PixelHead
from da3_splat.heads.plain import PlainHead
from da3_splat.rendering import render
from da3_splat.spherical_harmonics import dc_to_rgb
from da3_splat.types import Cameras, Geometry


def geometry_of(batch=2, views=2, height=6, width=10, dtype=torch.float32):
    cameras = random_cameras(batch=batch, views=views, height=height, width=width, dtype=dtype)
    depth = 2 + torch.rand(batch, views, height, width, dtype=dtype)
    return Geometry(depth=depth, cameras=cameras, confidence=torch.ones_like(depth))


def test_raw_zero_is_naive_lifting():
    geometry, images = geometry_of(), torch.rand(2, 2, 3, 6, 10)
    gaussians = lift(torch.zeros(2, 2, 6, 10, raw_channels(1)), images, geometry)
    assert torch.allclose(gaussians.means, geometry.points().flatten(1, 3), atol=1e-5)
    assert torch.allclose(dc_to_rgb(gaussians.sh[:, :, 0]), images.permute(0, 1, 3, 4, 2).flatten(1, 3), atol=1e-5)
    focal = geometry.cameras.intrinsics.diagonal(dim1=-2, dim2=-1)[..., :2]
    footprint = FOOTPRINT * geometry.depth * (1 / focal).mean(dim=-1)[..., None, None]
    assert torch.allclose(gaussians.scales, footprint.flatten(1)[..., None].expand(-1, -1, 3), rtol=1e-5)
    assert gaussians.source_view[0, 0] == 0 and gaussians.source_view[0, -1] == 1


def test_every_gaussian_lies_on_its_pixels_ray():
    """Moved by tanh(raw) pixels and to depth * exp(raw / 10): projecting back gives exactly that."""
    geometry, images = geometry_of(batch=1), torch.rand(1, 2, 3, 6, 10)
    raw = torch.randn(1, 2, 6, 10, raw_channels(0))
    gaussians = lift(raw, images, geometry)
    for view in range(2):
        mine = gaussians.source_view[0] == view
        pixels, depth = project(gaussians.means[:, mine], geometry.cameras.select([view]))
        x = torch.arange(10) + 0.5 + raw[0, view, ..., 0].tanh()
        y = torch.arange(6)[:, None] + 0.5 + raw[0, view, ..., 1].tanh()
        assert torch.allclose(pixels[0, 0], torch.stack([x, y], dim=-1).reshape(-1, 2), atol=1e-3)
        want = geometry.depth[0, view] * torch.exp(0.1 * raw[0, view, ..., -2])
        assert torch.allclose(depth[0, 0], want.flatten(), rtol=1e-4)


@pytest.mark.parametrize("released", [False, True])
def test_lifting_moves_with_the_world(released):
    """The same maps behind moved cameras give the moved Gaussians (not the released rules' quaternions)."""
    geometry, images = geometry_of(), torch.rand(2, 2, 3, 6, 10)
    raw = torch.randn(2, 2, 6, 10, raw_channels(2))
    motion = Similarity(torch.tensor(1.0), quaternion_to_matrix(torch.randn(4)), torch.randn(3))
    moved = replace(geometry, cameras=transform_cameras(motion, geometry.cameras))
    before, after = (lift_released(raw, g) if released else lift(raw, images, g) for g in (geometry, moved))
    want = transform_gaussians(motion, before)
    for name in ("means", "scales", "opacities", "sh"):
        assert torch.allclose(getattr(after, name), getattr(want, name), atol=1e-4), name
    if not released:
        assert torch.allclose(quaternion_to_matrix(after.quats), quaternion_to_matrix(want.quats), atol=1e-4)


def test_naive_lifting_renders_the_picture_it_came_from():
    """One view, true depth of a plane: rendered from its own camera the picture comes back, nearly."""
    cameras = random_cameras(views=1, height=40, width=60)
    rows, columns = torch.meshgrid(torch.linspace(0, 3, 40), torch.linspace(0, 4, 60), indexing="ij")
    images = torch.stack([0.5 + 0.4 * rows.sin(), 0.5 + 0.4 * columns.cos(), 0.5 + 0.2 * (rows + columns).sin()])[
        None, None
    ]
    geometry = Geometry(depth=torch.full((1, 1, 40, 60), 3.0), cameras=cameras)
    gaussians = PlainHead()(None, images, geometry)
    rendering = render(gaussians, cameras)
    inner = (..., slice(3, -3), slice(3, -3))
    assert (rendering.color[0, 0][inner] - images[0, 0][inner]).abs().mean() < 0.02
    assert (rendering.depth[0, 0][inner] - 3).abs().max() < 0.1


def test_pixel_head_starts_as_naive_lifting_and_learns():
    network = create_backbone("mini").eval()
    head = PixelHead(384, 32, (32, 64, 96, 192), sh_degree=1)
    images = torch.rand(1, 2, 3, 28, 42)
    with torch.no_grad():
        features = network.encode(images)
        geometry = network.decode(features)
    gaussians = head(features, images, geometry)
    plain = PlainHead()(features, images, geometry)
    assert torch.allclose(gaussians.means, plain.means, atol=1e-5)
    assert torch.allclose(gaussians.opacities, plain.opacities, atol=1e-6)
    render(gaussians, geometry.cameras).color.square().mean().backward()
    assert head.scratch.output_conv2[2].weight.grad.abs().max() > 0
    with pytest.raises(ValueError, match="rules"):
        PixelHead(384, 32, (32, 64, 96, 192), rules="official")


@pytest.mark.parametrize("prefix", ["", "gt_"])
def test_released_rules_golden(golden_cases, prefix):
    g = np.load(golden_cases / "geom_gs_adapter.npz")
    raw = torch.cat([torch.from_numpy(g["raw"]), torch.logit(torch.from_numpy(g["opacity"]))[..., None]], dim=-1)
    cameras = lambda name: Cameras(  # noqa: E731
        world_to_camera=torch.from_numpy(g[name]), intrinsics=torch.from_numpy(g["intrinsics"]), height=10, width=14
    )
    geometry = Geometry(
        depth=torch.from_numpy(g["depths"]), cameras=cameras("extrinsics"), confidence=torch.ones(1, 3, 10, 14)
    )
    ours = lift_released(raw, geometry, cameras("gt_extrinsics") if prefix else None)
    for name, values in {
        "means": ours.means, "scales": ours.scales, "rotations": ours.quats,
        "harmonics": ours.sh.transpose(-1, -2), "opacities": ours.opacities,
    }.items():  # fmt: skip
        assert np.allclose(values, g[prefix + name], atol=2e-4, rtol=1e-4), name
