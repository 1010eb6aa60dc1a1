"""Reconstruction: the points of all views together, beside the surface that those views truly see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

import numpy as np
from torch import Tensor

from da3_splat.data.captures import evenly_spaced
from da3_splat.data.views import read_frames
from da3_splat.evaluation import panels
from da3_splat.evaluation.clouds import CloudScores, cloud_scores, thinned_to_voxels
from da3_splat.evaluation.measuring import measured
from da3_splat.evaluation.methods import Method
from da3_splat.evaluation.results import mean_of
from da3_splat.evaluation.runner import SceneScore
from da3_splat.evaluation.scenes import SceneWithDepth
from da3_splat.geometry.projection import unproject
from da3_splat.geometry.user_frame import camera_similarity
from da3_splat.io.frames import Frame
from da3_splat.types import Cameras, Scene, Views

NAMES = tuple(item.name for item in fields(CloudScores))
VOXELS_A_THRESHOLD = 4  # clouds are thinned to cubes of a quarter of the threshold
ALIGNMENTS = {
    "posed": "none: the method was given the cameras",
    "free": "one similarity (Umeyama on camera centres and axes) from the predicted to the true cameras",
}


@dataclass
class Reconstruction:
    """The task for `runner.run`: `views` evenly spaced frames of each scene, in units of the scene's world."""

    predictor: Method
    poses: Literal["posed", "free"] = "free"
    threshold: float = 0.05
    views: int = 8
    resolution: int = 504
    device: str = "cpu"
    name = "reconstruction"

    def __post_init__(self):
        if self.threshold <= 0 or self.views < 1:
            raise ValueError(f"expected a threshold above 0 and views of 1 or more, got {self.threshold}, {self.views}")

    @property
    def protocol(self) -> dict:
        return {
            "poses": self.poses,
            "alignment": ALIGNMENTS[self.poses],
            "threshold": self.threshold,
            "views": self.views,
            "resolution": self.resolution,
            "clouds": "pixels of all views with depth, no sky; the truth is the true depth of the same views; both "
            f"thinned to cubes of threshold/{VOXELS_A_THRESHOLD}; no TSDF fusion, unlike DA3's benchmark",
        }

    @property
    def method(self) -> dict:
        return self.predictor.identity

    def score(self, scene: SceneWithDepth) -> SceneScore:
        """F1, chamfer and the rest of one scene."""
        frames = scene.frames()
        known = [index for index in range(len(frames)) if scene.depth(index) is not None]
        if not known:
            raise ValueError(f"{scene.name}: no picture has true depth")
        chosen = evenly_spaced(known, self.views)
        views = read_frames([frames[index] for index in chosen], resolution=self.resolution).to(self.device)
        given = views if self.poses == "posed" else replace(views, cameras=None)
        with measured() as prediction:
            found = self.predictor.predict(given, scene.name)
        true = np.concatenate([true_points(frames[index], scene.depth(index)) for index in chosen])
        size = self.threshold / VOXELS_A_THRESHOLD
        points = thinned_to_voxels(self._points(found, views), size)
        scores = cloud_scores(points, thinned_to_voxels(true, size), self.threshold)
        pictures = {
            "input": panels.picture(views.images[0, 0]),
            "depth": panels.depth_picture(found.geometry.depth[0, 0]),
            "truth": panels.depth_picture(scene.depth(chosen[0])),
        }
        timing = {"seconds": prediction.seconds, "peak_memory_mb": prediction.peak_memory_mb}
        return SceneScore({**asdict(scores), "frames": chosen}, timing, pictures)

    def summary(self, scenes: Sequence[dict]) -> dict:
        """Means over scenes."""
        return {name: mean_of([scene[name] for scene in scenes]) for name in NAMES}

    def _points(self, found: Scene, views: Views) -> np.ndarray:
        """The points (P,3) float64 of what the method saw, in the true frame."""
        geometry = found.geometry
        kept = geometry.depth > 0
        if geometry.sky is not None:
            kept &= ~geometry.sky_mask
        points = geometry.points()[kept]
        if self.poses == "free":
            points = camera_similarity(geometry.cameras, views.cameras).apply(points[None])[0]
        return points.double().cpu().numpy()


def true_points(frame: Frame, depth: Tensor) -> np.ndarray:
    """The surface points (P,3) float64 of a frame with true z-depth (H,W), 0 where it is not known."""
    camera = Cameras(
        world_to_camera=frame.world_to_camera[None, None],
        intrinsics=frame.intrinsics[None, None],
        height=frame.height,
        width=frame.width,
    ).resized(*depth.shape)
    return unproject(depth[None, None].double(), camera)[0, 0][depth > 0].numpy()
