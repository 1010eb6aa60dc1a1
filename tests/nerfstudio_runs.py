"""Small runs of the Nerfstudio method, for tests of it and of Nerfstudio's tools. Imports Nerfstudio."""

import json
from copy import deepcopy
from pathlib import Path

import torch
from captures import small_capture
from nerfstudio.scripts.eval import ComputePSNR
from nerfstudio.utils import writer

from da3_splat.nerfstudio_plugin.config import da3_splat_method


def capture_folder(tmp_path_factory) -> Path:
    """A folder with a capture of nine views."""
    folder = tmp_path_factory.mktemp("nerfstudio")
    small_capture(folder / "capture")
    return folder


def config_for(workspace: Path, name: str, steps: int, **changes):
    config = deepcopy(da3_splat_method.config)
    config.data = workspace / "capture"
    config.pipeline.datamanager.dataparser.data = config.data
    config.output_dir, config.experiment_name, config.timestamp = workspace / "runs", "capture", name
    config.max_num_iterations, config.vis = steps, "tensorboard"
    config.machine.device_type = "cpu"
    config.viewer.quit_on_train_completion = True
    config.logging.local_writer.enable = False
    config.pipeline.resolution, config.pipeline.max_gaussians = 84, 3000
    for key, value in changes.items():
        setattr(config, key, value)
    return config


def train(config):
    """What ns-train does with a config, and the trainer it leaves."""
    from nerfstudio.scripts.train import _set_random_seed

    writer.EVENT_WRITERS.clear()
    writer.EVENT_STORAGE.clear()
    writer.GLOBAL_BUFFER.clear()
    _set_random_seed(config.machine.seed)
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.train()
    return trainer


def evaluate(config, workspace: Path) -> dict:
    output = workspace / f"eval_{config.timestamp}.json"
    ComputePSNR(load_config=config.get_base_dir() / "config.yml", output_path=output).main()
    return json.loads(output.read_text())["results"]


def checkpoint_of(config) -> dict:
    (path,) = config.get_checkpoint_dir().glob("*.ckpt")
    return torch.load(path, weights_only=True)  # plain values only, or this raises
