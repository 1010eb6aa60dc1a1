"""Nerfstudio's trainer around the step and the state that all training here shares."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils import writer
from nerfstudio.utils.decorators import check_main_thread
from torch import Tensor

from da3_splat.io.checkpoints import read_checkpoint
from da3_splat.nerfstudio_plugin.head_pipeline import HeadPipeline
from da3_splat.nerfstudio_plugin.trainer import checkpoint_to_load, keep_checkpoint


@dataclass
class HeadTrainerConfig(TrainerConfig):
    _target: type = field(default_factory=lambda: HeadTrainer)


class HeadTrainer(Trainer):
    pipeline: HeadPipeline  # type: ignore[assignment]  # stands in for a VanillaPipeline without being one

    def setup_optimizers(self) -> Optimizers:
        """Make the training state, from the checkpoint where one is named; Nerfstudio has nothing to optimise."""
        from da3_splat.training.head_recipe import parameter_groups
        from da3_splat.training.optimization import TrainingState, launch

        recipe, objective = self.pipeline.recipe, self.pipeline.objective
        checkpoint = checkpoint_to_load(self.config)
        saved = None if checkpoint is None else read_checkpoint(checkpoint)
        done = 0 if saved is None else saved["step"] + 1
        optimization = replace(recipe.optimization, steps=done + self.config.max_num_iterations)
        groups = parameter_groups(objective.model, recipe)
        self.state = TrainingState(launch(recipe.precision), objective, groups, optimization)
        if saved is not None:
            sampler_state = self.state.load_state_dict(saved["training"], str(checkpoint))
            self.pipeline.datamanager.sampler.load_state_dict(sampler_state)
            self._start_step = done
        self.batches = self.pipeline.datamanager.batches()
        return Optimizers({}, {})

    def _load_checkpoint(self) -> None:
        pass  # done where the state is made

    def train_iteration(self, step: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """One step of the shared training state."""
        from da3_splat.training.panels import TITLE, panel

        pairs = [next(self.batches) for _ in range(self.state.config.accumulate)]
        seen = self.state.advance([batch for _, batch in pairs])
        parts = {name: torch.tensor(value) for name, value in seen.items()}
        for episode, _ in pairs:
            self.pipeline.datamanager.sampler.advance(episode)
        self.pipeline.model.stale = True
        if self.config.steps_per_eval_image and step % self.config.steps_per_eval_image == 0:
            picture = panel(pairs[-1][1].to(self.pipeline.device), self.pipeline.objective)
            writer.put_image(TITLE, picture.permute(1, 2, 0), step)
        return parts.pop("loss"), parts, {"skipped_steps": torch.tensor(float(self.state.skipped))}

    @check_main_thread
    def save_checkpoint(self, step: int) -> None:
        """Write the checkpoint and model.safetensors (averaged weights) beside their places and rename them."""
        from da3_splat.model import save_model

        training = self.state.state_dict(self.pipeline.datamanager.sampler.state_dict())
        nothing: dict = {"optimizers": {}, "schedulers": {}, "scalers": {}}
        state = {"step": step, "pipeline": self.state.average, "training": training, **nothing}
        keep_checkpoint(self.checkpoint_dir, state, self.config.save_only_latest_checkpoint)
        objective = self.pipeline.objective
        last = {name: value.clone() for name, value in objective.state_dict().items()}
        objective.load_state_dict(self.state.averaged())
        save_model(objective.model, self.base_dir / "model.safetensors")
        objective.load_state_dict(last)
