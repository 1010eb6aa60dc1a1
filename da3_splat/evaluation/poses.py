"""Poses: pictures alone go in, the cameras found are compared pair by pair with the true ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from da3_splat.data.views import read_frames
from da3_splat.evaluation import panels
from da3_splat.evaluation.measuring import measured
from da3_splat.evaluation.methods import Method
from da3_splat.evaluation.results import mean_of
from da3_splat.evaluation.runner import SceneScore
from da3_splat.evaluation.scenes import EvaluationScene
from da3_splat.metrics import error_histogram, pose_auc, relative_pose_errors

THRESHOLDS = (3, 5, 15, 30)  # degrees
DEGREES = 30  # of the histogram


@dataclass
class Poses:
    """The task for `runner.run`: at most `views` random frames of each scene, longest side `resolution` pixels."""

    predictor: Method
    views: int = 100
    resolution: int = 504
    seed: int = 42
    device: str = "cpu"
    name = "poses"

    def __post_init__(self):
        if self.views < 2:
            raise ValueError(f"views: expected at least 2, got {self.views}")

    @property
    def protocol(self) -> dict:
        return {
            "views": self.views,
            "views_seed": self.seed,
            "resolution": self.resolution,
            "input": "pictures alone, at most so many random frames a scene, in the order of the capture",
            "pairs": "all pairs of views; error = max(rotation angle, angle of translation directions up to sign)",
            "auc": "mean over 1-degree bins of the cumulated share of pairs, in percent; mean over scenes",
        }

    @property
    def method(self) -> dict:
        return self.predictor.identity

    def score(self, scene: EvaluationScene) -> SceneScore:
        """AUC in percent, the errors of all pairs in degrees, and their histogram, of one scene."""
        frames = scene.frames()
        chosen = list(range(len(frames)))
        if len(chosen) > self.views:
            chosen = sorted(random.Random(self.seed).sample(chosen, self.views))
        if len(chosen) < 2 or any(frames[index].world_to_camera is None for index in chosen):
            raise ValueError(f"{scene.name}: expected two frames or more with true cameras, got {len(chosen)} frames")
        views = read_frames([frames[index] for index in chosen], resolution=self.resolution).to(self.device)
        with measured() as prediction:
            found = self.predictor.predict(replace(views, cameras=None), scene.name)
        rotation, direction = (e.cpu() for e in relative_pose_errors(found.cameras, views.known_cameras))
        errors = torch.maximum(rotation, direction)
        if not bool(errors.isfinite().all()):
            raise ValueError("the predicted poses are not finite")
        pairs = torch.triu_indices(len(chosen), len(chosen), offset=1).T.tolist()
        scores = {
            **{f"auc_{t}": 100 * float(pose_auc(errors, t)[0]) for t in THRESHOLDS},
            "rotation_median_deg": float(rotation.median()),
            "direction_median_deg": float(direction.median()),
            "histogram": error_histogram(errors, DEGREES)[0].tolist(),
            "frames": chosen,
            "pairs": [
                {"first": chosen[i], "second": chosen[j], "rotation_deg": r, "direction_deg": d}
                for (i, j), r, d in zip(pairs, rotation[0].tolist(), direction[0].tolist())
            ],
        }
        timing = {"seconds": prediction.seconds, "peak_memory_mb": prediction.peak_memory_mb}
        pictures = {
            "input": panels.picture(views.images[0, 0]),
            "depth": panels.depth_picture(found.geometry.depth[0, 0]),
            "errors": _matrix(errors[0].numpy(), len(chosen)),
        }
        return SceneScore(scores, timing, pictures)

    def summary(self, scenes: Sequence[dict]) -> dict:
        """Means over scenes, and the histogram of all their pairs together."""
        names = [*(f"auc_{t}" for t in THRESHOLDS), "rotation_median_deg", "direction_median_deg"]
        means = {name: mean_of([scene[name] for scene in scenes]) for name in names}
        histogram = np.sum([scene["histogram"] for scene in scenes], axis=0).tolist()
        return {**means, "histogram": histogram, "pairs": sum(len(scene["pairs"]) for scene in scenes)}


def _matrix(errors: np.ndarray, views: int) -> np.ndarray:
    """The errors of all pairs as a picture: view against view, white at 30 degrees, a block of pixels a pair."""
    table = np.zeros((views, views))
    table[np.triu_indices(views, 1)] = errors
    block = max(1, 252 // views)
    return np.kron(panels.color_of_error(table + table.T, DEGREES), np.ones((block, block, 1)))
