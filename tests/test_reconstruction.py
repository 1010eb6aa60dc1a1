"""Reconstruction: TSDF fusion of known surfaces, alignment with cameras astray, what counts in a cloud."""

import json
from dataclasses import replace

import benchmark_layouts as layouts
import numpy as np
import pytest
import torch
from evaluation_methods import Oracle
from scenes import random_cameras

from da3_splat.cli import main
from da3_splat.data.benchmarks.table import BENCHMARKS, rules_at
from da3_splat.evaluation.clouds import cloud_scores, within_box
from da3_splat.evaluation.reconstruction import Reconstruction, at_view_size, kept_where_known, robust_similarity
from da3_splat.evaluation.scenes import SyntheticScene
from da3_splat.evaluation.tsdf import fused_points, surface_points
from da3_splat.geometry.alignment import Similarity, transform_cameras
from da3_splat.geometry.projection import rays_from_cameras
from da3_splat.geometry.rotations import quaternion_to_matrix
from da3_splat.types import Cameras, Geometry, Views, Window

INDOORS = SyntheticScene(seed=layouts.INDOORS, views=9, height=56, width=70)


def depth_of_plane(cameras: Cameras, level: float) -> torch.Tensor:
    """z-depth (V,H,W) at which the cameras (1,V) see the plane z = level."""
    rays = rays_from_cameras(cameras)
    return ((level - rays.origins[..., 2]) / rays.directions[..., 2])[0]


def test_fused_planes_lie_where_the_plane_is():
    """z = 0.7 seen aslant by three cameras: found to a fraction of a voxel, principal points and all."""
    cameras = random_cameras(views=3, height=74, width=100, seed=4)
    points = fused_points(depth_of_plane(cameras, 0.7), cameras, rules_at(0.4), samples=5000)
    assert points.shape == (5000, 3)
    off = np.abs(points[:, 2] - 0.7) / rules_at(0.4).voxel
    assert off.max() < 0.25 and off.mean() < 0.05
    near = fused_points(depth_of_plane(cameras, 0.7), cameras, replace(rules_at(0.4), max_depth=4.7), samples=500)
    along = points @ cameras.world_to_camera[0, 0, 2, :3].double().numpy()  # some of it is farther than 4.7
    assert (near @ cameras.world_to_camera[0, 0, 2, :3].double().numpy()).max() < along.max()
    again = fused_points(depth_of_plane(cameras, 0.7), cameras, rules_at(0.4), samples=5000)
    np.testing.assert_array_equal(points, again)
    with pytest.raises(ValueError, match="fuse to no surface"):
        fused_points(torch.zeros(3, 74, 100), cameras, rules_at(0.4))


def test_edges_of_a_surface_stand_at_their_pixels():
    """Half a plane, seen straight on: its edge is where the last pixel's is, which half a pixel's error would move."""
    pose = torch.eye(4)[None, None]
    k = torch.tensor([[200.0, 0, 40], [0, 200.0, 30], [0, 0, 1]])[None, None]
    depth = torch.full((1, 60, 80), 2.0)
    depth[..., 40:] = 0
    points = fused_points(
        depth, Cameras(world_to_camera=pose, intrinsics=k, height=60, width=80), rules_at(0.02), 20000
    )
    assert abs(points[:, 0].max()) < 0.006  # a pixel is 0.01 wide
    assert abs(points[:, 1].max() + points[:, 1].min()) < 0.006  # and the plane is centred


def test_robust_similarity_leaves_out_what_is_astray():
    """Two of ten cameras thrown far away: the motion of the other eight is found, where all ten together miss it."""
    cameras = random_cameras(views=10, seed=3)
    rotation = quaternion_to_matrix(torch.tensor([[0.8, 0.3, -0.4, 0.2]]))
    motion = Similarity(torch.tensor([2.5]), rotation, torch.tensor([[1.0, -2.0, 0.5]]))
    predicted = transform_cameras(motion.inverse(), cameras)
    pose = predicted.world_to_camera.clone()
    pose[0, [2, 7], :3, 3] += torch.tensor([[3.0, -2, 1], [-1, 4, 2]])
    found = robust_similarity(replace(predicted, world_to_camera=pose), cameras)
    points = torch.randn(1, 50, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.apply(points), motion.apply(points), atol=1e-3, rtol=0)
    few = robust_similarity(predicted.select([0, 1]), cameras.select([0, 1]))
    torch.testing.assert_close(few.apply(points), motion.apply(points), atol=1e-3, rtol=0)


def test_depth_is_kept_where_the_truth_is_known():
    """A view cropped from a 24x60 picture; the truth, of 12x30, knows a column and a row less than all."""
    window = Window(24, 60, 2.0, 10.0, 20.0, 40.0)
    truth = torch.ones(12, 30)
    truth[:, 7] = 0  # columns 14 and 15 of the picture, 4 and 5 of the view
    truth[3] = 0  # rows 6 and 7, 4 and 5 of the view
    nearest = at_view_size(truth, window, 20, 40)
    assert sorted(set(torch.nonzero(nearest == 0)[:, 1].tolist()) - {4, 5}) == [c for c in range(40) if c not in (4, 5)]
    assert (nearest[:, 4:6] == 0).all() and (nearest[4:6] == 0).all() and int((nearest == 0).sum()) == 2 * 20 + 2 * 38
    cameras = random_cameras(views=2, height=20, width=40)
    depth = torch.full((1, 2, 20, 40), 2.0)
    depth[0, 1, 0, 0] = float("nan")
    sky = torch.zeros_like(depth)
    sky[0, 1, 1] = 1
    views = Views(images=torch.zeros(1, 2, 3, 20, 40), windows=(window, window))
    kept = kept_where_known(Geometry(depth=depth, cameras=cameras, sky=sky), views, [truth, None]).depth[0]
    assert torch.equal(kept[0] > 0, nearest > 0) and int((kept[1] == 0).sum()) == 1 + 40


def test_a_method_that_is_lost_scores_badly_and_finishes():
    """Depth a thousand times too far counts as wrong points, not as none, and does not fill the memory."""

    class Lost(Oracle):
        def predict(self, views: Views, scene: str = ""):
            found = super().predict(views, scene)
            return replace(found, geometry=replace(found.geometry, depth=1000 * found.geometry.depth))

    scores = Reconstruction(Lost(INDOORS), rules_at(0.4), "posed", views=3, resolution=70).score(INDOORS).scores
    assert scores["f1"] < 0.05 and 1 < scores["accuracy"] < 30


def test_cameras_that_move_by_noise_alone_do_not_blow_up_the_scene():
    """Predicted centres a hundredth as far apart as the true ones, at random: the scale stays that of what agrees."""
    cameras = random_cameras(views=8, seed=5)
    pose = cameras.world_to_camera.clone()
    pose[..., :3, 3] = 0.01 * torch.randn(1, 8, 3, generator=torch.Generator().manual_seed(1))
    found = robust_similarity(replace(cameras, world_to_camera=pose), cameras)
    assert 0 < float(found.scale) < 60


def test_caps_and_boxes():
    """Distances 1 and 30: with a cap of 20 the mean is 1; recall still counts all."""
    found, true = np.array([[0.0, 0, 1], [0, 0, 30]]), np.array([[0.0, 0, 0]])
    assert cloud_scores(found, true, 2.0).accuracy == 15.5
    capped = cloud_scores(found, true, 2.0, cap=20.0)
    assert capped.accuracy == 1.0 and capped.completeness == 1.0 and capped.precision == 0.5
    assert cloud_scores(found, true, 2.0, cap=0.5).chamfer == 0.5
    np.testing.assert_array_equal(within_box(found, np.array([[0.0, 0, 0], [1, 1, 1]]), 0.1), found[:1])


def test_true_surfaces(tmp_path):
    """A mesh is sampled evenly over its area, a cloud is taken as it is."""
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 2], [3, 0, 2], [0, 3, 2]])
    layouts.mesh(tmp_path / "mesh.ply", corners, np.array([[0, 1, 2], [3, 4, 5]]))
    points = surface_points(tmp_path / "mesh.ply", samples=10_000)
    assert len(points) == 10_000 and np.isin(points[:, 2].round(6), (0, 2)).all()
    assert abs((points[:, 2] < 1).mean() - 0.1) < 0.02  # areas 0.5 and 4.5
    layouts.cloud(tmp_path / "cloud.ply", corners)
    np.testing.assert_allclose(surface_points(tmp_path / "cloud.ply"), corners, atol=1e-6)
    with pytest.raises(ValueError, match=r"none.ply: the true surface of this scene is not here"):
        surface_points(tmp_path / "none.ply")


class OfHiroom(Oracle):
    """Knows the pictures 000 to 002 of the set as views of the world."""

    def predict(self, views: Views, scene: str = ""):
        return super().predict(replace(views, names=tuple(f"{int(name[:3]):04d}.png" for name in views.names)))


@pytest.mark.parametrize("poses", ["posed", "free"])
def test_a_public_set_by_its_own_rules(poses, tmp_path):
    """HiRoom's layout: the true cloud is the file's, and what the aliasing mask hides is taken out of the answer."""
    small = replace(INDOORS, views=3, arc=40.0)
    written = layouts.world()
    layouts.hiroom(tmp_path, written)
    scene = BENCHMARKS["hiroom"].scenes(tmp_path)[0]
    np.testing.assert_allclose(scene.depth(0)[20:, 20:], small.depth(0)[20:, 20:], atol=2e-3)  # the same world
    points = Reconstruction(OfHiroom(small), rules_at(0.05, "points"), poses, views=3, resolution=70)
    scores = points.score(scene).scores
    assert scores["precision"] > 0.999 and scores["accuracy"] < 2e-3
    assert 0.9 < scores["recall"] < 1.0  # the corner and the masked rows are not there


def test_command_on_worlds_and_on_a_set(tmp_path, capsys):
    common = ["evaluate", "reconstruction", "--resolution", "70"]
    main([*common, "--worlds", "1", "--views", "2", "--threshold", "0.4", "--output", str(tmp_path / "a"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["protocol"]["voxel"] == pytest.approx(0.0625) and found["protocol"]["fusion"] == "tsdf"
    assert 0 <= found["f1"] <= 1
    layouts.dtu(tmp_path / "DTU", layouts.world())
    main([*common, "--data", str(tmp_path / "DTU"), "--format", "dtu", "--output", str(tmp_path / "b")])
    line = capsys.readouterr().out.splitlines()[-1]
    assert "threshold 1, points, 100 views, poses free" in line
    report = (tmp_path / "b" / "report.html").read_text()
    assert "Table 3" in report and "scan9" in report
