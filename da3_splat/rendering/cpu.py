"""The embedded rasterizer: gsplat 1.5.3's semantics on the CPU, forward and backward, float32.

One picture at a time: project (projection_kernels) -> order by depth -> lists of Gaussians a tile -> composite
(tile_kernels). Memory is 80 bytes a Gaussian, 4 bytes a Gaussian and tile (50 more for gradients, 16
where only weights are asked for), 24 bytes a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from da3_splat.rendering import projection_kernels, tile_kernels
from da3_splat.rendering.constants import EPS2D, FAR, GRADIENTS, NEAR, PACKED, TILE
from da3_splat.rendering.threads import parallel

CHUNK = 4096  # Gaussians a piece


@dataclass(frozen=True)
class Settings:
    height: int
    width: int
    near: float = NEAR
    far: float = FAR
    eps2d: float = EPS2D
    radius_clip: float = 0.0
    antialiased: bool = False
    absolute: bool = False  # also sum |dL/dmeans2d| over pixels


def rasterize(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, sh: Tensor, world_to_camera: Tensor,
    intrinsics: Tensor, probe: Tensor, settings: Settings,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gaussians (N,...) seen by cameras (V,...): picture (V,H,W,4) = colour and sum(w z), alpha (V,H,W), means2d
    (V,N,2) and radii (V,N,2). `probe` (V,N,2) receives the gradient of means2d and, if wanted, `.absgrad`."""
    tensors = (means, quats, scales, opacities, sh, world_to_camera, intrinsics)
    _on_cpu(*tensors)
    return _Rasterize.apply(*tensors, probe, settings)


def spread_back(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, sh: Tensor, world_to_camera: Tensor,
    intrinsics: Tensor, image: Tensor, counted: Tensor, settings: Settings,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`spreading.spread_back` of Gaussians (N,...) and one camera (4,4), (3,3): a second walk through the tiles that
    asks for nothing but the weights, where the backward pass would follow every parameter."""
    tensors = (means, quats, scales, opacities, sh, world_to_camera, intrinsics, image, counted)
    _on_cpu(*tensors)
    *gaussians, view, k, shown, weights = (tensor.detach().float().contiguous().numpy() for tensor in tensors)
    picture = _draw(gaussians, view, k, settings, differentiable=False)
    missing = (shown.transpose(1, 2, 0) - picture.color[..., :3]) * weights[..., None]
    values = np.concatenate([missing, weights[..., None]], axis=-1, dtype=np.float32)
    columns, rows = -(-settings.width // TILE), -(-settings.height // TILE)
    entries = np.empty((len(picture.gaussian), 4), np.float32)
    parallel(
        lambda start, stop: tile_kernels.spread(
            start, stop, columns, settings.width, settings.height, picture.packed, picture.begin, picture.gaussian,
            picture.last, values, entries,
        ),
        rows * columns,
        8,
    )  # fmt: skip
    count = len(picture.packed)
    sums = np.stack([np.bincount(picture.gaussian, column, minlength=count) for column in entries.T], axis=-1)
    lit = picture.packed[:, 8:11] > 0  # of a colour that is clamped at black, nothing changes the picture
    spread, weight = (torch.from_numpy((part * lit).astype(np.float32)) for part in (sums[:, :3], sums[:, 3:]))
    return spread, weight


def _on_cpu(*tensors: Tensor) -> None:
    if any(tensor.device.type != "cpu" for tensor in tensors):
        raise ValueError("the cpu backend renders tensors on the CPU only; use backend='gsplat' on CUDA")


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, quats, scales, opacities, sh, world_to_camera, intrinsics, probe, settings):
        gaussians = [tensor.detach().float().contiguous().numpy() for tensor in (means, quats, scales, opacities, sh)]
        cameras = [tensor.detach().float().contiguous().numpy() for tensor in (world_to_camera, intrinsics)]
        differentiable = any(ctx.needs_input_grad)
        pictures = [_draw(gaussians, view, k, settings, differentiable) for view, k in zip(*cameras)]
        ctx.gaussians, ctx.cameras, ctx.settings, ctx.probe = gaussians, cameras, settings, probe
        ctx.pictures = pictures if differentiable else None
        ctx.shapes = [(tensor.shape, tensor.dtype) for tensor in (means, quats, scales, opacities, sh, world_to_camera)]
        outputs = tuple(
            torch.from_numpy(_stacked([getattr(picture, name) for picture in pictures]))
            for name in ("color", "alpha", "means2d", "radii")
        )
        ctx.mark_non_differentiable(*outputs[2:])
        return outputs

    @staticmethod
    def backward(ctx, v_color, v_alpha, _means2d, _radii):
        gradients = [np.zeros(tuple(shape), np.float32) for shape, _ in ctx.shapes]
        v_means2d = np.zeros((*ctx.probe.shape,), np.float32)
        v_absolute = np.zeros((*ctx.probe.shape,), np.float32) if ctx.settings.absolute else None
        for index, picture in enumerate(ctx.pictures):
            _draw_backward(
                ctx.gaussians,
                ctx.cameras[0][index],
                ctx.cameras[1][index],
                ctx.settings,
                picture,
                v_color[index].float().contiguous().numpy(),
                v_alpha[index].float().contiguous().numpy(),
                [*gradients[:5], gradients[5][index]],
                v_means2d[index],
                v_absolute[index] if ctx.settings.absolute else np.zeros((1, 2), np.float32),
            )
        if ctx.settings.absolute:
            ctx.probe.absgrad = torch.from_numpy(v_absolute)
        typed = [torch.from_numpy(g).to(dtype) for g, (_, dtype) in zip(gradients, ctx.shapes)]
        return (*typed, None, torch.from_numpy(v_means2d), None)


def _stacked(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)  # one picture is not copied


@dataclass
class _Picture:
    """One rendered picture and what its backward pass needs."""

    color: np.ndarray  # (H,W,4)
    alpha: np.ndarray  # (H,W)
    means2d: np.ndarray  # (N,2)
    radii: np.ndarray  # (N,2)
    packed: np.ndarray
    offsets: np.ndarray | None
    begin: np.ndarray
    gaussian: np.ndarray
    slot: np.ndarray
    transmittance: np.ndarray
    last: np.ndarray


def _draw(gaussians, view, intrinsics, settings: Settings, differentiable: bool) -> _Picture:
    means, quats, scales, opacities, sh = gaussians
    count, height, width = len(means), settings.height, settings.width
    columns, rows = -(-width // TILE), -(-height // TILE)
    degree = int(sh.shape[1] ** 0.5) - 1
    packed = np.zeros((count, PACKED), np.float32)
    radii, tiles = np.zeros((count, 2), np.int32), np.zeros((count, 4), np.int16)
    parallel(
        lambda start, stop: projection_kernels.project(
            start, stop, means, quats, scales, opacities, sh, degree, view, intrinsics, width, height,
            np.float32(settings.near), np.float32(settings.far), np.float32(settings.eps2d),
            np.float32(settings.radius_clip), settings.antialiased, packed, radii, tiles,
        ),
        count,
        CHUNK,
    )  # fmt: skip
    order = _depth_order(packed, tiles)
    counts = np.zeros(rows * columns, np.int64)
    parallel(lambda start, stop: tile_kernels.count_tiles(start, stop, order, tiles, columns, counts), rows, 4)
    begin = np.concatenate([[0], np.cumsum(counts)])
    gaussian = np.empty(begin[-1], np.int32)
    offsets = _offsets(tiles, radii) if differentiable else np.zeros(1, np.int64)
    slot = np.empty(begin[-1] if differentiable else 0, np.int64)
    cursor = begin[:-1].copy()
    parallel(
        lambda start, stop: tile_kernels.fill_tiles(
            start, stop, order, tiles, columns, cursor, offsets, gaussian, slot
        ),
        rows,
        4,
    )
    color = np.zeros((height, width, 4), np.float32)
    transmittance, last = np.ones((height, width), np.float32), np.zeros((height, width), np.float32)
    parallel(
        lambda start, stop: tile_kernels.composite(
            start, stop, columns, width, height, packed, begin, gaussian, color, transmittance, last
        ),
        rows * columns,
        8,
    )
    return _Picture(
        color,
        1 - transmittance,
        packed[:, :2].copy(),
        radii,
        packed,
        offsets,
        begin,
        gaussian,
        slot,
        transmittance,
        last,
    )


def _draw_backward(gaussians, view, intrinsics, settings, picture, v_color, v_alpha, gradients, v_means2d, v_absolute):
    """Add the gradients of one picture to `gradients` (means, quats, scales, opacities, sh, world_to_camera)."""
    means, quats, scales, opacities, sh = gaussians
    v_means, v_quats, v_scales, v_opacities, v_sh, v_view = gradients
    height, width = settings.height, settings.width
    columns, rows = -(-width // TILE), -(-height // TILE)
    entries = len(picture.gaussian)
    buffer = np.zeros((entries, GRADIENTS), np.float32)
    absolute = np.zeros((entries if settings.absolute else 1, 2), np.float32)
    parallel(
        lambda start, stop: tile_kernels.composite_backward(
            start, stop, columns, width, height, picture.packed, picture.begin, picture.gaussian, picture.slot,
            picture.transmittance, picture.last, v_color, v_alpha, buffer, absolute, settings.absolute,
        ),
        rows * columns,
        8,
    )  # fmt: skip
    degree = int(sh.shape[1] ** 0.5) - 1
    pieces = np.zeros((-(-len(means) // CHUNK), 3, 4), np.float32)  # of the view's gradient, added in a fixed order
    parallel(
        lambda start, stop: projection_kernels.project_backward(
            start, stop, means, quats, scales, opacities, sh, degree, view, intrinsics, width, height,
            np.float32(settings.eps2d), settings.antialiased, picture.radii, picture.packed, picture.offsets, buffer,
            absolute, settings.absolute, v_means, v_quats, v_scales, v_opacities, v_sh, v_means2d, v_absolute,
            pieces[start // CHUNK],
        ),
        len(means),
        CHUNK,
    )  # fmt: skip
    v_view[:3] += pieces.sum(axis=0, dtype=np.float64).astype(np.float32)


def _offsets(tiles: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Where each Gaussian's rows of the gradient buffer begin (N+1): one row for every tile it touches."""
    area = (tiles[:, 1] - tiles[:, 0]).astype(np.int64) * (tiles[:, 3] - tiles[:, 2])
    area[radii[:, 0] == 0] = 0
    return np.concatenate([[0], np.cumsum(area)])


def _depth_order(packed: np.ndarray, tiles: np.ndarray) -> np.ndarray:
    """Gaussians that touch a tile, nearest first, ties by index: one sort of (depth bits, index) as 64-bit integers."""
    visible = np.flatnonzero((tiles[:, 1] > tiles[:, 0]) & (tiles[:, 3] > tiles[:, 2]))
    keys = packed[visible, 11].view(np.uint32).astype(np.uint64)  # z >= 0: the order of floats is that of their bits
    keys <<= np.uint64(32)
    keys |= visible.view(np.uint64)
    keys.sort()
    keys &= np.uint64(0xFFFFFFFF)
    return keys.astype(np.int32)
