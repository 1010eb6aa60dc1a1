"""Losses of the depth teacher and the monocular student (section 4, appendix A) and of the metric model (section 4.4).

Pictures are (N,H,W). Predicted depth is exp of what the network says, known up to a scale and a shift. `mask` says
where the target has depth; sky has none. Each loss is a mean over a picture's valid pixels, then over the pictures that
have any, so that it does not depend on what else is in the batch. What the paper leaves open has one default, named.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from da3_splat.geometry.line_fits import evenly_chosen, robust_line
from da3_splat.geometry.projection import unproject
from da3_splat.types import Cameras

GRADIENT_WEIGHT = 0.5  # alpha of L_T; the weights of all other terms are 1
TILES = (4, 16)  # the local part aligns the tiles of 4x4 and of 16x16 cuts of a picture by themselves (our choice)
SMALLEST_TILE, FEWEST_PIXELS = 4, 8  # in pixels: what is smaller, or has less depth, says nothing of a shape
FIT_PIXELS = 512  # of an alignment
# Relative errors above this count as this much where scale and shift are sought. So much that the alignment minimises
# what L_gl measures: with less, the loss would have a slope along scale and shift, and the scale of exp would drift.
TRUNCATION = 100.0


def align(
    depth: Tensor,
    target: Tensor,
    mask: Tensor,
    pixels: int = FIT_PIXELS,
    pivots: int = 32,
    truncation: float = TRUNCATION,
) -> Tensor:
    """`depth` (N,H,W) after the scale > 0 and shift that bring it closest to `target`, relative errors counting.

    The robust alignment of MoGe's global-local loss (see `robust_line`), on `pixels` pixels of the mask. The scale and
    shift are constants to the gradient: where they are best, the relative loss does not change with them (which is
    exact but for the two pixels that a best line passes through). Other losses do: see `without_slope`.
    """
    index = evenly_chosen(mask.flatten(1), min(pixels, mask[0].numel()))
    x, y, valid = (value.flatten(1).gather(1, index) for value in (depth.detach(), target, mask))
    weights = torch.where(valid, 1 / torch.where(valid, y, 1), 0)
    scale, shift = robust_line(x, torch.where(valid, y, 0), weights, truncation, pivots)
    return scale[:, None, None] * depth + shift[:, None, None]


def without_slope(aligned: Tensor, mask: Tensor) -> Tensor:
    """The same values (N,H,W), with a gradient that has no part along their scale and shift over the mask.

    Scale and shift are fitted anew at every step, so a loss that wants other ones than the alignment pulls for ever and
    gets nowhere: with L_grad and L_N of aligned depth, exp walked off to 1e9 within 1500 steps. Centred and divided by
    its mean deviation, and then given both back as constants, depth has no such direction.
    """
    mean = _mean_each(aligned, mask)[:, None, None]
    spread = _mean_each((aligned - mean).abs(), mask)[:, None, None]
    flat = spread <= 1e-6 * mean.abs()
    ratio = torch.where(flat, 1, spread.detach() / torch.where(flat, 1, spread))
    return (aligned - mean) * ratio + mean.detach()


def global_local_loss(depth: Tensor, target: Tensor, mask: Tensor, tiles: tuple[int, ...] = TILES) -> Tensor:
    """L_gl: mean of |s d + t - D| / D with one s and t a picture, and the same with one a tile, over the cuts `tiles`.

    As in MoGe (Wang 2024), on depth instead of points. Unchanged by scale and shift of the prediction, and by scale of
    the target.
    """
    return relative_loss(align(depth, target, mask), target, mask) + local_loss(depth, target, mask, tiles)


def local_loss(depth: Tensor, target: Tensor, mask: Tensor, tiles: tuple[int, ...] = TILES) -> Tensor:
    """The local part of L_gl: its mean over the cuts whose tiles are large enough to have a shape."""
    levels = [_tile_loss(depth, target, mask, tile) for tile in tiles if min(depth.shape[1:]) // tile >= SMALLEST_TILE]
    return torch.stack(levels).mean() if levels else depth.new_zeros(())


def relative_loss(depth: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean of |d - D| / D."""
    return _mean((depth - target).abs() / torch.where(mask, target, 1), mask)


def _tile_loss(depth: Tensor, target: Tensor, mask: Tensor, tiles: int) -> Tensor:
    height, width = (side // tiles for side in depth.shape[1:])
    top, left = (depth.shape[1] - tiles * height) // 2, (depth.shape[2] - tiles * width) // 2

    def cut(maps: Tensor) -> Tensor:
        area = maps[:, top : top + tiles * height, left : left + tiles * width]
        return area.unflatten(2, (tiles, width)).unflatten(1, (tiles, height)).transpose(2, 3).flatten(0, 2)

    d, goal, valid = cut(depth), cut(target), cut(mask)
    valid = valid & (valid.sum(dim=(1, 2), keepdim=True) >= FEWEST_PIXELS)
    error = (align(d, goal, valid, pixels=64, pivots=16) - goal).abs() / torch.where(valid, goal, 1)
    pictures = len(depth)
    return _mean(error.reshape(pictures, -1, 1), valid.reshape(pictures, -1, 1))


def distance_weighted_gradient_loss(depth: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """L_grad: mean over pairs of neighbours in x, and the same in y, of |step of d - step of D| / (mean D of the two).

    `depth` is aligned already. Dividing by the distance (our reading of "distance-weighted") lets an edge count by how
    deep it is relative to where it stands, and makes the loss one number in all units.
    """
    error, total = depth - target, depth.new_zeros(())
    for axis in (1, 2):
        (first, second), (near, far) = _neighbours(mask, axis), _neighbours(target, axis)
        both = first & second
        total = total + _mean(error.diff(dim=axis).abs() / torch.where(both, (near + far) / 2, 1), both)
    return total


def normals_of_neighbours(points: Tensor) -> tuple[Tensor, Tensor]:
    """The four unit normals (4,N,h,w,3) of the inner pixels of points (N,H,W,3) and their weighted mean (N,h,w,3).

    n_i is the cross product of the steps to two neighbours next to each other (up and left, left and down, ...), so its
    length is twice an area. w_i = sum_j ||n_j|| - ||n_i||: triangles that reach far, such as those over an edge, weigh
    little. n_m = sum_i w_i n_i / ||n_i||, then made a unit vector. h, w are H - 2, W - 2.
    """
    middle = points[:, 1:-1, 1:-1]
    up, down = points[:, :-2, 1:-1] - middle, points[:, 2:, 1:-1] - middle
    left, right = points[:, 1:-1, :-2] - middle, points[:, 1:-1, 2:] - middle
    pairs = [(up, left), (left, down), (down, right), (right, up)]
    normals = torch.stack([torch.linalg.cross(a, b, dim=-1) for a, b in pairs])
    length = normals.square().sum(dim=-1, keepdim=True).clamp_min(1e-24).sqrt()
    unit = normals / length
    weight = length.sum(dim=0) - length
    return unit, normalize((weight * unit).sum(dim=0), dim=-1, eps=1e-12)


def normal_loss(depth: Tensor, target: Tensor, cameras: Cameras, mask: Tensor) -> Tensor:
    """L_N: angle between the mean normals plus the sum of the angles between the four single ones, in radians.

    Counted where a pixel and its four neighbours are valid. `depth` is aligned already; `cameras` (N,1) unproject both.
    Unchanged by a similarity of the world.
    """
    # Normals of a scaled surface are the same, and products of three lengths want to stay near 1.
    size = _mean_each(target, mask).clamp_min(1e-12)[:, None, None]
    cameras = Cameras(
        world_to_camera=torch.eye(4).to(cameras.world_to_camera).expand_as(cameras.world_to_camera),
        intrinsics=cameras.intrinsics, height=cameras.height, width=cameras.width,
    )  # fmt: skip
    said, said_mean = normals_of_neighbours(unproject((depth / size)[:, None], cameras)[:, 0])
    true, true_mean = normals_of_neighbours(unproject((target / size)[:, None], cameras)[:, 0])
    error = angle(said_mean, true_mean) + angle(said, true).sum(dim=0)
    inner = mask[:, 1:-1, 1:-1] & mask[:, :-2, 1:-1] & mask[:, 2:, 1:-1] & mask[:, 1:-1, :-2] & mask[:, 1:-1, 2:]
    return _mean(error, inner)


def angle(first: Tensor, second: Tensor) -> Tensor:
    """Angle in radians between unit vectors (...,3); its gradient is finite where they are the same."""
    across = torch.linalg.cross(first, second, dim=-1).square().sum(dim=-1)
    return torch.atan2((across + 1e-12).sqrt(), (first * second).sum(dim=-1))


def mask_loss(score: Tensor, truth: Tensor) -> Tensor:
    """L_sky and L_obj: mean squared difference of a score and a mask (N,H,W)."""
    return (score - truth.to(score.dtype)).square().mean()


def teacher_loss(
    depth: Tensor,
    target: Tensor,
    cameras: Cameras,
    sky: tuple[Tensor, Tensor] | None = None,
    objects: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """L_T = alpha L_grad + L_gl + L_N + L_sky + L_obj (section 4.1) by name, weights applied, alpha = 0.5.

    depth, target (N,H,W), 0 where the target has none; cameras (N,1). `sky` and `objects` are pairs of a predicted
    score and a true mask; None where the data do not say.
    """
    mask = target > 0
    aligned = align(depth, target, mask)
    shape = without_slope(aligned, mask)
    parts = {
        "gradient": GRADIENT_WEIGHT * distance_weighted_gradient_loss(shape, target, mask),
        "global_local": relative_loss(aligned, target, mask) + local_loss(depth, target, mask),
        "normal": normal_loss(shape, target, cameras, mask),
    }
    pairs = {"sky": sky, "object": objects}
    return parts | {name: mask_loss(*pair) for name, pair in pairs.items() if pair is not None}


def metric_loss(depth: Tensor, target: Tensor, sky: tuple[Tensor, Tensor] | None = None) -> dict[str, Tensor]:
    """L_depth + L_grad + L_sky of the metric model (section 4.4); all weights 1, as the paper gives none.

    depth and target (N,H,W) are canonical metres (see `training.single_view.canonical_depth`): nothing is aligned.
    L_depth is the mean of |d - D|, L_grad the mean of |step of d - step of D|.
    """
    mask, error = target > 0, depth - target
    steps = [_mean(error.diff(dim=axis).abs(), torch.logical_and(*_neighbours(mask, axis))) for axis in (1, 2)]
    parts = {"depth": _mean(error.abs(), mask), "gradient": steps[0] + steps[1]}
    return parts if sky is None else parts | {"sky": mask_loss(*sky)}


def _neighbours(maps: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """All but the last and all but the first along an axis."""
    length = maps.shape[axis] - 1
    return maps.narrow(axis, 0, length), maps.narrow(axis, 1, length)


def _mean_each(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the mask of each picture (N); 0 where there is none."""
    inside = torch.where(mask, values, torch.zeros_like(values))
    return inside.sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp_min(1)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the mask of each picture, then over the pictures that have any."""
    return _mean_each(values, mask).sum() / mask.any(dim=2).any(dim=1).sum().clamp_min(1)
