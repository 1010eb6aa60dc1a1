"""Nerfstudio's trainer with what it lacks: a feed-forward start, zero iterations, resuming, atomic checkpoints."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.rich_utils import CONSOLE

from da3_splat.io.checkpoints import read_checkpoint, write_checkpoint
from da3_splat.nerfstudio_plugin.pipeline import Da3SplatPipeline
from da3_splat.nerfstudio_plugin.schedulers import DecayConfig
from da3_splat.refinement import doubtful_names, doubtful_remark
from da3_splat.trained_run import write_user_frame


@dataclass
class Da3SplatTrainerConfig(TrainerConfig):
    _target: type = field(default_factory=lambda: Da3SplatTrainer)


class Da3SplatTrainer(Trainer):
    pipeline: Da3SplatPipeline

    def setup_optimizers(self) -> Optimizers:
        """Give the model its Gaussians before the optimizers take hold of the parameters."""
        checkpoint, done = checkpoint_to_load(self.config), 0
        if checkpoint is None:
            self.pipeline.fill_from_network()
            frame = self.pipeline.user_frame()
            if frame is not None:
                write_user_frame(self.base_dir, frame)
        else:
            state = read_checkpoint(checkpoint)
            self.pipeline.model.resize(state["pipeline"]["_model.gauss_params.means"].shape[0])
            done = state["step"] + 1
        config = deepcopy(self.config.optimizers)
        for group in config.values():
            if isinstance(group["scheduler"], DecayConfig) and group["scheduler"].steps is None:
                group["scheduler"].steps = done + self.config.max_num_iterations
        return Optimizers(config, self.pipeline.get_param_groups())

    def train(self) -> None:
        """As the base class; zero iterations save the feed-forward result (the base class would fail)."""
        if self.config.max_num_iterations > 0:
            super().train()
            self._name_doubtful_views()
            return
        outputs = self.pipeline.datamanager.train_dataparser_outputs
        outputs.save_dataparser_transform(self.base_dir / "dataparser_transforms.json")
        self._init_viewer_state()
        self.stop_training = False
        self.step = max(0, self._start_step - 1)
        self.training_state = "completed"
        self.save_checkpoint(self.step)
        if not self.config.viewer.quit_on_train_completion:
            self._train_complete_viewer()

    def _name_doubtful_views(self) -> None:
        names = [path.name for path in self.pipeline.datamanager.train_dataset.image_filenames]
        for name in doubtful_names(names, self.pipeline.model.view_losses):
            CONSOLE.log(doubtful_remark(name))

    @check_main_thread
    def save_checkpoint(self, step: int) -> None:
        """Write the checkpoint beside its place and rename it, then drop the older ones."""
        state = {
            "step": step,
            "pipeline": self.pipeline.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.optimizers.items()},
            "schedulers": {name: scheduler.state_dict() for name, scheduler in self.optimizers.schedulers.items()},
            "scalers": self.grad_scaler.state_dict(),
        }
        keep_checkpoint(self.checkpoint_dir, state, self.config.save_only_latest_checkpoint)


def checkpoint_to_load(config: TrainerConfig) -> Path | None:
    """The checkpoint that --load-dir (the latest, or that of --load-step) or --load-checkpoint names; None: neither."""
    if config.load_dir is None:
        return config.load_checkpoint
    if config.load_step is not None:
        return config.load_dir / f"step-{config.load_step:09d}.ckpt"
    found = sorted(config.load_dir.glob("step-*.ckpt"))
    if not found:
        raise FileNotFoundError(f"{config.load_dir}: no step-*.ckpt in this folder")
    return found[-1]


def keep_checkpoint(folder: Path, state: dict, only_latest: bool) -> None:
    """Write the checkpoint of state["step"] beside its place and rename it; then drop the others, if they are not
    wanted."""
    path = folder / f"step-{state['step']:09d}.ckpt"
    write_checkpoint(path, state)
    for other in folder.glob("step-*.ckpt") if only_latest else ():
        if other != path:
            other.unlink()
