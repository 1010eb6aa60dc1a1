"""The CUDA backend: gsplat's rasterization behind our own signature. The only file that imports gsplat's renderer."""

from __future__ import annotations

import torch
from torch import Tensor


def rasterize(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, sh: Tensor, world_to_camera: Tensor,
    intrinsics: Tensor, height: int, width: int, near: float, far: float, eps2d: float, radius_clip: float,
    antialiased: bool, absolute: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """As `cpu.rasterize` for CUDA tensors: picture (V,H,W,4), alpha (V,H,W), means2d (V,N,2), radii (V,N,2).

    means2d keeps its gradient (`.grad`, `.absgrad`) as gsplat leaves it.
    """
    # Without CUDA a call would start compiling gsplat's extension or fail with a message about something else.
    if not torch.cuda.is_available() or means.device.type != "cuda":
        raise ValueError("backend 'gsplat' needs Gaussians on a CUDA device; use backend='cpu' or 'auto'")
    from gsplat import rasterization

    color, alpha, info = rasterization(
        means, quats, scales, opacities, sh, world_to_camera, intrinsics, width, height,
        near_plane=near, far_plane=far, eps2d=eps2d, radius_clip=radius_clip, packed=False, absgrad=absolute,
        sh_degree=int(sh.shape[1] ** 0.5) - 1, render_mode="RGB+D",
        rasterize_mode="antialiased" if antialiased else "classic",
    )  # fmt: skip
    return color, alpha[..., 0], info["means2d"], info["radii"]
