"""The pipeline: one feed-forward pass over the training views gives the model its Gaussians."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from nerfstudio.data.datamanagers.base_datamanager import DataManagerConfig
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils.rich_utils import CONSOLE
from torch.nn.functional import interpolate

from da3_splat.geometry.alignment import Similarity
from da3_splat.geometry.user_frame import camera_similarity
from da3_splat.nerfstudio_plugin.aligned_evaluation import AlignedLoader, aligned_camera
from da3_splat.nerfstudio_plugin.cameras import from_nerfstudio
from da3_splat.nerfstudio_plugin.da3_views import Da3ViewsDataParserConfig
from da3_splat.nerfstudio_plugin.datamanager import Da3SplatDatamanagerConfig
from da3_splat.nerfstudio_plugin.model import Da3SplatModelConfig
from da3_splat.types import Views


@dataclass
class Da3SplatPipelineConfig(VanillaPipelineConfig):
    """What the Gaussians start from."""

    _target: type = field(default_factory=lambda: Da3SplatPipeline)
    datamanager: DataManagerConfig = field(default_factory=Da3SplatDatamanagerConfig)
    model: Da3SplatModelConfig = field(default_factory=Da3SplatModelConfig)
    network: str = "mini"
    """weights of the feed-forward network: mini (embedded), a file, or a hub id such as depth-anything/DA3-GIANT-1.1"""
    resolution: int = 336
    """longest side of the pictures the network sees, in pixels"""
    max_views: int = 48
    """training views the network sees in its one pass, evenly spaced"""
    max_gaussians: int = 80_000
    """Gaussians to start with, at most"""
    refine_poses: Literal["auto", "on", "off"] = "auto"
    """optimise the training cameras from the first step (Nerfstudio's camera optimizer; its penalties hold the gauge);
    auto: where da3-views posed them, or the model's camera optimizer is on"""
    alignment_steps: int = 60
    """where poses are refined: steps in which a held-out camera is aligned to its picture before it is scored"""


class Da3SplatPipeline(VanillaPipeline):
    """A VanillaPipeline whose model is filled by `fill_from_network` (new runs) or a checkpoint (all others)."""

    config: Da3SplatPipelineConfig
    datamanager: FullImageDatamanager

    def __init__(self, config: Da3SplatPipelineConfig, *args, **kwargs):
        self._choose_optimizer(config)
        super().__init__(config, *args, **kwargs)

    @staticmethod
    def _choose_optimizer(config: Da3SplatPipelineConfig) -> None:
        """Switch Nerfstudio's camera optimizer on where `refine_poses` wants it."""
        optimizer, parser = config.model.camera_optimizer, getattr(config.datamanager, "dataparser", None)
        wanted = config.refine_poses == "on"
        wanted |= config.refine_poses == "auto" and isinstance(parser, Da3ViewsDataParserConfig)
        if wanted and optimizer.mode == "off":
            optimizer.mode = "SO3xR3"

    @property
    def poses_move(self) -> bool:
        """Whether the training cameras are optimised, so that held-out ones must be aligned before they are scored."""
        return self.config.model.camera_optimizer.mode != "off"

    def get_average_image_metrics(self, data_loader, *args, **kwargs):
        """As the base class; held-out cameras aligned first where the training cameras move."""
        if self.poses_move:
            CONSOLE.log(f"held-out poses are aligned on fixed Gaussians, {self.config.alignment_steps} steps")
            data_loader = AlignedLoader(data_loader, self.model, self.config.alignment_steps)
        return super().get_average_image_metrics(data_loader, *args, **kwargs)

    def get_eval_image_metrics_and_images(self, step: int):
        """As the base class, with the same alignment."""
        if not self.poses_move:
            return super().get_eval_image_metrics_and_images(step)
        self.eval()
        camera, batch = self.datamanager.next_eval_image(step)
        camera = aligned_camera(self.model, camera, batch, self.config.alignment_steps)
        outputs = self.model.get_outputs_for_camera(camera)
        metrics, images = self.model.get_image_metrics_and_images(outputs, batch)
        self.train()
        return {**metrics, "num_rays": int(camera.height * camera.width)}, images

    @torch.no_grad()
    def fill_from_network(self) -> str:
        """Fill the model from one feed-forward pass, in Nerfstudio's frame; returns what was used, for the log."""
        from da3_splat.acceleration import accelerate  # here, so that ns-train --help does not import it
        from da3_splat.model import load_model
        from da3_splat.starting_points import starting_gaussians

        views, chosen = self.training_views()
        scene = accelerate(load_model(self.config.network, device=self.device)).reconstruct(views)
        # Splatfacto is slow to mend a start that looks wrong, and adds Gaussians itself where they are missing.
        start = starting_gaussians(scene, views.to(self.device), self.config.max_gaussians, looks_right=True)
        self.model.set_gaussians(start.gaussians)
        self.model.set_depth_targets(dict(zip(chosen, start.depth[0])))
        count = start.gaussians.means.shape[1]
        words = f"da3-splat starts from {count} Gaussians of {views.images.shape[1]} views: {start.source}"
        CONSOLE.log(words)
        return words

    def user_frame(self) -> Similarity | None:
        """The similarity from Nerfstudio's frame to that of the file that is trained on, from the cameras of both;
        None where our readers do not know the file."""
        from da3_splat.data.captures import find_frames

        outputs = self.datamanager.train_dataparser_outputs
        # What da3-views poses lies in a folder of its own.
        posed = outputs.image_filenames[0].parents[1]
        source = posed if (posed / "transforms.json").is_file() else self.datamanager.get_datapath()
        try:
            poses = {Path(str(frame.path)).resolve(): frame.world_to_camera for frame in find_frames(source).frames}
        except ValueError:
            return None
        names = [path.resolve() for path in outputs.image_filenames]
        found = ((index, poses.get(name)) for index, name in enumerate(names))
        known = [(index, pose) for index, pose in found if pose is not None]
        if not known:
            return None
        theirs = from_nerfstudio(outputs.cameras[torch.tensor([index for index, _ in known])]).to("cpu", torch.float64)
        stored = torch.stack([pose for _, pose in known])[None].double()
        return camera_similarity(theirs, replace(theirs, world_to_camera=stored))

    def training_views(self) -> tuple[Views, list[int]]:
        """The training pictures, resized for the network and cropped around the centre to one size, with their cameras
        and the sparse points, in Nerfstudio's frame; and which of the training pictures they are."""
        from da3_splat.data.views import OneView, join_views, snapped_size

        pictures = self.datamanager.cached_train  # undistorts, which changes the cameras, so it comes first
        dataset = self.datamanager.train_dataset
        count = min(len(pictures), self.config.max_views)
        chosen = np.linspace(0, len(pictures) - 1, count).round().astype(int).tolist()
        reads = []
        for index in chosen:
            image = pictures[index]["image"][..., :3]
            image = (image.float() / 255 if image.dtype == torch.uint8 else image.float()).permute(2, 0, 1).cpu()
            size = snapped_size(image.shape[1], image.shape[2], self.config.resolution)
            image = interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
            camera = from_nerfstudio(dataset.cameras[index : index + 1]).to("cpu").resized(*size)
            mask = pictures[index].get("mask")
            if mask is not None:
                mask = interpolate(mask.float().cpu()[None, None, ..., 0], size, mode="area")[0, 0] >= 0.5
            reads.append(OneView(image, camera, mask))
        metadata = self.datamanager.train_dataparser_outputs.metadata
        points, colors = metadata.get("points3D_xyz"), metadata.get("points3D_rgb")
        views = join_views(
            reads,
            points=None if points is None else points.float().cpu(),
            point_colors=None if points is None or colors is None else colors.float().cpu() / 255,
        )
        return views, chosen
