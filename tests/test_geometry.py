"""Projection, rays, poses and similarities against hand numbers, round trips and what the official code computed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scenes import random_cameras, random_gaussians

from da3_splat.geometry.alignment import Similarity, ransac_similarity, transform_cameras, transform_gaussians, umeyama
from da3_splat.geometry.frames import baseline_scale, cameras_for_encoder, relative_to_first
from da3_splat.geometry.poses import cameras_from_rays, decode_cameras, encode_cameras, intrinsics_matrix
from da3_splat.geometry.projection import inverse_intrinsics, pixel_grid, project, rays_from_cameras, unproject
from da3_splat.geometry.rotations import matrix_to_quaternion, quaternion_multiply, quaternion_to_matrix, rotation_angle
from da3_splat.rendering import render
from da3_splat.types import Cameras, RayMap


def cameras_of(world_to_camera, intrinsics, height, width):
    world_to_camera = torch.as_tensor(world_to_camera).double()
    if world_to_camera.shape[-2] == 3:
        bottom = torch.tensor([0, 0, 0, 1.0]).double().expand(*world_to_camera.shape[:-2], 1, 4)
        world_to_camera = torch.cat([world_to_camera, bottom], dim=-2)
    return Cameras(
        world_to_camera=world_to_camera, intrinsics=torch.as_tensor(intrinsics).double(), height=height, width=width
    )


def random_rotations(*shape):
    return quaternion_to_matrix(torch.randn(*shape, 4, dtype=torch.float64))


def test_projection_by_hand():
    """Focal 10, centre (4.5, 3): the point (1, 2, 5) falls on (4.5 + 10/5, 3 + 20/5) at depth 5."""
    cameras = cameras_of(torch.eye(4)[None, None], [[[[10.0, 0, 4.5], [0, 10, 3], [0, 0, 1]]]], 6, 9)
    pixels, depth = project(torch.tensor([[1.0, 2.0, 5.0]]).double(), cameras)
    assert pixels[0, 0, 0].tolist() == [6.5, 7.0] and depth[0, 0, 0] == 5
    assert pixel_grid(2, 3, torch.ones(())).tolist()[1][2] == [2.5, 1.5, 1.0]


def test_unproject_then_project():
    cameras = random_cameras(batch=2, views=3, height=17, width=29, dtype=torch.float64)
    depth = 1 + torch.rand(2, 3, 17, 29, dtype=torch.float64)
    points = unproject(depth, cameras)
    for view in range(3):
        pixels, z = project(points[:, view].flatten(1, 2), cameras.select([view]))
        grid = pixel_grid(17, 29, depth)[..., :2].reshape(-1, 2)
        assert torch.allclose(pixels[:, 0], grid.expand(2, -1, -1), atol=1e-9)
        assert torch.allclose(z[:, 0], depth[:, view].flatten(1), atol=1e-12)


def test_inverse_intrinsics():
    k = intrinsics_matrix(*torch.rand(4, 5, dtype=torch.float64) + 1)
    k[..., 0, 1] = 0.3
    assert torch.allclose(inverse_intrinsics(k), torch.linalg.inv(k), atol=1e-12)
    with pytest.raises(ValueError, match="singular"):
        inverse_intrinsics(torch.zeros(3, 3))


def test_quaternions():
    rotation = random_rotations(50)
    quats = matrix_to_quaternion(rotation)
    assert torch.allclose(quaternion_to_matrix(quats), rotation, atol=1e-12) and bool((quats[:, 0] >= 0).all())
    half_turns = torch.diag_embed(torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]]).double())
    assert torch.allclose(quaternion_to_matrix(matrix_to_quaternion(half_turns)), half_turns)
    other = torch.randn(50, 4, dtype=torch.float64)
    product = quaternion_to_matrix(quaternion_multiply(quats, other))
    assert torch.allclose(product, rotation @ quaternion_to_matrix(other), atol=1e-12)
    small = torch.tensor([1.0, 5e-9, 0, 0]).double()
    assert rotation_angle(torch.eye(3).double(), quaternion_to_matrix(small)) == pytest.approx(1e-8, rel=1e-6)


def random_posed_cameras(offset=0.0, height=280, width=504):
    generator = torch.Generator().manual_seed(int(100 * offset))
    rand = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    pose = torch.eye(4, dtype=torch.float64).repeat(2, 3, 1, 1)
    pose[..., :3, :3] = quaternion_to_matrix(rand(2, 3, 4) - 0.5)
    pose[..., :3, 3] = rand(2, 3, 3) - 0.5
    shift = offset * (2 * rand(2, 2, 3).round() - 1)
    intrinsics = intrinsics_matrix(
        width * (0.5 + 0.4 * rand(2, 3)),
        width * (0.5 + 0.4 * rand(2, 3)),
        (1 + shift[0]) * width / 2,
        (1 + shift[1]) * height / 2,
    )
    return cameras_of(pose, intrinsics, height, width)


@pytest.mark.parametrize("outliers, degrees", [(0.0, 0.01), (0.15, 0.1), (0.35, 0.1)])
@pytest.mark.parametrize("offset", [0.0, 0.2])
def test_cameras_from_rays(offset, outliers, degrees):
    """Exact for off-centre principal points; directions of any length; outliers are ignored; equal for equal input."""
    cameras = random_posed_cameras(offset)
    rays = rays_from_cameras(cameras, 24, 32)
    generator = torch.Generator().manual_seed(1)
    bad = torch.rand(rays.directions.shape[:-1], generator=generator) < outliers
    directions = rays.directions * (0.5 + torch.rand(*rays.directions.shape[:-1], 1, generator=generator))
    directions[bad] = torch.randn(int(bad.sum()), 3, generator=generator, dtype=torch.float64)
    origins = rays.origins + bad[..., None] * torch.randn(rays.origins.shape, generator=generator, dtype=torch.float64)
    noisy = RayMap(directions=directions, origins=origins)
    found = cameras_from_rays(noisy, cameras.height, cameras.width)
    angle = rotation_angle(found.world_to_camera[..., :3, :3], cameras.world_to_camera[..., :3, :3])
    assert torch.rad2deg(angle).max() < degrees
    relative = (found.intrinsics - cameras.intrinsics).abs().amax() / cameras.width
    assert relative < (1e-4 if outliers == 0 else 1e-3)
    assert (found.centers - cameras.centers).abs().max() < 1e-4
    assert torch.equal(cameras_from_rays(noisy, cameras.height, cameras.width).intrinsics, found.intrinsics)


def test_camera_encoding_round_trip():
    cameras = random_posed_cameras()
    decoded = decode_cameras(encode_cameras(cameras), cameras.height, cameras.width)
    assert torch.allclose(decoded.world_to_camera, cameras.world_to_camera, atol=1e-9)
    assert torch.allclose(decoded.intrinsics, cameras.intrinsics, rtol=1e-9)


def test_umeyama_and_ransac():
    source = torch.randn(2, 30, 3, dtype=torch.float64)
    true = Similarity(torch.tensor([2.5, 0.3]).double(), random_rotations(2), torch.randn(2, 3, dtype=torch.float64))
    found = umeyama(source, true.apply(source))
    for name in ("scale", "rotation", "translation"):
        assert torch.allclose(getattr(found, name), getattr(true, name), atol=1e-9)
    back = true.inverse().apply(true.apply(source))
    assert torch.allclose(back, source, atol=1e-9)
    weights = torch.ones(2, 30).double()
    weights[:, :5] = 0
    broken = true.apply(source)
    broken[:, :5] += 100
    assert torch.allclose(umeyama(source, broken, weights).scale, true.scale, atol=1e-9)
    target = true.apply(source)[0]
    target[:12] = 50 * torch.randn(12, 3, dtype=torch.float64)
    similarity, inliers = ransac_similarity(source[0], target, threshold=0.01)
    assert inliers.tolist() == [False] * 12 + [True] * 18
    assert torch.allclose(similarity.rotation, true.rotation[0], atol=1e-9)


def test_umeyama_of_degenerate_points_is_a_rotation():
    line = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None] * torch.tensor([1.0, 2.0, 3.0]).double()
    for points in (line, torch.ones(4, 3, dtype=torch.float64), line[:2]):
        found = umeyama(points, 3 * points + 1)
        assert torch.allclose(found.rotation @ found.rotation.T, torch.eye(3).double(), atol=1e-9)
        assert torch.linalg.det(found.rotation) > 0.99
        assert torch.allclose(found.apply(points), 3 * points + 1, atol=1e-6)


def test_a_moved_world_looks_the_same():
    """Cameras and Gaussians moved by one similarity render the same picture: means, quats, scales and SH all follow."""
    gaussians, cameras = random_gaussians(count=80, degree=3, dtype=torch.float64), random_cameras(dtype=torch.float64)
    motion = Similarity(torch.tensor(1.7).double(), random_rotations(), torch.randn(3).double())
    before = render(gaussians, cameras, backend="reference", near=0.01)
    moved = render(
        transform_gaussians(motion, gaussians), transform_cameras(motion, cameras), backend="reference", near=0.017
    )
    assert torch.allclose(before.color, moved.color, atol=1e-6)
    assert torch.allclose(before.depth * 1.7, moved.depth, atol=1e-5)


def test_frames():
    cameras = random_posed_cameras()
    relative = relative_to_first(cameras)
    assert torch.allclose(relative.world_to_camera[:, 0], torch.eye(4).double().expand(2, 4, 4), atol=1e-12)
    scaled = transform_cameras(
        Similarity(torch.tensor([3.0, 0.5]).double(), random_rotations(2), torch.randn(2, 3).double()), cameras
    )
    assert torch.allclose(baseline_scale(cameras, scaled), torch.tensor([3.0, 0.5]).double(), atol=1e-9)
    assert bool(baseline_scale(cameras.select([0]), cameras.select([0])).isnan().all())


# --- what the official code computed ----------------------------------------------------------------------------------


def test_pose_encoding_golden(golden_cases):
    g = np.load(golden_cases / "geom_pose_encoding.npz")
    c2w = torch.from_numpy(g["c2w"]).double()
    cameras = cameras_of(torch.linalg.inv(c2w), g["K"], 112, 140)
    ours, theirs = encode_cameras(cameras), torch.from_numpy(g["pose_enc"]).double()
    half_turn = theirs[..., 6].abs() < 1e-3  # there q and -q are the same rotation and both are right
    sign = torch.where(half_turn & ((ours[..., 3:7] * theirs[..., 3:7]).sum(-1) < 0), -1.0, 1.0)[..., None]
    ours = torch.cat([ours[..., :3], sign * ours[..., 3:7], ours[..., 7:]], dim=-1)
    assert torch.allclose(ours, theirs, atol=2e-3 if half_turn.any() else 1e-5)
    decoded = decode_cameras(torch.from_numpy(g["raw"]).double(), 112, 140)
    assert torch.allclose(decoded.camera_to_world[..., :3, :], torch.from_numpy(g["raw_extr"]).double(), atol=1e-4)
    assert torch.allclose(decoded.intrinsics, torch.from_numpy(g["raw_K"]).double(), rtol=1e-5)


def test_camera_normalisation_golden(golden_cases):
    for views in (1, 2, 3):
        g = np.load(golden_cases / f"geom_api_norm_ext_S{views}.npz")
        cameras = cameras_of(g["ext"], np.tile(np.eye(3), (1, views, 1, 1)), 10, 14)
        assert np.allclose(cameras_for_encoder(cameras).world_to_camera, g["ext_norm"], atol=1e-5)


def test_umeyama_golden(golden_cases):
    g = np.load(golden_cases / "geom_umeyama.npz")
    centers = [torch.linalg.inv(torch.from_numpy(g[name]).double())[:, :3, 3] for name in ("est", "ref")]
    found = umeyama(*centers)
    assert np.allclose(found.scale, g["s"], rtol=1e-6)
    assert np.allclose(found.rotation, g["r"], atol=1e-6) and np.allclose(found.translation, g["t"], atol=1e-6)


@pytest.mark.parametrize(
    "name, degrees, pixels", [("clean", 0.01, 1e-4), ("centred", 0.01, 1e-4), ("noisy", 0.1, 1e-2)]
)
def test_cameras_from_rays_golden(golden_cases, name, degrees, pixels):
    g = np.load(golden_cases / f"geom_ray_{name}.npz")
    ray = torch.from_numpy(g["ray"])
    rays = RayMap(directions=ray[..., :3], origins=ray[..., 3:], confidence=torch.from_numpy(g["conf"]))
    found = cameras_from_rays(rays, 24, 32)
    true_rotation = torch.from_numpy(g["R_true"]).double()
    angle = rotation_angle(found.camera_to_world[0, :, :3, :3].double(), true_rotation)
    assert torch.rad2deg(angle).max() < degrees
    true_k = torch.from_numpy(g["K_true"]).double()  # of a 2x2 picture
    true_k = true_k * torch.tensor([32 / 2, 24 / 2, 1.0])[:, None]
    assert (found.intrinsics[0] - true_k).abs().max() / 32 < pixels


def test_rays_golden(golden_cases):
    g = np.load(golden_cases / "geom_unproject.npz")
    k = torch.from_numpy(g["K"]).double().clone()
    k[..., :2, 2] += 0.5  # the official helper puts pixel centres on integers
    cameras = cameras_of(torch.linalg.inv(torch.from_numpy(g["c2w"]).double()), k, 7, 9)
    points = unproject(torch.from_numpy(g["depth"][..., 0]).double(), cameras)
    assert np.allclose(points, g["world"], atol=1e-4)
    assert replace(cameras, height=7).height == 7
