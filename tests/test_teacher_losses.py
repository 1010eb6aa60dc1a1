"""Losses of the teacher and the metric model: cases worked by hand, gradients by finite differences, invariances."""

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from da3_splat.data.synthetic import make_scenes
from da3_splat.geometry.frames import camera_at_origin
from da3_splat.geometry.line_fits import evenly_chosen, robust_line
from da3_splat.teacher_losses import (
    align,
    angle,
    distance_weighted_gradient_loss,
    global_local_loss,
    mask_loss,
    metric_loss,
    normal_loss,
    normals_of_neighbours,
    relative_loss,
    teacher_loss,
    without_slope,
)
from da3_splat.types import Cameras


@pytest.fixture(scope="module")
def pictures():
    """Two pictures 28x42 of different worlds in float64: true depth (0: sky), their cameras, and a wrong depth."""
    _, truth = make_scenes(2, 1, 28, 42, seed=6, supersample=1)
    truth = truth.to(torch.float64)
    target = truth.depth[:, 0]
    assert (target > 0).any() and not torch.equal(target[0], target[1])
    generator = torch.Generator().manual_seed(0)
    wrong = (0.5 + target) * (1 + 0.3 * torch.rand(target.shape, generator=generator, dtype=torch.float64))
    return wrong, target, truth.cameras


def test_evenly_chosen_by_hand():
    mask = torch.tensor([[0, 1, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1, 0]], dtype=torch.bool)
    assert evenly_chosen(mask, 2).tolist() == [[2, 5], [5, 5]]
    assert evenly_chosen(mask, 4).tolist() == [[1, 2, 4, 5], [5, 5, 5, 5]]


@pytest.mark.parametrize("truncation", [100.0, 0.1])
def test_robust_line_of_loss_is_the_best_of_all_lines(truncation):
    """Against every line through two points, of which one is the best: with positive slope, or the flattest allowed."""
    generator = torch.Generator().manual_seed(1)
    x, w = (torch.rand(3, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    y = torch.stack([2 * x[0] + 1, 0.5 * x[1] - 3, x[2]]) + 0.3 * torch.rand(3, 9, generator=generator).double()
    scale, shift = robust_line(x, y, w, truncation, pivots=9)

    def cost(row: int, s: float, t: float) -> float:
        return float((w[row] * (s * x[row] + t - y[row]).abs()).clamp_max(truncation).sum())

    for row in range(3):
        lines = []
        for a, b in combinations(range(9), 2):
            s = float((y[row, b] - y[row, a]) / (x[row, b] - x[row, a]))
            if s > 0:
                lines.append(cost(row, s, float(y[row, a]) - s * float(x[row, a])))
        assert cost(row, float(scale[row]), float(shift[row])) == pytest.approx(min(lines), rel=1e-9)


def test_robust_line_of_loss_in_odd_cases():
    x = torch.tensor([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    y = torch.tensor([[4.0, 5.0, 9.0], [3.0, 2.0, 1.0], [0.0, 0.0, 0.0]])
    scale, shift = robust_line(x, y, torch.tensor([[1.0, 1, 1], [1, 1, 1], [0, 0, 0]]), 10.0)
    assert (scale[0], shift[0]) == (1, 4)  # at one place: the median
    assert 0 < scale[1] < 1e-5 and shift[1] == pytest.approx(2, abs=1e-4)  # a falling line is not allowed
    assert (scale[2], shift[2]) == (1, 0)


def test_alignment_of_loss_ignores_outliers():
    """A fifth of the pixels far off do not move the line; scale and shift come back exactly. Predictions that are far
    off have a lever: against them, errors must be truncated."""
    generator = torch.Generator().manual_seed(2)
    target = 1 + torch.rand(2, 10, 15, generator=generator)
    depth = (target - 0.5) / 3
    mask = torch.ones_like(target, dtype=torch.bool)
    spoiled = torch.where(torch.rand(target.shape, generator=generator) < 0.2, 40.0, depth)
    clean = spoiled == depth
    torch.testing.assert_close(
        align(spoiled, target, mask, truncation=0.25)[clean], target[clean], rtol=1e-4, atol=1e-4
    )
    moved = torch.where(clean, target, 3 * target)
    torch.testing.assert_close(align(depth, moved, mask)[clean], target[clean], rtol=1e-4, atol=1e-4)


def test_relative_and_mask_loss_by_hand():
    """Errors of 10 % and 30 % in one picture, 50 % in the other, whose second pixel is sky: (0.2 + 0.5) / 2."""
    target = torch.tensor([[[2.0, 10.0]], [[4.0, 0.0]]])
    depth = torch.tensor([[[2.2, 7.0]], [[6.0, 9.0]]])
    assert relative_loss(depth, target, target > 0).item() == pytest.approx(0.35)
    score, truth = torch.tensor([[[0.5, 1.0]]]), torch.tensor([[[True, False]]])
    assert mask_loss(score, truth).item() == pytest.approx((0.25 + 1) / 2)


def test_distance_weighted_gradient_loss_by_hand():
    """One step too much by 1 between depths 2 and 4 (mean 3), of two steps in x; steps in y are right."""
    target = torch.tensor([[[2.0, 4.0, 4.0], [2.0, 4.0, 4.0]]])
    depth = target + torch.tensor([0.0, 1.0, 1.0])
    mask = torch.ones_like(target, dtype=torch.bool)
    assert distance_weighted_gradient_loss(depth, target, mask).item() == pytest.approx(1 / 6)
    mask[..., 0] = False
    assert distance_weighted_gradient_loss(depth, target, mask).item() == 0


def test_normals_of_loss_by_hand():
    """A plane that leans by 45 degrees: all four normals and their mean are (0,-1,-1)/sqrt(2) or its opposite; and a
    corner whose triangles differ, weighted by hand."""
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(5.0), indexing="ij")
    unit, mean = normals_of_neighbours(torch.stack([x, y, -y], dim=-1)[None])
    assert unit.shape == (4, 1, 2, 3, 3) and mean.shape == (1, 2, 3, 3)
    want = torch.tensor([0.0, 1.0, 1.0]) / math.sqrt(2)
    assert (unit * want).sum(-1).abs().min() == pytest.approx(1, abs=1e-6)
    assert (mean * want).sum(-1).abs().min() == pytest.approx(1, abs=1e-6)
    # Steps: up (0,-1,0), down (0,1,0), left (-1,0,0), right (1,0,3): triangles with `right` are sqrt(10) long.
    points = torch.zeros(1, 3, 3, 3)
    points[0, 0, 1], points[0, 2, 1] = torch.tensor([0.0, -1, 0]), torch.tensor([0.0, 1, 0])
    points[0, 1, 0], points[0, 1, 2] = torch.tensor([-1.0, 0, 0]), torch.tensor([1.0, 0, 3])
    unit, mean = normals_of_neighbours(points)
    long = math.sqrt(10)
    small, large = torch.tensor([0.0, 0, -1]), torch.tensor([3.0, 0, -1]) / long
    torch.testing.assert_close(unit[:, 0, 0, 0], torch.stack([small, small, large, large]))
    by_hand = 2 * (1 + 2 * long) * small + 2 * (2 + long) * large
    torch.testing.assert_close(mean[0, 0, 0], by_hand / by_hand.norm())


def test_normal_loss_by_hand():
    """A wall seen straight on against one that leans: five times the angle between them, whatever the distance."""
    cameras = camera_at_origin(30.0, 20, 30)
    x = ((torch.arange(30) + 0.5) - 15) / 30
    lean = math.radians(25)
    wall = torch.full((1, 20, 30), 2.0)
    leaning = (7.0 / (1 - math.tan(lean) * x)).expand(1, 20, 30)  # z = 7 + tan(lean) * X
    mask = torch.ones_like(wall, dtype=torch.bool)
    assert normal_loss(leaning, wall, cameras, mask).item() == pytest.approx(5 * lean, rel=1e-4)
    assert normal_loss(100 * leaning, 3 * wall, cameras, mask).item() == pytest.approx(5 * lean, rel=1e-4)
    mask[:, :, 3] = False
    mask[:, 5] = False
    assert normal_loss(leaning, wall, cameras, mask).item() == pytest.approx(5 * lean, rel=1e-4)


def test_angle_in_loss():
    a = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [1.0, 0, 0]], requires_grad=True)
    b = torch.tensor([[1.0, 0, 0], [0.0, 1, 0], [-1.0, 0, 0]])
    found = angle(a, b)
    assert found.tolist() == pytest.approx([0, math.pi / 2, math.pi], abs=1e-5)
    found.sum().backward()
    assert a.grad.isfinite().all()


def test_teacher_loss_of_a_perfect_teacher(pictures):
    """Any scale and shift of the truth costs nothing but the smallest angle; masks that are right cost nothing."""
    _, target, cameras = pictures
    sky = target == 0
    parts = teacher_loss(0.3 * target + 0.7, target, cameras, (sky.double(), sky), (sky.double(), sky))
    assert set(parts) == {"gradient", "global_local", "normal", "sky", "object"}
    for name, value in parts.items():
        assert value.item() == pytest.approx(0, abs=1e-4), name
    assert "object" not in teacher_loss(target, target, cameras, (sky.double(), sky))


@pytest.mark.parametrize("scale, shift, unit", [(3.0, 0.0, 1.0), (0.2, 5.0, 1.0), (1.0, 0.0, 40.0), (7.0, -0.3, 0.01)])
def test_teacher_loss_sees_neither_scale_nor_shift_nor_unit(pictures, scale, shift, unit):
    """A similarity of the prediction, or another unit of the truth, changes nothing."""
    wrong, target, cameras = pictures
    before, after = teacher_loss(wrong, target, cameras), teacher_loss(scale * wrong + shift, unit * target, cameras)
    for name, value in before.items():
        assert value.item() > 1e-3
        assert after[name].item() == pytest.approx(value.item(), rel=1e-5), name


def test_teacher_loss_of_a_batch_is_the_mean_of_its_pictures(pictures):
    wrong, target, cameras = pictures
    together = teacher_loss(wrong, target, cameras)
    alone = [teacher_loss(wrong[i : i + 1], target[i : i + 1], cameras.item(i)) for i in range(2)]
    for name, value in together.items():
        assert value.item() == pytest.approx(sum(part[name].item() for part in alone) / 2, rel=1e-9), name


def test_local_part_of_loss_forgives_what_the_global_part_sees(pictures):
    """Quarters that are each right up to a scale of their own: only the whole picture is wrong."""
    _, target, _ = pictures
    target = target.clamp_min(1)
    mask = torch.ones_like(target, dtype=torch.bool)
    quarters = target.clone()
    quarters[:, :14, :21] *= 2
    quarters[:, 14:, 21:] *= 0.5
    whole = relative_loss(align(quarters, target, mask), target, mask)
    assert whole > 0.05
    assert global_local_loss(quarters, target, mask, tiles=(2,)).item() == pytest.approx(whole.item(), rel=1e-6)
    assert global_local_loss(quarters, target, mask, tiles=()).item() == pytest.approx(whole.item(), rel=1e-6)


def test_teacher_loss_is_made_of_its_parts(pictures):
    """alpha is 0.5, the weights of all other terms are 1."""
    wrong, target, cameras = pictures
    mask, sky = target > 0, target == 0
    parts = teacher_loss(wrong, target, cameras, (wrong, sky))
    aligned = align(wrong, target, mask)
    assert parts["gradient"] == 0.5 * distance_weighted_gradient_loss(aligned, target, mask)
    assert parts["global_local"] == global_local_loss(wrong, target, mask)
    assert parts["normal"] == normal_loss(aligned, target, cameras, mask)
    assert parts["sky"] == mask_loss(wrong, sky)


def test_teacher_losses_where_nothing_is_valid(pictures):
    wrong, target, cameras = pictures
    wrong = wrong.clone().requires_grad_()
    parts = teacher_loss(wrong, torch.zeros_like(target), cameras)
    assert [value.item() for value in parts.values()] == [0, 0, 0]
    sum(parts.values()).backward()
    assert wrong.grad.abs().sum() == 0


def test_gradients_of_teacher_losses_by_finite_differences():
    """Small pictures in float64. The alignment of L_gl is best where it is, so holding it fixed changes no gradient."""
    generator = torch.Generator().manual_seed(5)
    depth = (1 + torch.rand(2, 8, 10, generator=generator, dtype=torch.float64)).requires_grad_()
    target = 1 + torch.rand(2, 8, 10, generator=generator, dtype=torch.float64)
    target[1, :2] = 0
    mask = target > 0
    camera = camera_at_origin(9.0, 8, 10).to(torch.float64)
    cameras = Cameras(
        world_to_camera=camera.world_to_camera.expand(2, 1, 4, 4), intrinsics=camera.intrinsics.expand(2, 1, 3, 3),
        height=8, width=10,
    )  # fmt: skip
    truth = torch.rand(2, 8, 10, generator=generator) < 0.5
    for loss in (
        lambda d: relative_loss(d, target, mask),
        lambda d: distance_weighted_gradient_loss(d, target, mask),
        lambda d: normal_loss(d, target, cameras, mask),
        lambda d: mask_loss(d, truth),
        lambda d: sum(metric_loss(d, target).values()),
    ):
        assert torch.autograd.gradcheck(loss, (depth,), atol=1e-6)


def test_loss_has_no_slope_along_scale_and_shift():
    """Otherwise an exponential prediction would drift until it overflows."""
    generator = torch.Generator().manual_seed(8)
    target = 1 + 3 * torch.rand(2, 8, 9, generator=generator, dtype=torch.float64)
    depth = (target * (0.5 + torch.rand(2, 8, 9, generator=generator, dtype=torch.float64))).requires_grad_()
    mask = torch.ones_like(target, dtype=torch.bool)
    aligned = align(depth, target, mask, pivots=72)
    relative_loss(aligned, target, mask).backward()
    size = depth.grad.abs().sum()
    through = (aligned - target).abs() < 1e-9
    assert through.sum() == 4
    # The two pixels on the line carry the rest, which has no more weight than they have.
    for direction in (depth.detach(), torch.ones_like(depth)):
        assert (depth.grad * direction).sum().abs() / direction.abs().max() < 5 / 72 * size


def test_teacher_loss_terms_of_shape_have_no_slope_along_scale_and_shift():
    """Values are those of the aligned depth; the gradient is that of finite differences less its part along both."""
    generator = torch.Generator().manual_seed(9)
    target, mask = 1 + torch.rand(2, 7, 9, generator=generator, dtype=torch.float64), torch.ones(2, 7, 9) > 0
    mask[1, :3] = False
    depth = (target + torch.rand(2, 7, 9, generator=generator, dtype=torch.float64)).requires_grad_()
    torch.testing.assert_close(without_slope(depth, mask), depth)
    camera = camera_at_origin(9.0, 7, 9).to(torch.float64)
    cameras = replace(
        camera,
        world_to_camera=camera.world_to_camera.expand(2, 1, 4, 4),
        intrinsics=camera.intrinsics.expand(2, 1, 3, 3),
    )
    for loss in (
        lambda d: distance_weighted_gradient_loss(d, target, mask),
        lambda d: normal_loss(d, target, cameras, mask),
    ):
        (held,) = torch.autograd.grad(loss(without_slope(depth, mask)), depth)
        (free,) = torch.autograd.grad(loss(depth), depth)
        for row in range(2):
            inside = mask[row]
            directions = (depth.detach()[row] * inside, inside.double())
            assert max((held[row] * along).sum().abs() for along in directions) < 1e-10
            assert max((free[row] * along).sum().abs() for along in directions) > 1e-3
        # What was taken away lies in the space of two numbers a picture: mean and mean deviation.
        away = (free - held)[mask & (torch.arange(2)[:, None, None] == 0)]
        above = (depth.detach() > depth.detach()[0].mean())[mask & (torch.arange(2)[:, None, None] == 0)]
        assert away[above].std() < 1e-12 and away[~above].std() < 1e-12


def test_gradient_of_aligned_loss_by_finite_differences():
    """The line moves with the prediction, yet the gradient with the line held fixed is right for every pixel that the
    line does not pass through."""
    generator = torch.Generator().manual_seed(5)
    target = 1 + torch.rand(1, 5, 6, generator=generator, dtype=torch.float64)
    depth = target * (1 + 0.2 * torch.rand(1, 5, 6, generator=generator, dtype=torch.float64))
    every = torch.ones_like(target, dtype=torch.bool)
    depth.requires_grad_()
    global_local_loss(depth, target, every, tiles=()).backward()
    through = (align(depth, target, every) - target).abs() < 1e-9
    assert through.sum() == 2
    for index in (~through).nonzero().tolist():
        high, low = depth.detach().clone(), depth.detach().clone()
        high[tuple(index)] += 1e-7
        low[tuple(index)] -= 1e-7
        slope = (global_local_loss(high, target, every, ()) - global_local_loss(low, target, every, ())) / 2e-7
        assert depth.grad[tuple(index)].item() == pytest.approx(slope.item(), abs=1e-6)


def test_metric_loss_by_hand():
    """Two valid pixels, 1 and 3 too far: depth 2, and their step is wrong by 2; nothing is forgiven."""
    target = torch.tensor([[[5.0, 6.0, 0.0]]])
    depth = torch.tensor([[[6.0, 9.0, 1.0]]])
    sky = torch.tensor([[[0.0, 0.5, 1.0]]])
    parts = metric_loss(depth, target, (sky, target == 0))
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(
        {"depth": 2, "gradient": 2, "sky": 0.25 / 3}
    )
    assert metric_loss(2 * depth, 2 * target)["depth"].item() == 4
