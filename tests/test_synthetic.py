import torch

from da3_splat.data.ray_casting import SPHERE
from da3_splat.data.synthetic import look_at, make_scenes, render_worlds, sample_cameras, sample_worlds
from da3_splat.geometry.projection import project, unproject
from da3_splat.types import Geometry


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


def test_sphere_by_hand():
    """A lone sphere of radius 0.5 at distance 2 is seen at depth 1.5 in the middle, and the room's wall beside it."""
    worlds = sample_worlds(1, 0)
    values = {name: getattr(worlds, name).clone() for name in worlds.__dataclass_fields__ if name != "photos"}
    values["center"][:] = 100.0
    values["center"][0, 0] = torch.tensor([0.0, 0.0, 0.0])
    values["size"][0, 0] = 0.5
    values["shape"][0, 0] = SPHERE
    values["open"][:] = False
    values["room"][:] = torch.tensor([3.0, 2.0, 4.0])
    worlds = type(worlds)(**values)
    pose = look_at(torch.tensor([[[0.0, 0.0, -2.0]]]), torch.zeros(1, 1, 3))
    intrinsics = torch.tensor([[[[20.0, 0, 10.5], [0, 20.0, 7.5], [0, 0, 1]]]])
    from da3_splat.types import Cameras

    cameras = Cameras(world_to_camera=pose, intrinsics=intrinsics, height=15, width=21)
    _, geometry = render_worlds(worlds, cameras, supersample=1)
    assert torch.isclose(geometry.depth[0, 0, 7, 10], torch.tensor(1.5), atol=1e-4)
    assert torch.isclose(geometry.depth[0, 0, 0, 10], torch.tensor(2.0 / (7 / 20)), atol=1e-3)  # ceiling, 2 above
    assert geometry.sky.sum() == 0


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
