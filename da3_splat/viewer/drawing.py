"""What the browser is sent, as arrays: pure functions that know no server."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from da3_splat.geometry.rotations import matrix_to_quaternion, quaternion_to_matrix
from da3_splat.io.images import eight_bits
from da3_splat.io.ply import drawable
from da3_splat.rendering import render
from da3_splat.spherical_harmonics import colors_from
from da3_splat.types import Cameras, Gaussians, Geometry, Views

RULER_FOCAL = 800.0  # pixels: a click means about what one pixel of a window shows


@dataclass(frozen=True)
class SplatArrays:
    """N Gaussians for a browser: centers (N,3), covariances (N,3,3), colors (N,3) and opacities (N,1) in [0,1].

    Centers are in units of `unit` scene units and covariances in its square, because browsers keep covariances in half
    precision: the middle Gaussian has a size of about one.
    """

    centers: np.ndarray
    covariances: np.ndarray
    colors: np.ndarray
    opacities: np.ndarray
    unit: float


def splat_arrays(gaussians: Gaussians, eye: Tensor | None = None) -> SplatArrays:
    """The Gaussians (1,N) that a renderer draws; colours as seen from `eye` (3), as the browser keeps one a Gaussian.
    Without an eye only degree 0 of the colours is taken."""
    gaussians = drawable(gaussians)
    means, scales = gaussians.means[0], gaussians.scales[0]
    colors = colors_from(means, gaussians.sh[0], eye)
    unit = float(scales.median()) if len(scales) else 1.0
    axes = quaternion_to_matrix(gaussians.quats[0]) * (scales / unit)[:, None]
    return SplatArrays(
        centers=(means / unit).numpy(),
        covariances=(axes @ axes.transpose(-1, -2)).clamp(-60_000, 60_000).numpy(),  # half precision ends at 65504
        colors=colors.clamp(0, 1).numpy(),
        opacities=gaussians.opacities[0, :, None].numpy(),
        unit=unit,
    )


def points_by_confidence(geometry: Geometry, views: Views, count: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `count` points (P,3) of pixels with a depth, most confident first, and their colours (P,3) in [0,1].

    Sky and masked pixels are left out; where the model predicts no confidence the order is by chance.
    """
    keep = (geometry.depth[0].isfinite() & (geometry.depth[0] > 0)).flatten()
    if geometry.sky is not None:
        keep &= ~geometry.sky_mask[0].flatten()
    if views.masks is not None:
        keep &= views.masks[0].flatten()
    index = torch.nonzero(keep)[:, 0]
    index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(0))][:count]
    if geometry.confidence is not None:
        index = index[geometry.confidence[0].flatten()[index].argsort(descending=True)]
    points = geometry.points()[0].reshape(-1, 3)[index]
    return points.numpy(), views.images[0].permute(0, 2, 3, 1).reshape(-1, 3)[index].numpy()


def pose_of(cameras: Cameras, view: int) -> tuple[np.ndarray, np.ndarray]:
    """Quaternion wxyz (4) and position (3) in the world of one camera, in float64."""
    pose = cameras.camera_to_world[0, view].detach().cpu().double()
    return matrix_to_quaternion(pose[:3, :3]).numpy(), pose[:3, 3].numpy()


def picture_of(image: Tensor) -> np.ndarray:
    """A picture (3,H,W) in [0,1] as (H,W,3) uint8."""
    return eight_bits(image.permute(1, 2, 0).cpu().numpy())


def up_direction(cameras: Cameras) -> np.ndarray:
    """The unit vector (3) that the cameras (1,V) hold upwards on the whole: against their y axes."""
    up = normalize(-cameras.camera_to_world[0, :, :3, 1].mean(dim=0), dim=0)
    return up.double().numpy() if bool(up.norm() > 0.5) else np.array([0.0, -1.0, 0.0])


def vertical_view(cameras: Cameras, view: int) -> float:
    """The vertical field of view in radians of one camera, its principal point taken as the middle."""
    return 2 * math.atan(cameras.height / 2 / float(cameras.intrinsics[0, view, 1, 1]))


def frustum_size(cameras: Cameras, distance: float) -> float:
    """How deep to draw the cameras (1,V): so that neighbours do not cover each other, a tenth of `distance` at most."""
    centers = cameras.centers[0]
    apart = torch.cdist(centers, centers) + torch.diag(torch.full((len(centers),), torch.inf))
    nearest = apart.min(dim=1).values
    nearest = nearest[(nearest > 0) & nearest.isfinite()]
    return min(0.1 * distance, 0.5 * float(nearest.median())) if len(nearest) else 0.1 * distance


@torch.no_grad()
def point_on_ray(gaussians: Gaussians, origin: np.ndarray, direction: np.ndarray) -> np.ndarray | None:
    """Where a ray (3), (3) in the world meets the scene: the point (3) at the depth that our renderer shows there;
    None where more than half of what it shows is background."""
    forward = normalize(torch.as_tensor(np.asarray(direction), dtype=torch.float32), dim=0)
    start = torch.as_tensor(np.asarray(origin), dtype=torch.float32)
    side = torch.linalg.cross(forward, torch.eye(3)[int(forward.abs().argmin())])
    right = normalize(side, dim=0)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    pose = torch.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, -rotation @ start
    height, width = 3, 5
    lens = torch.tensor([[RULER_FOCAL, 0, width / 2], [0, RULER_FOCAL, height / 2], [0, 0, 1]])
    camera = Cameras(world_to_camera=pose[None, None], intrinsics=lens[None, None], height=height, width=width)
    seen = render(gaussians, camera)
    if float(seen.alpha[0, 0, 1, 2]) < 0.5:
        return None
    return (start + float(seen.depth[0, 0, 1, 2]) * forward).numpy()
