"""Reconstruction: the surface that all views together give, beside the true one.

frames -> a method (methods.py) -> depth, cameras
pose-free: one similarity from its cameras to the true ones     `robust_similarity`
depth where the truth is known -> TSDF -> mesh -> points        tsdf.py
points beside the true surface's -> F1, chamfer                 clouds.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from da3_splat.data.benchmarks.scene import ReconstructionRules
from da3_splat.data.captures import evenly_spaced
from da3_splat.data.views import read_frames
from da3_splat.evaluation import panels
from da3_splat.evaluation.clouds import CloudScores, cloud_scores, thinned_to_voxels, within_box
from da3_splat.evaluation.measuring import measured
from da3_splat.evaluation.methods import Method
from da3_splat.evaluation.results import mean_of
from da3_splat.evaluation.runner import SceneScore
from da3_splat.evaluation.scenes import SceneWithDepth
from da3_splat.evaluation.tsdf import check_open3d, fused_points, surface_points
from da3_splat.geometry.alignment import Similarity, ransac_similarity, transform_cameras
from da3_splat.geometry.projection import unproject
from da3_splat.geometry.user_frame import camera_similarity
from da3_splat.io.frames import Frame
from da3_splat.types import Cameras, Geometry, Scene, Views, Window

NAMES = tuple(item.name for item in fields(CloudScores))
ALIGNMENTS = {
    "posed": "none: the method was given the cameras",
    "free": "one similarity from the predicted to the true cameras: RANSAC over Umeyama on the centres of half of them "
    "(threshold: median distance to the nearest true centre after a first fit), refitted on the inliers, scale by "
    "their centres, rotation by centres and axes",
}


@dataclass
class Reconstruction:
    """The task for `runner.run`: `views` evenly spaced frames of each scene, in units of the scene's world."""

    predictor: Method
    rules: ReconstructionRules
    poses: Literal["posed", "free"] = "free"
    views: int = 8
    resolution: int = 504
    device: str = "cpu"
    name = "reconstruction"

    def __post_init__(self):
        if self.views < 1:
            raise ValueError(f"views: expected at least 1, got {self.views}")
        if self.rules.fusion == "tsdf":
            check_open3d()

    @property
    def protocol(self) -> dict:
        rules = {name: value for name, value in asdict(self.rules).items() if value not in (None, float("inf"))}
        return {
            "poses": self.poses,
            "alignment": ALIGNMENTS[self.poses],
            "views": self.views,
            "resolution": self.resolution,
            **rules,
            "clouds": "depth of all views where the truth is known and there is no sky, fused as `fusion` says; the "
            "truth is the scene's surface, else the true depth of the same views; both thinned to cubes of `thinned`; "
            "depth beyond twice the distance of the farthest true point is taken as that far",
        }

    @property
    def method(self) -> dict:
        return self.predictor.identity

    def score(self, scene: SceneWithDepth) -> SceneScore:
        """F1, chamfer and the rest of one scene."""
        frames = scene.frames()
        known = [index for index in range(len(frames)) if scene.surface is not None or scene.has_depth(index)]
        if not known:
            raise ValueError(f"{scene.name}: no picture has true depth")
        chosen = evenly_spaced(known, self.views)
        views = read_frames([frames[index] for index in chosen], resolution=self.resolution).to(self.device)
        if views.cameras is None:
            raise ValueError(f"{scene.name}: its frames have no cameras")
        given = views if self.poses == "posed" else replace(views, cameras=None)
        with measured() as prediction:
            found = self.predictor.predict(given, scene.name)
        depths = ((index, scene.depth(index)) for index in chosen if scene.has_depth(index))
        truths = {index: depth for index, depth in depths if depth is not None}
        if scene.surface is None:
            true = np.concatenate([true_points(frames[index], truth) for index, truth in truths.items()])
        else:
            true = surface_points(scene.surface)
        if len(true) == 0:
            raise ValueError(f"{scene.name}: no picture has true depth")
        points = self._points(found, views, [truths.get(index) for index in chosen], true)
        if self.rules.margin is not None:
            points = within_box(points, true, self.rules.margin)
        if scene.judged is not None:
            points, true = scene.judged(points, true)
        points, true = (thinned_to_voxels(cloud, self.rules.thinned) for cloud in (points, true))
        scores = cloud_scores(points, true, self.rules.threshold, self.rules.cap)
        timing = {"seconds": prediction.seconds, "peak_memory_mb": prediction.peak_memory_mb}
        return SceneScore({**asdict(scores), "frames": chosen}, timing, _pictures(found, views, truths))

    def summary(self, scenes: Sequence[dict]) -> dict:
        """Means over scenes."""
        return {name: mean_of([scene[name] for scene in scenes]) for name in NAMES}

    def _points(self, found: Scene, views: Views, truths: Sequence[Tensor | None], true: np.ndarray) -> np.ndarray:
        """The points (P,3) float64 of what the method saw, in the true frame, where `true` (Q,3) is."""
        geometry = kept_where_known(found.geometry, views, truths)
        if self.poses == "free":
            motion = robust_similarity(geometry.known_cameras, views.known_cameras)
            depth = geometry.depth * motion.scale[:, None, None, None]
            geometry = Geometry(depth=depth, cameras=transform_cameras(motion, geometry.known_cameras))
        # What is twice too far is wrong however far it is, and a surface a kilometre away would not fit in memory.
        geometry = replace(geometry, depth=geometry.depth.clamp_max(2 * farthest(true, views.known_cameras)))
        if self.rules.fusion == "tsdf":
            return fused_points(geometry.depth[0], geometry.known_cameras, self.rules)
        shown = (geometry.depth > 0) & (geometry.depth <= self.rules.max_depth)
        return geometry.points()[shown].double().cpu().numpy()


def kept_where_known(geometry: Geometry, views: Views, truths: Sequence[Tensor | None]) -> Geometry:
    """Depth and cameras of a prediction, depth 0 in the sky, where it is not finite, and where a view has a true depth
    map (H',W') that is 0 there."""
    depth = torch.where(geometry.depth.isfinite(), geometry.depth, 0).clamp_min(0)
    if geometry.sky is not None:
        depth = torch.where(geometry.sky_mask, 0, depth)
    masks = [
        torch.ones(depth.shape[-2:], dtype=torch.bool)
        if truth is None
        else at_view_size(truth, window, *depth.shape[-2:]) > 0
        for truth, window in zip(truths, views.windows)
    ]
    return Geometry(depth=torch.where(torch.stack(masks)[None].to(depth.device), depth, 0), cameras=geometry.cameras)


def at_view_size(values: Tensor, window: Window, height: int, width: int) -> Tensor:
    """Of a map (H,W) of the original picture, the value nearest to each pixel centre (height,width) of the view."""
    rows, columns = values.shape
    y = window.top + (torch.arange(height) + 0.5) / height * window.window_height
    x = window.left + (torch.arange(width) + 0.5) / width * window.window_width
    y = (y / window.height * rows).long().clamp(0, rows - 1)
    x = (x / window.width * columns).long().clamp(0, columns - 1)
    return values[y[:, None], x[None]]


def robust_similarity(predicted: Cameras, true: Cameras) -> Similarity:
    """The similarity (1,) from predicted cameras (1,V) to the true ones that leaves out those that are far off.

    As the DA3 benchmark, RANSAC over Umeyama on the centres of half of the cameras at a time, which also gives the
    scale; but the rotation is refitted on the inliers' centres and axes together, so that cameras on a line are no
    special case. Fewer than four cameras, or centres that nothing fits, are fitted all together, by centres and axes.
    """
    whole = camera_similarity(predicted, true)
    source, target = predicted.centers[0].double(), true.centers[0].double()
    if len(source) < 4:
        return whole
    moved = whole.apply(predicted.centers)[0].double()
    threshold = float(torch.cdist(moved, target).amin(dim=1).median())
    extent = float((target - target.mean(dim=0)).norm(dim=1).max())
    # Half of the cameras, not three: where all are off, three agree by chance at any scale.
    half, threshold = max(3, len(source) // 2), max(threshold, 1e-3 * extent, 1e-12)
    fitted, inliers = ransac_similarity(source, target, threshold, sample=half)
    kept = torch.nonzero(inliers)[:, 0].tolist()
    if len(kept) < 3 or float(fitted.scale) <= 0:
        return whole
    scale = fitted.scale.reshape(1).to(whole.scale)
    return camera_similarity(predicted.select(kept), true.select(kept), scale)


def farthest(points: np.ndarray, cameras: Cameras) -> float:
    """The largest distance between one of the points (P,3) and one of the cameras (1,V)."""
    centers = cameras.centers[0].double().cpu().numpy()
    return max(float(np.linalg.norm(points - center, axis=1).max()) for center in centers)


def true_points(frame: Frame, depth: Tensor) -> np.ndarray:
    """The surface points (P,3) float64 of a frame with true z-depth (H,W), 0 where it is not known."""
    if frame.lens is not None:
        raise ValueError(f"{frame.path}: its lens bends the depth map; undistort both first")
    height, width = depth.shape
    return unproject(depth[None, None].double(), frame.camera.resized(height, width))[0, 0][depth > 0].numpy()


def _pictures(found: Scene, views: Views, truths: dict[int, Tensor]) -> dict[str, np.ndarray]:
    pictures = {
        "input": panels.picture(views.images[0, 0]),
        "depth": panels.depth_picture(found.geometry.depth[0, 0]),
    }
    if truths:
        pictures["truth"] = panels.depth_picture(next(iter(truths.values())))
    return pictures
