"""The entry point that Nerfstudio loads on every command: a specification, nothing heavy, no logic."""

from __future__ import annotations

import torch
from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.plugins.types import MethodSpecification

from da3_splat.nerfstudio_plugin.datamanager import Da3SplatDatamanagerConfig
from da3_splat.nerfstudio_plugin.head_pipeline import HeadPipelineConfig
from da3_splat.nerfstudio_plugin.head_trainer import HeadTrainerConfig
from da3_splat.nerfstudio_plugin.pipeline import Da3SplatPipelineConfig
from da3_splat.nerfstudio_plugin.schedulers import DecayConfig
from da3_splat.nerfstudio_plugin.trainer import Da3SplatTrainerConfig


def _adam(rate: float, to: float = 0.01) -> dict:
    """Adam whose rate falls to the share `to` of its beginning over the run."""
    return {"optimizer": AdamOptimizerConfig(lr=rate, eps=1e-15), "scheduler": DecayConfig(final_fraction=to)}


def _on_this_machine() -> dict:
    """CUDA where there is some, and a viewer that nobody else can reach."""
    return {
        "machine": MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu"),
        "viewer": ViewerConfig(num_rays_per_chunk=1 << 15, websocket_host="127.0.0.1"),
        "vis": "viewer+tensorboard",
    }


da3_splat_method = MethodSpecification(
    config=Da3SplatTrainerConfig(
        method_name="da3-splat",
        max_num_iterations=3000,
        steps_per_save=500,
        steps_per_eval_batch=0,
        steps_per_eval_image=100,
        steps_per_eval_all_images=1000,
        pipeline=Da3SplatPipelineConfig(
            datamanager=Da3SplatDatamanagerConfig(
                dataparser=NerfstudioDataParserConfig(load_3D_points=True, eval_mode="interval", eval_interval=8),
                cache_images="gpu",
                cache_images_type="uint8",
            ),
        ),
        optimizers={
            # High, because a start that is nearly right needs minutes, not hours. refinement.py, which splits nothing,
            # has higher ones still, and forgets its gradients faster than Nerfstudio's optimizers can be told to.
            "means": _adam(6e-3),
            "scales": _adam(4e-2, to=0.1),
            "quats": _adam(1e-2, to=0.1),
            "features_dc": _adam(1e-2, to=0.1),
            "features_rest": _adam(1e-3, to=0.1),
            "opacities": _adam(2e-1, to=0.1),
            "camera_opt": _adam(2e-3),
            "bilateral_grid": _adam(2e-3),
        },
        **_on_this_machine(),
    ),
    description="Depth Anything 3 places the Gaussians in one pass; Splatfacto refines them. Works without a GPU.",
)

da3_splat_head_method = MethodSpecification(
    config=HeadTrainerConfig(
        method_name="da3-splat-head",
        max_num_iterations=2000,
        steps_per_save=200,
        steps_per_eval_image=100,
        pipeline=HeadPipelineConfig(),
        optimizers={},
        **_on_this_machine(),
    ),
    description="Train the Gaussian head of da3-splat over many scenes (one process; torchrun: scripts/train_head.py).",
)
