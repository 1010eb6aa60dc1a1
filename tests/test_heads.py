"""Lifting by hand, exactness of unprojection, the released rules against the official adapter."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scenes import random_cameras

from da3_splat.backbone import create_backbone
from da3_splat.geometry.alignment import Similarity, transform_cameras, transform_gaussians
from da3_splat.geometry.projection import project, rays_from_cameras
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
    assert gaussians.source_view[0, 0] == 0 and gaussians.source_view[0, -1] == 1


def test_gaussians_cover_a_slanted_plane_evenly():
    """On a tilted plane each disc lies in the plane, and seen from its own camera it is as wide as FOOTPRINT pixels."""
    cameras = random_cameras(batch=1, views=1, height=14, width=20)
    normal, offset = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, -1.0]), dim=0), -5.0
    rays = rays_from_cameras(cameras)
    depth = (offset - rays.origins @ normal) / (rays.directions @ normal)
    assert bool((depth > 0).all())
    gaussians = lift(
        torch.zeros(1, 1, 14, 20, raw_channels(0)),
        torch.rand(1, 1, 3, 14, 20),
        Geometry(depth=depth, cameras=cameras),
    )
    axes = quaternion_to_matrix(gaussians.quats)
    assert ((axes[..., 2] @ normal).abs() > 1 - 1e-4).all()
    in_camera = cameras.world_to_camera[:, 0, :3, :3] @ axes @ torch.diag_embed(gaussians.scales)
    z = depth.flatten(1)
    points = gaussians.means @ cameras.world_to_camera[:, 0, :3, :3].transpose(1, 2)
    points = points + cameras.world_to_camera[:, 0, :3, 3]
    slope = torch.zeros(1, z.shape[1], 2, 3)
    fx, fy = cameras.intrinsics[0, 0, 0, 0], cameras.intrinsics[0, 0, 1, 1]
    slope[..., 0, 0], slope[..., 0, 2] = fx / z, -fx * points[..., 0] / z**2
    slope[..., 1, 1], slope[..., 1, 2] = fy / z, -fy * points[..., 1] / z**2
    drawn = slope @ in_camera
    covariance = drawn @ drawn.transpose(-1, -2)
    want = FOOTPRINT**2 * torch.eye(2)
    inner = torch.zeros(14, 20, dtype=torch.bool)
    inner[1:-1, 1:-1] = True  # at the border differences are to one side
    assert torch.allclose(covariance[0, inner.flatten()], want.expand(12 * 18, 2, 2), atol=0.03)


@pytest.mark.parametrize("views", [1, 2])
def test_predicted_rays_of_a_pinhole_are_the_cameras_rays(views):
    """A ray map of 4/7 the size, upsampled, places Gaussians where the cameras' own rays do; B > 1, off-centre K."""
    cameras = random_cameras(batch=2, views=views, height=14, width=28)
    geometry = Geometry(
        depth=2 + torch.rand(2, views, 14, 28), cameras=cameras, ray_map=rays_from_cameras(cameras, 8, 16)
    )
    raw, images = torch.randn(2, views, 14, 28, raw_channels(0)), torch.rand(2, views, 3, 14, 28)
    direct, mapped = (lift(raw, images, geometry, rays).means for rays in ("cameras", "predicted"))
    assert torch.allclose(direct, mapped, atol=1e-4)
    with pytest.raises(ValueError, match="needs geometry.ray_map"):
        lift(raw, images, replace(geometry, ray_map=None), "predicted")
    with pytest.raises(ValueError, match="cameras or predicted"):
        lift(raw, images, geometry, "both")


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
