"""The pipeline: one feed-forward pass over the training views gives the model its Gaussians."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from nerfstudio.data.datamanagers.base_datamanager import DataManagerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils.rich_utils import CONSOLE
from torch.nn.functional import interpolate

from da3_splat.nerfstudio_plugin.cameras import from_nerfstudio
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


class Da3SplatPipeline(VanillaPipeline):
    """A VanillaPipeline whose model is filled by `start_from_network` (new runs) or a checkpoint (all others)."""

    config: Da3SplatPipelineConfig

    @torch.no_grad()
    def start_from_network(self) -> str:
        """Fill the model from one feed-forward pass, in Nerfstudio's frame; returns what was used, for the log."""
        from da3_splat.model import load_model  # here, so that ns-train --help does not import it
        from da3_splat.starting_points import starting_gaussians

        views = self.training_views()
        scene = load_model(self.config.network, device=self.device).reconstruct(views)
        start = starting_gaussians(scene, views.to(self.device), self.config.max_gaussians)
        self.model.set_gaussians(start.gaussians)
        count = start.gaussians.means.shape[1]
        words = f"da3-splat starts from {count} Gaussians of {views.images.shape[1]} views: {start.source}"
        CONSOLE.log(words)
        return words

    def training_views(self) -> Views:
        """The training pictures, resized for the network and cropped around the centre to one size, with their cameras
        and the sparse points, in Nerfstudio's frame."""
        from da3_splat.data.views import OneView, join_views, snapped_size

        pictures = self.datamanager.cached_train  # undistorts, which changes the cameras, so it comes first
        dataset = self.datamanager.train_dataset
        count = min(len(pictures), self.config.max_views)
        reads = []
        for index in np.linspace(0, len(pictures) - 1, count).round().astype(int).tolist():
            image = pictures[index]["image"][..., :3]
            image = (image.float() / 255 if image.dtype == torch.uint8 else image.float()).permute(2, 0, 1).cpu()
            size = snapped_size(*image.shape[1:], self.config.resolution)
            image = interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
            camera = from_nerfstudio(dataset.cameras[index : index + 1]).to("cpu").resized(*size)
            mask = pictures[index].get("mask")
            if mask is not None:
                mask = interpolate(mask.float().cpu()[None, None, ..., 0], size, mode="area")[0, 0] >= 0.5
            reads.append(OneView(image, camera, mask))
        metadata = self.datamanager.train_dataparser_outputs.metadata
        points, colors = metadata.get("points3D_xyz"), metadata.get("points3D_rgb")
        return join_views(
            reads,
            points=None if points is None else points.float().cpu(),
            point_colors=None if points is None else colors.float().cpu() / 255,
        )
