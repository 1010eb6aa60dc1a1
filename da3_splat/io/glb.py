"""GLB: a coloured point cloud with the cameras as frustums, through trimesh. Opens in any 3D viewer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh

from da3_splat.io.files import replacing
from da3_splat.types import Cameras

AXES = np.diag([1.0, -1.0, -1.0, 1.0])  # glTF's y points up and z backward


def save_glb(points: np.ndarray, colors: np.ndarray, cameras: Cameras, path: str | Path) -> None:
    """Write points (P,3) with colours (P,3) in [0,1] and the frustums of cameras (1,V), in glTF's axes."""
    rgba = np.concatenate(
        [(colors.clip(0, 1) * 255 + 0.5).astype(np.uint8), np.full((len(points), 1), 255, np.uint8)], 1
    )
    scene = trimesh.Scene()
    if len(points):
        scene.add_geometry(trimesh.PointCloud(points, colors=rgba), geom_name="points")
    centers = cameras.centers[0].detach().double().cpu().numpy()
    spread = np.linalg.norm(centers - centers.mean(axis=0), axis=1).max()
    if spread == 0 and len(points):
        spread = float(np.median(np.linalg.norm(points - centers[0], axis=1)))
    size = 0.1 * (spread or 1.0)
    lines = np.concatenate([_frustum(cameras, view, size) for view in range(len(centers))])
    scene.add_geometry(trimesh.load_path(lines), geom_name="cameras")
    scene.apply_transform(AXES)
    with replacing(path) as beside:
        beside.write_bytes(scene.export(file_type="glb"))


def _frustum(cameras: Cameras, view: int, size: float) -> np.ndarray:
    """Line segments (8,2,3) of one camera: from its centre to the corners of its picture, and around it."""
    k = cameras.intrinsics[0, view].detach().double().cpu().numpy()
    pose = cameras.camera_to_world[0, view].detach().double().cpu().numpy()
    corners = np.array([[0, 0], [cameras.width, 0], [cameras.width, cameras.height], [0, cameras.height]], float)
    rays = np.stack([(corners[:, 0] - k[0, 2]) / k[0, 0], (corners[:, 1] - k[1, 2]) / k[1, 1], np.ones(4)], axis=1)
    tips = size * rays @ pose[:3, :3].T + pose[:3, 3]
    center = np.broadcast_to(pose[:3, 3], tips.shape)
    return np.concatenate([np.stack([center, tips], axis=1), np.stack([tips, np.roll(tips, -1, axis=0)], axis=1)])
