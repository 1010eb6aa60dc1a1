"""One `render` over three backends: gsplat on CUDA, the embedded rasterizer on the CPU, and a plain-torch oracle."""

from __future__ import annotations

import torch
from torch import Tensor

from da3_splat.rendering.constants import EPS2D, EXPECTED_DEPTH_FLOOR, FAR, NEAR
from da3_splat.rendering.screen import Screen
from da3_splat.types import Cameras, Gaussians, Rendering

BACKENDS = ("auto", "gsplat", "cpu", "reference")


def render(
    gaussians: Gaussians,
    cameras: Cameras,
    *,
    background: Tensor | None = None,
    backend: str = "auto",
    sh_degree: int | None = None,
    near: float = NEAR,
    far: float = FAR,
    eps2d: float = EPS2D,
    radius_clip: float = 0.0,
    antialiased: bool = False,
) -> Rendering:
    """Pictures of Gaussians (B,N) from cameras (B,V), with gsplat 1.5.3's semantics on every backend.

    color (B,V,3,H,W) over `background` (3,) (black if None), depth (B,V,H,W) = sum(w z) / max(alpha, 1e-10), alpha
    (B,V,H,W). Differentiable in every Gaussian field, the background and `world_to_camera`. `backend` auto takes
    gsplat for CUDA tensors and the CPU rasterizer otherwise. `sh_degree` uses the lower bands only.
    """
    return render_with_screen(
        gaussians,
        cameras,
        background=background,
        backend=backend,
        sh_degree=sh_degree,
        near=near,
        far=far,
        eps2d=eps2d,
        radius_clip=radius_clip,
        antialiased=antialiased,
    )[0]


def render_with_screen(
    gaussians: Gaussians,
    cameras: Cameras,
    *,
    background: Tensor | None = None,
    backend: str = "auto",
    sh_degree: int | None = None,
    near: float = NEAR,
    far: float = FAR,
    eps2d: float = EPS2D,
    radius_clip: float = 0.0,
    antialiased: bool = False,
    absolute: bool = False,
) -> tuple[Rendering, list[Screen]]:
    """`render`, and for each batch item where its Gaussians fell, which densification needs.

    `absolute` also keeps the sum of |dL/dmeans2d| over pixels.
    """
    batch = gaussians.means.shape[0]
    if cameras.intrinsics.shape[0] != batch:
        raise ValueError(
            f"cameras: expected batch size {batch} as the Gaussians have, got {cameras.intrinsics.shape[0]}"
        )
    if near < 0:
        raise ValueError(f"near: expected a distance >= 0, got {near}")
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "auto":
        backend = "gsplat" if gaussians.means.device.type == "cuda" else "cpu"
    sh = gaussians.sh if sh_degree is None else gaussians.sh[:, :, : (sh_degree + 1) ** 2]
    opacities = gaussians.opacities
    if gaussians.mask is not None:
        opacities = opacities * gaussians.mask  # padding: below 1/255, so never drawn
    settings = dict(height=cameras.height, width=cameras.width, near=near, far=far, eps2d=eps2d)
    settings |= dict(radius_clip=radius_clip, antialiased=antialiased)
    pictures, alphas, screens = [], [], []
    for i in range(batch):
        picture, alpha, screen = _rasterize(
            backend, gaussians.means[i], gaussians.quats[i], gaussians.scales[i], opacities[i], sh[i],
            cameras.world_to_camera[i], cameras.intrinsics[i], settings, absolute,
        )  # fmt: skip
        pictures.append(picture)
        alphas.append(alpha)
        screens.append(screen)
    picture, alpha = torch.stack(pictures), torch.stack(alphas)
    color, depth = picture[..., :3], picture[..., 3]
    if background is not None:
        color = color + (1 - alpha)[..., None] * background
    depth = depth / alpha.clamp_min(EXPECTED_DEPTH_FLOOR)
    return Rendering(color=color.permute(0, 1, 4, 2, 3), depth=depth, alpha=alpha), screens


def _rasterize(backend, means, quats, scales, opacities, sh, world_to_camera, intrinsics, settings, absolute):
    """One batch item on one backend: picture (V,H,W,4), alpha (V,H,W), screen."""
    gaussians = (means, quats, scales, opacities, sh)
    views, count = len(world_to_camera), len(means)
    if backend == "gsplat":
        from da3_splat.rendering.gsplat import rasterize

        picture, alpha, means2d, radii = rasterize(
            *gaussians, world_to_camera, intrinsics, **settings, absolute=absolute
        )
        return picture, alpha, Screen(means2d, radii, probe=means2d)
    if backend == "cpu":
        from da3_splat.rendering import cpu

        differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in (*gaussians, world_to_camera))
        probe = means.new_zeros(views, count, 2).requires_grad_(differentiable)
        settings = cpu.Settings(**settings, absolute=absolute)
        picture, alpha, means2d, radii = cpu.rasterize(*gaussians, world_to_camera, intrinsics, probe, settings)
        return picture, alpha, Screen(means2d, radii, probe)
    from da3_splat.rendering import reference

    pictures = [reference.rasterize(*gaussians, *camera, **settings) for camera in zip(world_to_camera, intrinsics)]
    picture, alpha, means2d, radii = (torch.stack(column) for column in zip(*pictures))
    return picture, alpha, Screen(means2d, radii, probe=means2d)
