"""Training a Gaussian head inside Nerfstudio: episodes instead of one scene, and one episode to look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras as NerfstudioCameras
from nerfstudio.data.datamanagers.base_datamanager import DataManagerConfig
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.pipelines.base_pipeline import Pipeline, VanillaPipelineConfig
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor, nn

from da3_splat.nerfstudio_plugin.cameras import from_nerfstudio, to_nerfstudio
from da3_splat.types import Gaussians


@dataclass
class HeadPipelineConfig(VanillaPipelineConfig):
    """What the head is trained on, and how."""

    _target: type = field(default_factory=lambda: HeadPipeline)
    datamanager: DataManagerConfig = field(default_factory=DataManagerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    recipe: Path | None = None
    """a file of configs/head/; without, the embedded model on the captures of --data, or on synthetic worlds"""


class HeadPipeline(Pipeline):
    """A recipe's episodes and objective, in the places where Nerfstudio looks for data and model."""

    datamanager: EpisodeDatamanager  # type: ignore[assignment]  # has what Nerfstudio asks of one, and no more

    def __init__(self, config: HeadPipelineConfig, device: str, test_mode: str = "val", **of_other_pipelines):
        super().__init__()
        from da3_splat.config import load_config  # here, so that ns-train --help does not import them
        from da3_splat.training.episodes import make_sampler
        from da3_splat.training.head_recipe import HeadRecipe, build_objective

        recipe = HeadRecipe() if config.recipe is None else load_config(HeadRecipe, config.recipe)
        path = config.datamanager.data or recipe.data.path
        source = "captures" if path is not None and config.recipe is None else recipe.data.source
        self.config, self.test_mode, self.world_size = config, test_mode, 1
        self.recipe = replace(recipe, data=replace(recipe.data, path=path, source=source))
        # Not registered: a backbone of gigabytes must not land in every checkpoint.
        self.unregistered = [build_objective(self.recipe, CONSOLE.log).to(device)]
        self.datamanager = EpisodeDatamanager(make_sampler(self.recipe.data), self.recipe)
        self._model = HeadModel(self.objective, self.datamanager)
        self.model.to(device)

    @property
    def objective(self):
        return self.unregistered[0]

    @property
    def device(self):
        return self.model.device

    def get_param_groups(self) -> dict:
        return {}  # the training state has the optimizer

    def get_training_callbacks(self, attributes) -> list:
        return []

    def load_pipeline(self, loaded_state: dict, step: int) -> None:
        """Take the averaged weights of a checkpoint, for ns-viewer."""
        self.objective.load_state_dict({**self.objective.state_dict(), **loaded_state})


class EpisodeDatamanager(nn.Module):
    """Batches from where the sampler stands; the first episode's pictures are what the viewer shows."""

    includes_time = False
    eval_dataset = None
    sampler: Any

    def __init__(self, sampler, recipe):
        super().__init__()
        from da3_splat.training.episodes import head_batches

        self.sampler, self.recipe = sampler, recipe
        # The first episode is made here: a worker that outlives the loop would hold the process.
        self.shown = next(head_batches(sampler, replace(recipe.data, workers=0), recipe.merge_after))[1]
        self.train_dataset = EpisodePictures(self.shown)

    def batches(self) -> Iterator:
        """(episode, batch) pairs from where the sampler stands now."""
        from da3_splat.training.episodes import head_batches

        return head_batches(self.sampler, self.recipe.data, self.recipe.merge_after)

    def get_train_rays_per_batch(self) -> int:
        return self.shown.target.images[:, :, 0].numel()


class EpisodePictures:
    """Contexts and targets of an episode as the viewer wants a data set."""

    def __init__(self, batch):
        views = [batch.context, batch.target]
        self.images = [image.permute(1, 2, 0) for part in views for image in part.images[0]]
        parts = [to_nerfstudio(part.cameras) for part in views]
        names = ("camera_to_worlds", "fx", "fy", "cx", "cy", "height", "width")
        self.cameras = NerfstudioCameras(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})
        self.scene_box = SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3]))
        self.metadata: dict = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index]}


class HeadModel(Model):
    """What the viewer renders: the Gaussians that the head makes of the shown episode now."""

    def __init__(self, objective, datamanager: EpisodeDatamanager):
        dataset = datamanager.train_dataset
        super().__init__(ModelConfig(), dataset.scene_box, len(dataset))
        self.unregistered = [objective, datamanager]
        self.stale = True
        self.gaussians: Gaussians | None = None

    def get_param_groups(self) -> dict:
        return {}

    def get_outputs(self, camera: NerfstudioCameras) -> dict[str, Tensor | list]:
        """rgb (H,W,3), expected depth and accumulation (H,W,1) of one camera."""
        from da3_splat.rendering import render

        objective, datamanager = self.unregistered
        with torch.no_grad():
            if self.stale:
                self.gaussians = objective.predict(datamanager.shown.to(self.device)).gaussians[0]
                self.stale = False
            assert self.gaussians is not None, "they were made when they were stale"
            rendering = render(self.gaussians, from_nerfstudio(camera.to(self.device)))
        maps = {"depth": rendering.depth, "accumulation": rendering.alpha}
        rgb = rendering.color[0, 0].permute(1, 2, 0).clamp(0, 1)
        return {"rgb": rgb, **{name: value[0, 0, ..., None] for name, value in maps.items()}}

    def get_loss_dict(self, outputs, batch, metrics_dict=None):
        raise NotImplementedError("da3-splat-head learns by its objective")

    def get_outputs_for_camera(self, camera: NerfstudioCameras, obb_box=None) -> dict[str, Tensor | list]:
        return self.get_outputs(camera)

    def get_image_metrics_and_images(self, outputs, batch):
        raise NotImplementedError("da3-splat-head has no evaluation set")
