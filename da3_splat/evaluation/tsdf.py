"""Depth maps to one surface, true surfaces to points: the only import of Open3D, made when it is asked for."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from torch import Tensor

from da3_splat.data.benchmarks.scene import ReconstructionRules
from da3_splat.types import Cameras

SAMPLES = 1_000_000  # points on a surface, as the DA3 benchmark takes
FARTHEST = 1e5  # Open3D wants a number


def check_open3d() -> None:
    """ValueError, in one line, where Open3D is not installed."""
    if find_spec("open3d") is None:
        raise ValueError("reconstruction needs Open3D: pip install 'da3-splat[reconstruction]', or say --fusion points")


def fused_points(depth: Tensor, cameras: Cameras, rules: ReconstructionRules, samples: int = SAMPLES) -> np.ndarray:
    """Points (P,3) float64 on the surface that depth maps (V,H,W), 0 where there is none, seen from `cameras` (1,V),
    agree on: a truncated signed distance field (Curless and Levoy 1996), its zero as a mesh, sampled evenly.

    All in the units of the cameras' world. ValueError where no surface comes out.
    """
    import open3d

    volume = open3d.pipelines.integration.ScalableTSDFVolume(
        voxel_length=rules.voxel,
        sdf_trunc=rules.truncation,
        color_type=open3d.pipelines.integration.TSDFVolumeColorType.NoColor,
    )
    height, width = depth.shape[1:]
    grey = open3d.geometry.Image(np.zeros((height, width, 3), np.uint8))
    poses = cameras.world_to_camera[0].double().cpu().numpy()
    intrinsics = cameras.intrinsics[0].double().cpu().numpy()
    for view, values in enumerate(depth.float().cpu().numpy()):
        picture = open3d.geometry.RGBDImage.create_from_color_and_depth(
            grey,
            open3d.geometry.Image(np.ascontiguousarray(values)),
            depth_scale=1.0,
            depth_trunc=min(rules.max_depth, FARTHEST),
            convert_rgb_to_intensity=False,
        )
        k = intrinsics[view]
        # Open3D counts pixel centres from 0, this package from 0.5.
        lens = open3d.camera.PinholeCameraIntrinsic(width, height, k[0, 0], k[1, 1], k[0, 2] - 0.5, k[1, 2] - 0.5)
        volume.integrate(picture, lens, poses[view])
    mesh = volume.extract_triangle_mesh()
    if len(mesh.triangles) == 0:
        raise ValueError(f"the depth maps fuse to no surface (voxels of {rules.voxel:g})")
    return _sampled(mesh, samples)


def surface_points(path: Path, samples: int = SAMPLES) -> np.ndarray:
    """Points (P,3) float64 of a PLY: those of a cloud, or `samples` spread evenly over a mesh."""
    import open3d

    if not path.is_file():
        raise ValueError(f"{path}: the true surface of this scene is not here")
    with open3d.utility.VerbosityContextManager(open3d.utility.VerbosityLevel.Error):  # a cloud is no fault
        mesh = open3d.io.read_triangle_mesh(str(path))
    if len(mesh.triangles) > 0:
        return _sampled(mesh, samples)
    points = np.asarray(open3d.io.read_point_cloud(str(path)).points)
    if len(points) == 0:
        raise ValueError(f"{path}: not a PLY with points")
    return points


def _sampled(mesh, samples: int) -> np.ndarray:
    import open3d

    open3d.utility.random.seed(0)  # the same points every time
    return np.asarray(mesh.sample_points_uniformly(number_of_points=samples).points)
