"""Nerfstudio dataparsers `dl3dv` and `megadepth`: one scene of either collection, as it was unpacked.

Nerfstudio loads this module for every command, before its data managers: it imports none of them, and this package
only where a scene is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from nerfstudio.cameras.camera_utils import auto_orient_and_center_poses, get_distortion_params
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.data.utils.dataparsers_utils import (
    get_train_eval_split_all,
    get_train_eval_split_fraction,
    get_train_eval_split_interval,
)
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from nerfstudio.utils.rich_utils import CONSOLE


@dataclass
class SceneDataParserConfig(DataParserConfig):
    """What the dataparsers of this module share; the names are those of `nerfstudio-data`."""

    _target: type = field(default_factory=lambda: SceneDataParser)
    scale_factor: float = 1.0
    """How much to scale the camera origins by."""
    scene_scale: float = 1.0
    """How much to scale the region of interest by."""
    orientation_method: Literal["pca", "up", "vertical", "none"] = "up"
    """The method to use for orientation."""
    center_method: Literal["poses", "focus", "none"] = "poses"
    """The method to use to center the poses."""
    auto_scale_poses: bool = True
    """Whether to automatically scale the poses to fit in +/- 1 bounding box."""
    eval_mode: Literal["interval", "fraction", "all"] = "interval"
    """Interval holds out every nth frame, fraction some evenly spaced ones, all trains and evaluates on everything."""
    eval_interval: int = 8
    """The interval between frames to use for eval."""
    train_split_fraction: float = 0.9
    """The share of the frames to train on where eval_mode is fraction."""


@dataclass
class SceneDataParser(DataParser):
    """From our frames to Nerfstudio's cameras; a subclass says where the frames come from."""

    config: SceneDataParserConfig

    def read_scene(self):
        """(frames, sparse points (P,3) and colours (P,3) in [0,1] or None, lines about what was left out)."""
        raise NotImplementedError

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs) -> DataparserOutputs:
        from da3_splat.io.transforms_json import world_to_camera_to_opengl

        frames, cloud, problems = self.read_scene()
        for problem in problems:
            CONSOLE.log(f"[yellow]{problem}")
        poses = world_to_camera_to_opengl(torch.stack([frame.world_to_camera for frame in frames])).float()
        poses, transform = auto_orient_and_center_poses(
            poses, method=self.config.orientation_method, center_method=self.config.center_method
        )
        scale = self.config.scale_factor
        if self.config.auto_scale_poses:
            # One camera, or a tripod: there is nothing to go by.
            scale /= float(poses[:, :3, 3].abs().max()) or 1.0
        poses[:, :3, 3] *= scale
        indices = torch.from_numpy(np.asarray(self._split(frames, split), np.int64))
        metadata = {}
        if cloud is not None and len(cloud[0]):
            points = torch.from_numpy(cloud[0]).float() @ transform[:, :3].T + transform[:, 3]
            metadata["points3D_xyz"] = points * scale
            metadata["points3D_rgb"] = torch.from_numpy((cloud[1] * 255 + 0.5).astype(np.uint8))
        half = self.config.scene_scale * torch.ones(3)
        return DataparserOutputs(
            image_filenames=[frames[index].path for index in indices.tolist()],
            cameras=_cameras([frames[index] for index in indices.tolist()], poses[indices, :3]),
            scene_box=SceneBox(aabb=torch.stack([-half, half])),
            dataparser_scale=scale,
            dataparser_transform=transform,
            metadata=metadata,
        )

    def _split(self, frames: list, split: str) -> np.ndarray:
        if split not in ("train", "val", "test"):
            raise ValueError(f"split: expected train, val or test, got {split}")
        if self.config.eval_mode == "interval":
            train, held_out = get_train_eval_split_interval(frames, self.config.eval_interval)
        elif self.config.eval_mode == "fraction":
            train, held_out = get_train_eval_split_fraction(frames, self.config.train_split_fraction)
        else:
            train, held_out = get_train_eval_split_all(frames)
        chosen = train if split == "train" else held_out
        if len(chosen) == 0:
            raise ValueError(f"{self.config.data}: eval mode {self.config.eval_mode} leaves no {split} frames")
        return chosen


@dataclass
class Dl3dvDataParserConfig(SceneDataParserConfig):
    """One scene of DL3DV-ALL (<hash>/) or DL3DV-Benchmark (<hash>/ with nerfstudio/ in it), unpacked."""

    _target: type = field(default_factory=lambda: Dl3dvDataParser)
    pictures: str | None = None
    """The folder of pictures (images_4, images_8, ...); by default the first of these that is there."""


@dataclass
class Dl3dvDataParser(SceneDataParser):
    config: Dl3dvDataParserConfig

    def read_scene(self):
        from da3_splat.data.dl3dv import PICTURE_FOLDERS, Dl3dvScene

        path = Path(self.config.data).absolute()
        if not path.is_dir():
            raise ValueError(f"{path}: expected the folder of one scene (Nerfstudio cannot read zips: unpack it)")
        folders = PICTURE_FOLDERS if self.config.pictures is None else (self.config.pictures,)
        frames, problems = Dl3dvScene(path.name, path).read(folders)
        return frames, None, problems


@dataclass
class MegadepthDataParserConfig(SceneDataParserConfig):
    """One model of a MegaDepth landmark: <landmark>/dense<k>, with MegaDepth_v1_SfM somewhere above."""

    _target: type = field(default_factory=lambda: MegadepthDataParser)
    models: Path | None = None
    """MegaDepth_v1_SfM, where it is not in a folder above the scene."""
    load_3D_points: bool = True  # noqa: N815, nerfstudio-data's name
    """Whether to start from the sparse points of the model."""


@dataclass
class MegadepthDataParser(SceneDataParser):
    config: MegadepthDataParserConfig

    def read_scene(self):
        from da3_splat.data.megadepth import scene_at

        scene = scene_at(self.config.data, self.config.models)
        reading = scene.read()
        return reading.frames, scene.points() if self.config.load_3D_points else None, reading.problems


def _cameras(frames: list, poses: torch.Tensor) -> Cameras:
    """Nerfstudio's cameras of frames, each with its own size and intrinsics, at OpenGL camera-to-world (V,3,4)."""
    for frame in frames:
        if frame.lens is not None and frame.lens.model != "OPENCV":
            raise ValueError(f"{frame.path}: expected an OPENCV lens, got {frame.lens.model}")
    intrinsics = torch.stack([frame.intrinsics for frame in frames]).float()
    bends = [(0.0, 0.0, 0.0, 0.0) if frame.lens is None else frame.lens.params[4:] for frame in frames]
    distortion = torch.stack([get_distortion_params(k1=k1, k2=k2, p1=p1, p2=p2) for k1, k2, p1, p2 in bends])
    return Cameras(
        camera_to_worlds=poses,
        fx=intrinsics[:, 0, 0],
        fy=intrinsics[:, 1, 1],
        cx=intrinsics[:, 0, 2],
        cy=intrinsics[:, 1, 2],
        width=torch.tensor([frame.width for frame in frames], dtype=torch.int32),
        height=torch.tensor([frame.height for frame in frames], dtype=torch.int32),
        distortion_params=distortion,
        camera_type=CameraType.PERSPECTIVE,
    )


dl3dv_dataparser = DataParserSpecification(
    config=Dl3dvDataParserConfig(), description="One scene of DL3DV-ALL or DL3DV-Benchmark."
)
megadepth_dataparser = DataParserSpecification(
    config=MegadepthDataParserConfig(), description="One model of a MegaDepth landmark: sizes and intrinsics vary."
)
