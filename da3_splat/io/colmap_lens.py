"""Lens distortion by COLMAP's camera models, all of them, through pycolmap."""

from __future__ import annotations

import numpy as np
import pycolmap

from da3_splat.io.frames import Lens


def lens_camera(lens: Lens, height: int, width: int) -> pycolmap.Camera:
    """pycolmap's camera of a lens; ValueError names a model that does not exist or has other parameters."""
    if lens.model not in pycolmap.CameraModelId.__members__ or lens.model in ("INVALID", "EQUIRECTANGULAR"):
        raise ValueError(f"camera model {lens.model} is not supported; use perspective or fisheye pictures")
    camera = pycolmap.Camera(model=lens.model, width=width, height=height, params=list(lens.params))
    if not camera.verify_params():
        raise ValueError(f"camera model {lens.model}: expected parameters {camera.params_info}, got {lens.params}")
    return camera


def distorted_pixels(lens: Lens, height: int, width: int, rays: np.ndarray) -> np.ndarray:
    """Where the lens of a height x width picture draws rays (N,2) on the plane z = 1: pixels (N,2), centres at +0.5.

    NaN where a ray does not reach the picture: behind the lens, or beyond the angle up to which its polynomial grows.
    """
    camera = lens_camera(lens, height, width)
    points = np.concatenate([rays, np.ones_like(rays[:, :1])], axis=1)
    pixels = camera.img_from_cam(points)
    # A polynomial that turns back draws far rays into the picture a second time: only what maps back counts.
    inside = np.isfinite(pixels).all(axis=1) & (pixels > -1).all(axis=1)
    inside &= (pixels[:, 0] < width + 1) & (pixels[:, 1] < height + 1)
    back = np.full_like(pixels, np.nan)
    back[inside] = camera.cam_from_img(pixels[inside])
    reached = np.linalg.norm(back - rays, axis=1) <= 1e-3 * (1 + np.linalg.norm(rays, axis=1))
    return np.where(reached[:, None], pixels, np.nan)
