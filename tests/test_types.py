from dataclasses import fields, replace

import pytest
import torch
from scenes import random_cameras, random_gaussians

from da3_splat.geometry.projection import project
from da3_splat.types import Cameras, Gaussians, Geometry, Rendering, Views


def test_shapes_are_checked_and_named():
    with pytest.raises(ValueError, match=r"Gaussians.quats: expected shape \(1, 5, 4\), got \(1, 5, 3\)"):
        replace(random_gaussians(count=5), quats=torch.zeros(1, 5, 3))
    with pytest.raises(ValueError, match="Gaussians.sh: expected 1, 4, 9"):
        replace(random_gaussians(count=5), sh=torch.zeros(1, 5, 5, 3))
    with pytest.raises(ValueError, match="Cameras.intrinsics"):
        Cameras(world_to_camera=torch.eye(4)[None, None], intrinsics=torch.eye(3)[None], height=2, width=3)
    with pytest.raises(ValueError, match="Views.cameras: expected cameras of 6x9"):
        Views(images=torch.zeros(1, 2, 3, 6, 9), cameras=random_cameras(height=9, width=6))
    with pytest.raises(ValueError, match="Rendering.depth"):
        Rendering(color=torch.zeros(1, 1, 3, 4, 5), depth=torch.zeros(1, 1, 5, 4), alpha=torch.zeros(1, 1, 4, 5))


def test_resize_and_crop_keep_the_picture():
    """A point's pixel scales with the picture and shifts with the window, as one can count by hand."""
    cameras = random_cameras(height=30, width=44)
    points = torch.randn(1, 7, 3)
    pixels, depth = project(points, cameras)
    larger, _ = project(points, cameras.resized(60, 132))
    assert torch.allclose(larger, pixels * torch.tensor([3.0, 2.0]), rtol=1e-4, atol=1e-3)
    window, same_depth = project(points, cameras.cropped(4, 9, 20, 30))
    assert torch.allclose(window, pixels - torch.tensor([9.0, 4.0]), atol=1e-3)
    assert torch.equal(depth, same_depth)


def test_camera_to_world_is_the_inverse():
    cameras = random_cameras(batch=2, views=3, dtype=torch.float64)
    eye = torch.eye(4, dtype=torch.float64).expand(2, 3, 4, 4)
    assert torch.allclose(cameras.camera_to_world @ cameras.world_to_camera, eye, atol=1e-12)
    in_camera = torch.einsum("bvij,bvj->bvi", cameras.world_to_camera[..., :3, :3], cameras.centers)
    assert torch.allclose(in_camera + cameras.world_to_camera[..., :3, 3], torch.zeros(2, 3, 3).double(), atol=1e-12)


def test_points_need_cameras():
    geometry = Geometry(depth=torch.ones(1, 2, 4, 6))
    with pytest.raises(ValueError, match="cameras"):
        geometry.points()


def test_concatenate_and_select_are_inverse():
    a, b = random_gaussians(count=5, seed=1), random_gaussians(count=3, seed=2)
    both = Gaussians.concatenate([a, b])
    assert torch.equal(both.select(torch.arange(8) < 5).means, a.means)
    assert torch.equal(both.select(torch.arange(5, 8)).sh, b.sh)
    with pytest.raises(ValueError, match="confidence"):
        Gaussians.concatenate([replace(a, confidence=torch.ones(1, 5)), b])


def test_views_select_follows_names_and_cameras():
    views = Views(
        images=torch.rand(1, 4, 3, 6, 9), cameras=random_cameras(views=4, height=6, width=9), names=tuple("abcd")
    )
    picked = views.select([2, 0])
    assert picked.names == ("c", "a")
    assert torch.equal(picked.cameras.world_to_camera, views.cameras.world_to_camera[:, [2, 0]])


def test_to_moves_everything():
    moved = random_gaussians().to(torch.float64)
    assert {getattr(moved, f.name).dtype for f in fields(moved) if getattr(moved, f.name) is not None} == {
        torch.float64
    }


def test_pinning_reaches_every_tensor(monkeypatch):
    """torch's loader asks a record for a copy in page-locked memory; records within records are asked, too."""
    asked = []

    def pinned(tensor):
        asked.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    views = Views(
        images=torch.rand(1, 2, 3, 6, 9), cameras=random_cameras(views=2, height=6, width=9), names=("a", "b")
    )
    copy = views.pin_memory()
    assert len(asked) == 3 and copy.names == views.names
    assert torch.equal(copy.images, views.images) and copy.images is not views.images
    assert torch.equal(copy.cameras.intrinsics, views.cameras.intrinsics)
