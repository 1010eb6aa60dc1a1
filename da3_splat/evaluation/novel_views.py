"""Novel views: contexts go in, held-out views are rendered and compared with their pictures.

frames of a scene -> contexts, targets        protocol.py, by poses or by an index file
contexts alone    -> Scene                    a method (methods.py); no target is even read before it is done
targets' cameras  -> in the scene's frame     target_poses.py
renderings beside the targets' pictures -> scores
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from da3_splat.data.view_index import ViewIndex
from da3_splat.evaluation import panels
from da3_splat.evaluation.image_scores import NAMES, ImageScores
from da3_splat.evaluation.measuring import measured
from da3_splat.evaluation.methods import Method
from da3_splat.evaluation.pictures import load_at
from da3_splat.evaluation.protocol import NovelViewProtocol
from da3_splat.evaluation.results import mean_of
from da3_splat.evaluation.runner import SceneScore
from da3_splat.evaluation.scenes import EvaluationScene
from da3_splat.evaluation.target_poses import aligned_to_pictures, moved_to_prediction
from da3_splat.io.frames import poses_of
from da3_splat.rendering import render
from da3_splat.types import Cameras, Rendering, Scene, Views


@dataclass
class NovelViews:
    """The task for `runner.run`: a method under a protocol."""

    predictor: Method
    settings: NovelViewProtocol
    scores: ImageScores = field(default_factory=ImageScores.available)
    device: str = "cpu"
    name = "novel-views"

    def __post_init__(self):
        self._index = self.settings.read_index()

    @property
    def protocol(self) -> dict:
        return {**self.settings.describe(), "not_available": dict(self.scores.missing)}

    @property
    def method(self) -> dict:
        return self.predictor.identity

    def score(self, scene: EvaluationScene) -> SceneScore:
        """Scores of one scene: its means, and each of its targets."""
        frames = scene.frames()
        chosen = self.settings.choose(poses_of(frames), self._views_of(scene.name), scene.name)
        contexts = load_at([frames[index] for index in chosen.context], self.settings.size.network).to(self.device)
        given = contexts if self.settings.poses == "posed" else replace(contexts, cameras=None)
        with measured() as prediction:
            found = self.predictor.predict(given, scene.name)
        rows: list[dict[str, Any]] = []
        shown, rendering_seconds, alignment_seconds = [], 0.0, 0.0
        for index in chosen.target:
            target = load_at([frames[index]], self.settings.size).to(self.device)
            with measured() as alignment:
                camera = self._camera(target, found, contexts)
            with measured() as drawing, torch.no_grad():
                rendered = render(found.gaussians, camera)
            mask = None if target.masks is None else target.masks[0, 0]
            row = {"index": index, "name": frames[index].name, "is_context": index in chosen.context}
            rows.append({**row, **self.scores(rendered.color[0, 0], target.images[0, 0], mask)})
            shown.append((target, rendered))
            rendering_seconds += drawing.seconds
            alignment_seconds += alignment.seconds
        gaussians = found.gaussians.means.shape[1]
        timing = {
            "seconds": prediction.seconds + rendering_seconds + alignment_seconds,
            "predict_seconds": prediction.seconds,
            "align_seconds": alignment_seconds,
            "render_seconds_a_view": rendering_seconds / len(rows),
            "peak_memory_mb": prediction.peak_memory_mb,
        }
        median = sorted(range(len(rows)), key=lambda number: rows[number]["psnr"])[len(rows) // 2]
        return SceneScore(
            scores={**scene_means(rows), "gaussians": gaussians, "contexts": list(chosen.context), "views": rows},
            timing=timing,
            pictures=_pictures(contexts, *shown[median]),
        )

    def summary(self, scenes: Sequence[dict]) -> dict:
        """psnr (dB), ssim, lpips by network, over all targets and over those that are no contexts; Gaussians."""
        means = {name: mean_of([scene[name] for scene in scenes]) for name in NAMES}
        apart = [scene["without_contexts"] for scene in scenes if scene["without_contexts"] is not None]
        shared = sum(view["is_context"] for scene in scenes for view in scene["views"])
        return {
            **_with_lpips(means),
            "without_contexts": _with_lpips({name: mean_of([scores[name] for scores in apart]) for name in NAMES}),
            "targets": sum(len(scene["views"]) for scene in scenes),
            "targets_that_are_contexts": shared,
            "gaussians": sum(scene["gaussians"] for scene in scenes) / len(scenes),
        }

    def _views_of(self, scene: str) -> ViewIndex | None:
        if self._index is None:
            return None
        if self._index.get(scene) is None:
            raise ValueError(f"{self.settings.index}: says nothing of the scene {scene}")
        return self._index[scene]

    def _camera(self, target: Views, found: Scene, contexts: Views) -> Cameras:
        """The camera (1,1) to render a target from, in the frame of the Gaussians."""
        if self.settings.poses == "posed":
            return target.known_cameras
        camera = moved_to_prediction(target.known_cameras, found.cameras, contexts.known_cameras)
        if self.settings.poses == "raw":
            return camera
        return aligned_to_pictures(found.gaussians, replace(target, cameras=camera), self.settings.alignment_steps)


def scene_means(rows: Sequence[dict]) -> dict:
    """Means over the targets of a scene, and over those that are no contexts (None where there is none)."""
    apart = [row for row in rows if not row["is_context"]]
    means = {name: mean_of([row[name] for row in rows]) for name in NAMES}
    without = {name: mean_of([row[name] for row in apart]) for name in NAMES} if apart else None
    return {**means, "without_contexts": without}


def _with_lpips(means: dict) -> dict:
    """The networks of LPIPS under one name, which is what a reader of results.json looks for."""
    lpips = {name.removeprefix("lpips_"): value for name, value in means.items() if name.startswith("lpips_")}
    return {**{name: value for name, value in means.items() if not name.startswith("lpips_")}, "lpips": lpips}


def _pictures(contexts: Views, target: Views, rendered: Rendering) -> dict[str, np.ndarray]:
    """The context nearest to a target, its rendering, its picture, what differs, and the depth rendered."""
    color, truth = rendered.color[0, 0].clamp(0, 1), target.images[0, 0]
    nearest = int((contexts.known_cameras.centers[0] - target.known_cameras.centers[0]).norm(dim=-1).argmin())
    return {
        "input": panels.picture(contexts.images[0, nearest]),
        "rendering": panels.picture(color),
        "truth": panels.picture(truth),
        "error": panels.error_picture(color, truth),
        "depth": panels.depth_picture(rendered.depth[0, 0], rendered.alpha[0, 0] > 0.1),
    }
