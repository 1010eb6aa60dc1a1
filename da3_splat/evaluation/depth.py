"""Depth: each picture by itself goes in, its z-depth is compared with the true one at the size of the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from da3_splat.data.views import read_frames
from da3_splat.evaluation import panels
from da3_splat.evaluation.measuring import measured
from da3_splat.evaluation.methods import Method, OurMethod
from da3_splat.evaluation.results import mean_of
from da3_splat.evaluation.runner import SceneScore
from da3_splat.evaluation.scenes import SceneWithDepth
from da3_splat.io.frames import Frame
from da3_splat.metrics import DepthErrors, aligned_depth, depth_errors
from da3_splat.types import Views, Window

Alignment = Literal["none", "scale", "scale-shift"]
ALIGNMENTS = {
    "none": "none: metric depth as predicted",
    "scale": "per picture, times the median of true over predicted depth",
    "scale-shift": "per picture, the scale and shift of depth with the least squared error",
}
NAMES = tuple(item.name for item in fields(DepthErrors))


@dataclass
class Depth:
    """The task for `runner.run`: at most `views` evenly spaced pictures of each scene that have true depth."""

    predictor: Method
    alignment: Alignment = "scale"
    views: int = 8
    resolution: int = 504
    device: str = "cpu"
    name = "depth"

    def __post_init__(self):
        if self.views < 1:
            raise ValueError(f"views: expected at least 1, got {self.views}")

    @property
    def protocol(self) -> dict:
        return {
            "alignment": self.alignment,
            "alignment_rule": ALIGNMENTS[self.alignment],
            "views": self.views,
            "resolution": self.resolution,
            "input": "one picture at a time, without its camera where the method finds its own",
            "scores": "over pixels with true depth, prediction interpolated to the size of the truth; mean over the "
            "pictures of a scene, then over scenes",
        }

    @property
    def method(self) -> dict:
        return self.predictor.identity

    def score(self, scene: SceneWithDepth) -> SceneScore:
        """Errors of one scene: its means, and each of its pictures."""
        frames = scene.frames()
        truths = {index: scene.depth(index) for index in range(len(frames))}
        known = [index for index, truth in truths.items() if truth is not None and bool((truth > 0).any())]
        if not known:
            raise ValueError(f"{scene.name}: no picture has true depth")
        chosen = [known[i] for i in torch.linspace(0, len(known) - 1, min(self.views, len(known))).round().int()]
        rows, seconds, memory, pictures = [], 0.0, 0.0, {}
        for index in chosen:
            views = read_frames([frames[index]], resolution=self.resolution).to(self.device)
            with measured() as prediction:
                found = self.predictor.predict(self._given(views), scene.name)
            seconds, memory = seconds + prediction.seconds, max(memory, prediction.peak_memory_mb)
            truth = truths[index]
            depth = at_original_size(found.geometry.depth[0, 0].cpu().float(), views.windows[0], *truth.shape)
            truth = torch.where(depth.isnan(), 0, truth)  # a border that snapping cut off was never seen
            depth = aligned_depth(depth.nan_to_num()[None], truth[None], self.alignment)
            errors = depth_errors(depth, truth[None])
            rows.append({"index": index, "name": frames[index].name, **_numbers(errors)})
            pictures = pictures or self._pictures(views, frames[index], depth[0], truth)
        means = {name: mean_of([row[name] for row in rows]) for name in NAMES}
        return SceneScore({**means, "views": rows}, {"seconds": seconds, "peak_memory_mb": memory}, pictures)

    def summary(self, scenes: Sequence[dict]) -> dict:
        """Means over scenes."""
        means = {name: mean_of([scene[name] for scene in scenes]) for name in NAMES}
        return {**means, "pictures": sum(len(scene["views"]) for scene in scenes)}

    def _given(self, views: Views) -> Views:
        monocular = isinstance(self.predictor, OurMethod) and not self.predictor.model.network.predicts_cameras
        return views if monocular else replace(views, cameras=None)

    def _pictures(self, views: Views, frame: Frame, depth: Tensor, truth: Tensor) -> dict:
        known = truth > 0
        error = torch.where(known, (depth - truth).abs() / truth.clamp_min(1e-12), 0)
        return {
            "input": panels.picture(views.images[0, 0]),
            "depth": panels.depth_picture(depth),
            "truth": panels.depth_picture(truth),
            "error": panels.color_of_error(error.numpy()),
        }


def at_original_size(depth: Tensor, window: Window, height: int, width: int) -> Tensor:
    """Depth (H,W) of a view, interpolated at the pixel centres of its original picture at height x width; NaN where the
    view was cropped."""
    rows = (torch.arange(height) + 0.5) / height * window.height
    columns = (torch.arange(width) + 0.5) / width * window.width
    y = (rows - window.top) / window.window_height * 2 - 1
    x = (columns - window.left) / window.window_width * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
    values = grid_sample(depth[None, None], grid[None].to(depth), padding_mode="border", align_corners=False)[0, 0]
    return torch.where((grid.abs() <= 1).all(dim=-1), values, torch.nan)


def _numbers(errors: DepthErrors) -> dict[str, float]:
    return {name: float(getattr(errors, name)[0]) for name in NAMES}
