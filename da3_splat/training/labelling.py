"""A teacher's labels for a data set, scene by scene: depth files, and how well each picture could be aligned.

    <labels>/<scene>/<frame>.npy       the label: whole picture at the teacher's size, metres (or what was measured in)
    <labels>/<scene>/quality.json      written last: a scene with one is done
    <labels>/<scene>/pictures/*.png    picture, measured depth, label, their relative difference, side by side

Every file is written beside its place and renamed, so a job that is killed goes on with the scenes that are not done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from da3_splat.data.depth_captures import DepthScene, MeasuredFrame, label_path, nearest
from da3_splat.data.episodes import UNREADABLE
from da3_splat.data.views import read_frames
from da3_splat.io.files import replacing
from da3_splat.io.images import color_of_depth, write_image
from da3_splat.io.json_files import load_json
from da3_splat.training.pseudo_labels import LabelConfig, align_to_measured
from da3_splat.types import SKY_THRESHOLD

QUALITY = "quality.json"
Teacher = Callable[[Tensor], tuple[Tensor, Tensor]]
"""pictures (N,3,H,W) -> depth and sky score (N,H,W)"""


@dataclass(frozen=True)
class FrameQuality:
    """How a picture's label came out. Shares are of measured pixels; `residual` is relative; None: not fitted."""

    frame: str
    reason: str | None
    """why there is no label; None: there is one"""
    scale: float | None = None
    shift: float | None = None
    inlier_share: float | None = None
    agreeing_share: float | None = None
    residual: float | None = None
    measured_share: float | None = None
    """of all pixels"""


def label_scene(
    scene: DepthScene,
    teacher: Teacher,
    labels: Path,
    settings: dict[str, object],
    resolution: int = 504,
    config: LabelConfig = LabelConfig(),
    pictures: int = 2,
) -> list[FrameQuality]:
    """Label a scene, unless that is done; what is known of its pictures. `pictures` of each verdict are drawn.

    `settings` are kept with the labels. ValueError where labels of other settings lie there, or nothing can be read.
    """
    folder = labels / scene.name
    done = read_quality(folder, settings)
    if done is not None:
        return done
    found, drawn = [], {True: 0, False: 0}
    for item in scene.measured():
        quality, panel = _label_frame(item, teacher, label_path(labels, scene.name, item.frame), resolution, config)
        found.append(quality)
        good = quality.reason is None
        if panel is not None and drawn[good] < pictures:
            drawn[good] += 1
            write_image(folder / "pictures" / f"{Path(item.frame.name).stem}.png", panel)
    content = {"settings": settings, "frames": [asdict(quality) for quality in found]}
    with replacing(folder / QUALITY) as beside:
        beside.write_text(json.dumps(content, indent=1))
    return found


def read_quality(folder: Path, settings: dict[str, object] | None = None) -> list[FrameQuality] | None:
    """What is known of a labelled scene, None where it is not done; ValueError where it is of other settings."""
    path = folder / QUALITY
    if not path.is_file():
        return None
    content = load_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list) or "settings" not in content:
        raise ValueError(f"{path}: not what labelling wrote; delete it, and the scene is labelled again")
    if settings is not None and content["settings"] != settings:
        raise ValueError(
            f"{path}: labels of other settings ({content['settings']}); name another folder, or delete this one"
        )
    try:
        return [FrameQuality(**frame) for frame in content["frames"]]
    except TypeError as error:
        raise ValueError(f"{path}: not what labelling wrote ({error})") from error


def _label_frame(
    item: MeasuredFrame, teacher: Teacher, path: Path, resolution: int, config: LabelConfig
) -> tuple[FrameQuality, np.ndarray | None]:
    name = item.frame.name
    try:
        views = read_frames([item.frame], points=None, colors=None, resolution=resolution)
        measured = item.read()
    except UNREADABLE as error:
        return FrameQuality(name, f"cannot be read: {error}"), None
    height, width = views.images.shape[-2:]
    measured = nearest(measured, item.frame, views.known_cameras.intrinsics[0, 0], height, width)
    depth, sky = (maps.float().cpu() for maps in teacher(views.images[0]))
    depth = torch.where(sky >= SKY_THRESHOLD, 0, depth)
    fit = align_to_measured(depth, measured[None], config)
    label = fit.labels(depth)[0]
    if fit.reasons[0] is None:
        with replacing(path) as beside:
            np.save(beside, label.numpy())
    else:
        path.unlink(missing_ok=True)  # of a run that was killed
    count = (measured > 0).sum().clamp_min(1)
    quality = FrameQuality(
        frame=name,
        reason=fit.reasons[0],
        scale=float(fit.scale[0]),
        shift=float(fit.shift[0]),
        inlier_share=float(fit.inliers[0].sum() / count),
        agreeing_share=float(fit.agreeing[0]),
        residual=float(fit.residual[0]),
        measured_share=float((measured > 0).float().mean()),
    )
    shown = label if fit.reasons[0] is None else depth[0]
    return quality, _panel(views.images[0, 0], measured, shown, fit.reasons[0] is None)


def _panel(image: Tensor, measured: Tensor, label: Tensor, aligned: bool) -> np.ndarray:
    """(H,4*W,3): picture, measured depth, label (or what the teacher said), relative difference up to 20 % in red."""
    error = torch.where((measured > 0) & (label > 0) & aligned, (label / measured.clamp_min(1e-9) - 1).abs() / 0.2, 0)
    red = torch.stack([error.clamp(0, 1), torch.zeros_like(error), torch.zeros_like(error)], dim=-1)
    maps = [color_of_depth(values.numpy()) for values in (measured, label)]
    return np.concatenate([image.permute(1, 2, 0).numpy(), *maps, red.numpy()], axis=1)


def summary(scenes: dict[str, list[FrameQuality]], broken: dict[str, str]) -> dict[str, object]:
    """The figures of a labelled data set: counts, medians over accepted pictures, reasons of the others."""
    frames = [frame for found in scenes.values() for frame in found]
    accepted = [frame for frame in frames if frame.reason is None]

    def median(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.median(known)) if known else None

    return {
        "scenes": len(scenes),
        "frames": len(frames),
        "accepted_frames": len(accepted),
        "accepted_share": len(accepted) / max(1, len(frames)),
        "median_inlier_share": median(frame.inlier_share for frame in accepted),
        "median_agreeing_share": median(frame.agreeing_share for frame in accepted),
        "median_relative_residual": median(frame.residual for frame in accepted),
        "median_measured_share": median(frame.measured_share for frame in accepted),
        "rejected": {
            f"{scene}/{frame.frame}": frame.reason for scene, found in scenes.items() for frame in found if frame.reason
        },
        "broken_scenes": broken,
    }
