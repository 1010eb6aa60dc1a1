"""Choosing views, on cameras whose distances can be counted by hand."""

import pytest
import torch

from da3_splat.data.view_selection import (
    bounded_gap_views,
    farthest_point_views,
    hold_out,
    nested_contexts,
    pairs_by_overlap,
    pose_distance,
    views_by_overlap,
)
from da3_splat.types import Cameras


def line_of_cameras(positions, turns=None) -> Cameras:
    """Cameras on the x axis, turned about y by `turns` degrees."""
    count = len(positions)
    angles = torch.deg2rad(torch.tensor(turns or [0.0] * count))
    matrix = torch.eye(4).repeat(count, 1, 1)
    matrix[:, 0, 0] = matrix[:, 2, 2] = angles.cos()
    matrix[:, 0, 2], matrix[:, 2, 0] = angles.sin(), -angles.sin()
    matrix[:, :3, 3] = -matrix[:, :3, 0] * torch.tensor(positions)[:, None]  # -R c
    return Cameras(world_to_camera=matrix[None], intrinsics=torch.eye(3).expand(1, count, 3, 3), height=1, width=1)


def test_pose_distance_by_hand():
    """Centres at 0, 1, 4: a quarter of the extent between the first two; a quarter turn is half of pi."""
    distance = pose_distance(line_of_cameras([0.0, 1.0, 4.0], [0.0, 90.0, 0.0]))
    assert torch.allclose(distance[0], torch.tensor([0.0, 0.25 + 0.5, 1.0]).double(), atol=1e-6)
    assert torch.allclose(distance, distance.T) and (distance.diagonal() == 0).all()
    assert pose_distance(line_of_cameras([0.0, 4.0], [0.0, 90.0]), rotation_weight=0.0)[0, 1] == 1
    tripod = pose_distance(line_of_cameras([0.0, 0.0], [0.0, 180.0]))
    assert torch.allclose(tripod[0, 1], torch.tensor(1.0).double(), atol=1e-3)


def test_pose_distance_ignores_the_scale():
    near, far = line_of_cameras([0.0, 1.0, 3.0]), line_of_cameras([0.0, 100.0, 300.0])
    assert torch.allclose(pose_distance(near), pose_distance(far), atol=1e-6)


def test_farthest_points_of_a_line():
    """Nine cameras in a row: the middle, the ends (lower index first), then the quarters."""
    cameras = line_of_cameras([float(x) for x in range(9)])
    assert farthest_point_views(cameras, 5) == [4, 0, 8, 2, 6]
    assert farthest_point_views(cameras, 3, first=0) == [0, 8, 4]
    assert farthest_point_views(cameras, 3, candidates=[1, 2, 5, 6]) == [2, 6, 1]
    with pytest.raises(ValueError, match="1 to 4 views"):
        farthest_point_views(cameras, 5, candidates=[1, 2, 5, 6])
    with pytest.raises(ValueError, match="first"):
        farthest_point_views(cameras, 2, candidates=[1, 2], first=0)
    with pytest.raises(ValueError, match="candidates"):
        farthest_point_views(cameras, 2, candidates=[1, 9])


def test_a_turned_camera_is_far():
    """Equal steps, but camera 1 looks backwards: from camera 0 it is the farthest of all."""
    cameras = line_of_cameras([0.0, 1.0, 2.0, 3.0], [0.0, 180.0, 0.0, 0.0])
    assert farthest_point_views(cameras, 3, first=0) == [0, 1, 3]


def test_protocols():
    assert hold_out(20) == [0, 8, 16] and hold_out(5, every=2) == [0, 2, 4]
    with pytest.raises(ValueError, match="every"):
        hold_out(5, every=1)


def test_nested_contexts_contain_one_another():
    cameras = line_of_cameras([float(x) ** 1.5 for x in range(40)])
    targets = hold_out(40)
    contexts = nested_contexts(cameras, (2, 4, 8, 16), targets)
    assert [len(contexts[count]) for count in (2, 4, 8, 16)] == [2, 4, 8, 16]
    for few, many in ((2, 4), (4, 8), (8, 16)):
        assert set(contexts[few]) < set(contexts[many])
    assert not set(contexts[16]) & set(targets) and contexts[8] == sorted(contexts[8])


def test_bounded_gaps():
    for seed in range(50):
        contexts, targets = bounded_gap_views(60, 4, 3, 9, torch.Generator().manual_seed(seed), targets=5)
        gaps = [right - left for left, right in zip(contexts, contexts[1:])]
        assert all(3 <= gap <= 9 for gap in gaps) and contexts[0] >= 0 and contexts[-1] < 60
        assert len(targets) == 5 and contexts[0] < targets[0] and targets[-1] < contexts[-1]
        assert not set(contexts) & set(targets) and targets == sorted(targets)
    again = bounded_gap_views(60, 4, 3, 9, torch.Generator().manual_seed(49), targets=5)
    assert again == (contexts, targets)


def test_bounded_gaps_at_the_limit():
    """Seven frames, three views: gaps can only be 3, and all four frames between are targets."""
    generator = torch.Generator().manual_seed(0)
    assert bounded_gap_views(7, 3, 1, 20, generator, targets=4) == ([0, 3, 6], [1, 2, 4, 5])
    with pytest.raises(ValueError, match="hold no 3 contexts"):
        bounded_gap_views(7, 3, 1, 20, generator, targets=5)
    with pytest.raises(ValueError, match="hold no 3 contexts"):
        bounded_gap_views(6, 3, 3, 20, generator, targets=1)
    with pytest.raises(ValueError, match="min_gap"):
        bounded_gap_views(6, 2, 3, 2, generator)


OVERLAP = torch.tensor([
    [1.0, 0.5, 0.0, 0.0, 0.9],
    [0.4, 1.0, 0.3, 0.0, 0.0],
    [0.0, 0.2, 1.0, 0.0, 0.0],
    [0.0, 0.0, 0.0, 1.0, 0.6],
    [0.05, 0.0, 0.0, 0.7, 1.0],
])  # fmt: skip


def test_pairs_by_overlap_take_the_smaller_side():
    """0-4 share 0.9 from one side and 0.05 from the other: they do not belong together."""
    assert pairs_by_overlap(OVERLAP, 0.1, 0.7).tolist() == [[0, 1], [1, 2], [3, 4]]
    assert pairs_by_overlap(OVERLAP, 0.1, 0.5).tolist() == [[0, 1], [1, 2]]


def test_views_by_overlap_hang_together():
    linked = {(0, 1), (1, 0), (1, 2), (2, 1), (3, 4), (4, 3)}
    for seed in range(20):
        views = views_by_overlap(OVERLAP, 3, 0.1, 0.7, torch.Generator().manual_seed(seed))
        assert sorted(views) == [0, 1, 2]
        assert all(any((view, other) in linked for other in views[:at]) for at, view in enumerate(views) if at)
    with pytest.raises(ValueError, match="1 to 3 views"):
        views_by_overlap(OVERLAP, 4, 0.1, 0.7, torch.Generator())
    with pytest.raises(ValueError, match="square"):
        pairs_by_overlap(OVERLAP[:2], 0.1, 0.7)
