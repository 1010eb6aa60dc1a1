"""Depth: each picture by itself goes in, its z-depth is compared with the true one at the size of the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from da3_splat.data.benchmarks.scene import DepthRules
from da3_splat.data.captures import evenly_spaced
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
    """The task for `runner.run`: at most `views` evenly spaced pictures of each scene that have true depth (None: all
    of them), by the `rules` of a public data set where they are one's."""

    predictor: Method
    alignment: Alignment = "scale"
    views: int | None = 8
    resolution: int = 504
    device: str = "cpu"
    rules: DepthRules | None = None
    name = "depth"

    def __post_init__(self):
        if self.views is not None and self.views < 1:
            raise ValueError(f"views: expected at least 1, got {self.views}")

    @property
    def protocol(self) -> dict:
        return {
            "alignment": self.alignment,
            "alignment_rule": ALIGNMENTS[self.alignment],
            "views": self.views or "all",
            "resolution": self.resolution,
            "input": "one picture at a time, as stored, without its camera where the method finds its own",
            "scores": "over pixels with true depth, prediction interpolated to the size of the truth; mean over "
            + ("all pictures" if self._over_pictures else "the pictures of a scene, then over scenes"),
            **({} if self.rules is None else _described(self.rules)),
        }

    @property
    def _over_pictures(self) -> bool:
        return self.rules is not None and self.rules.average == "pictures"

    @property
    def method(self) -> dict:
        return self.predictor.identity

    def score(self, scene: SceneWithDepth) -> SceneScore:
        """Errors of one scene: its means, and each of its pictures."""
        frames = scene.frames()
        candidates = [index for index in range(len(frames)) if scene.has_depth(index)]
        rows, seconds, memory = [], 0.0, 0.0
        pictures: dict = {}
        for index in evenly_spaced(candidates, self.views):
            truth = scene.depth(index)
            if truth is not None and self.rules is not None:
                truth = self.rules.counted(truth)
            if truth is None or not bool((truth > 0).any()):
                continue
            # A depth map belongs to the picture as it is stored, so what the lens bends is not undone.
            views = read_frames([replace(frames[index], lens=None)], resolution=self.resolution).to(self.device)
            with measured() as prediction:
                found = self.predictor.predict(self._given(views), scene.name)
            seconds, memory = seconds + prediction.seconds, max(memory, prediction.peak_memory_mb)
            depth = at_original_size(
                found.geometry.depth[0, 0].cpu().float(), views.windows[0], truth.shape[0], truth.shape[1]
            )
            truth = torch.where(depth.isnan(), 0, truth)  # a border that snapping cut off was never seen
            depth = aligned_depth(depth.nan_to_num()[None], truth[None], self.alignment)
            if self.rules is not None:
                depth = depth.clamp(self.rules.minimum, self.rules.maximum)
            errors = depth_errors(depth, truth[None])
            rows.append({"index": index, "name": frames[index].name, **_numbers(errors)})
            pictures = pictures or self._pictures(views, frames[index], depth[0], truth)
        if not rows:
            raise ValueError(f"{scene.name}: no picture has true depth" + (" that counts" if self.rules else ""))
        means = {name: mean_of([row[name] for row in rows]) for name in NAMES}
        return SceneScore({**means, "views": rows}, {"seconds": seconds, "peak_memory_mb": memory}, pictures)

    def summary(self, scenes: Sequence[dict]) -> dict:
        """Means over scenes, or over all their pictures, as the rules say."""
        pictures = [row for scene in scenes for row in scene["views"]]
        averaged = pictures if self._over_pictures else scenes
        return {**{name: mean_of([one[name] for one in averaged]) for name in NAMES}, "pictures": len(pictures)}

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


def _described(rules: DepthRules) -> dict:
    crop = rules.crop
    return {
        "rules": rules.source,
        "depth_range": f"above {rules.minimum:g} up to {rules.maximum:g} m; predictions clamped to it",
        "crop": "none"
        if crop is None
        else "rows {:.4f} to {:.4f} of the height, columns {:.4f} to {:.4f} of the width".format(*crop),
    }
