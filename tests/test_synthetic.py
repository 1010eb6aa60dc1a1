"""Procedural worlds: repeatable, true by hand and by geometry."""

from dataclasses import replace

import pytest
import torch

from da3_splat.data.ray_casting import BOX, CYLINDER, PHOTO, SPHERE
from da3_splat.data.synthetic import (
    look_at,
    make_scenes,
    render_normals,
    render_worlds,
    sample_cameras,
    sample_walk,
    sample_worlds,
    with_zoom,
)
from da3_splat.geometry.projection import project, unproject
from da3_splat.geometry.surfaces import tangents
from da3_splat.types import Cameras, Geometry


def test_same_seed_same_world():
    a, b, c = (make_scenes(2, 2, 28, 42, seed)[0].images for seed in (3, 3, 4))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.min() >= 0 and a.max() <= 1 and a.std() > 0.05


def test_depth_is_true():
    """A point that one view sees lies nowhere in front of what another view sees there: it is that point, or hidden."""
    views, truth = make_scenes(3, 2, 84, 126, seed=5, arc=12)
    for item in range(3):
        depth = truth.depth[item : item + 1]
        cameras = type(truth.cameras)(
            world_to_camera=truth.cameras.world_to_camera[item : item + 1],
            intrinsics=truth.cameras.intrinsics[item : item + 1], height=84, width=126,
        )  # fmt: skip
        points = unproject(depth[:, :1], cameras.select([0])).reshape(1, -1, 3)
        seen = depth[0, 0].flatten() > 0
        pixels, z = project(points[:, seen], cameras.select([1]))
        x, y = pixels[0, 0].unbind(-1)
        inside = (x > 0) & (x < 126) & (y > 0) & (y < 84) & (z[0, 0] > 0)
        there = depth[0, 1, y[inside].long(), x[inside].long()]
        ratio = z[0, 0, inside] / there
        assert (ratio < 0.97).float().mean() < 0.03  # what is left lies on the edges of objects
        assert ((ratio - 1).abs() < 0.03).float().mean() > 0.6


def lone_object(shape: int, size: list[float]):
    """A closed room with one object in the middle, upright, and nothing else in reach."""
    worlds = sample_worlds(1, 0)
    held = {name: getattr(worlds, name) for name in worlds.__dataclass_fields__}
    values = {name: value.clone() for name, value in held.items() if value is not None}
    values["center"][:] = 100.0
    values["center"][0, 0] = 0.0
    values["size"][0, 0] = torch.tensor(size)
    values["turn"][0, 0] = torch.eye(3)
    values["shape"][0, 0] = shape
    values["open"][:] = False
    values["room"][:] = torch.tensor([3.0, 2.0, 4.0])
    return type(worlds)(**values)


def camera_at(position: list[float]) -> Cameras:
    pose = look_at(torch.tensor([[position]]), torch.zeros(1, 1, 3))
    intrinsics = torch.tensor([[[[20.0, 0, 10.5], [0, 20.0, 7.5], [0, 0, 1]]]])
    return Cameras(world_to_camera=pose, intrinsics=intrinsics, height=15, width=21)


@pytest.mark.parametrize("shape, depth", [(SPHERE, 1.5), (BOX, 1.3), (CYLINDER, 1.5)])
def test_front_of_each_shape_by_hand(shape, depth):
    """From 2 away: a sphere and an upright cylinder of radius 0.5 begin at 1.5, a box 0.7 deep at 1.3; all face us."""
    worlds = lone_object(shape, [0.5, 0.4, 0.7])
    _, geometry = render_worlds(worlds, camera_at([0.0, 0.0, -2.0]), supersample=1)
    assert torch.isclose(geometry.depth[0, 0, 7, 10], torch.tensor(depth), atol=1e-3)
    normals = render_normals(worlds, camera_at([0.0, 0.0, -2.0]))
    assert torch.allclose(normals[0, 0, 7, 10], torch.tensor([0.0, 0.0, -1.0]), atol=0.06)


def test_a_cylinder_has_caps():
    """Seen steeply from above (y points down), its upper cap at y = -0.4 is flat: normal up."""
    worlds = lone_object(CYLINDER, [0.5, 0.4, 0.5])
    camera = camera_at([0.0, -1.9, -0.3])
    _, geometry = render_worlds(worlds, camera, supersample=1)
    point = unproject(geometry.depth, camera)[0, 0, 7, 10]
    assert torch.isclose(point[1], torch.tensor(-0.4), atol=1e-3)
    normal = camera.camera_to_world[0, 0, :3, :3] @ render_normals(worlds, camera)[0, 0, 7, 10]
    assert torch.allclose(normal, torch.tensor([0.0, -1.0, 0.0]), atol=1e-4)


def test_normals_are_those_of_the_depth():
    """Cross products of neighbouring surface points agree with the cast normals, but for edges."""
    worlds = sample_worlds(2, 4)
    cameras = sample_cameras(worlds, 2, 56, 84, 5)
    _, geometry = render_worlds(worlds, cameras, supersample=1)
    along_x, along_y = tangents(geometry.depth, cameras)
    found = torch.nn.functional.normalize(torch.linalg.cross(along_x, along_y, dim=-1), dim=-1)
    normals = torch.einsum("bvji,bvhwj->bvhwi", cameras.world_to_camera[..., :3, :3], render_normals(worlds, cameras))
    valid = geometry.sky == 0
    assert ((found * normals).sum(-1).abs()[valid] > 0.98).float().mean() > 0.9
    assert (normals[~valid] == 0).all()


def test_photos_lenses_and_walks():
    photos = torch.zeros(2, 3, 8, 8)
    photos[0, 0], photos[1, 1] = 1.0, 1.0  # one red, one green
    worlds = sample_worlds(2, 6, photos)
    shown = worlds.kind == PHOTO
    assert 0.15 < shown.float().mean() < 0.55 and (sample_worlds(2, 6).kind != PHOTO).all()
    assert not torch.equal(
        render_worlds(worlds, sample_cameras(worlds, 1, 28, 42, 7))[0],
        render_worlds(replace(worlds, photos=1 - photos), sample_cameras(worlds, 1, 28, 42, 7))[0],
    )
    walk = sample_walk(worlds, 120, 28, 42, seed=8)
    step = (walk.centers.roll(-1, dims=1) - walk.centers).norm(dim=-1)
    assert step.max() < 4 * step.mean()  # the last one comes home to the first
    turn = walk.world_to_camera[:, 1:, :3, :3] @ walk.camera_to_world[:, :-1, :3, :3]
    assert torch.rad2deg(torch.arccos(((turn.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(-1, 1))).max() < 12
    assert bool((walk.centers.abs() < worlds.room[:, None]).all())
    zoomed = with_zoom(walk, seed=9)
    assert torch.equal(zoomed.world_to_camera, walk.world_to_camera)
    assert zoomed.intrinsics[0, :, 0, 0].std() > 1 and zoomed.intrinsics[0, :, 0, 2].std() > 0.5


def test_supersampling_smooths_colour_and_keeps_depth():
    worlds = sample_worlds(2, 8)
    cameras = sample_cameras(worlds, 2, 28, 42, 9)
    sharp, truth = render_worlds(worlds, cameras, supersample=1)
    for samples in (2, 3):
        smooth, same = render_worlds(worlds, cameras, supersample=samples)
        assert torch.allclose(truth.depth, same.depth, rtol=1e-4)
        assert (smooth - sharp).abs().mean() < 0.1
    assert isinstance(truth, Geometry)


def test_cameras_stay_out_of_objects_and_walls():
    worlds = sample_worlds(50, 1)
    cameras = sample_cameras(worlds, 6, 28, 42, 2)
    assert bool((cameras.centers.abs() < worlds.room[:, None]).all())
    distance = (cameras.centers[:, :, None] - worlds.center[:, None]).norm(dim=-1)
    assert bool((distance > worlds.size.norm(dim=-1)[:, None] - 0.35).all())
