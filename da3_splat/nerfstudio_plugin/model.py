"""Splatfacto with our renderer (CPU or CUDA), Gaussians that are given to it, and metrics that work offline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from unittest.mock import patch

import torch
from nerfstudio.cameras.cameras import Cameras as NerfstudioCameras
from nerfstudio.models.splatfacto import SplatfactoModel, SplatfactoModelConfig
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.viewer_elements import ViewerCheckbox, ViewerDropdown
from torch import Tensor, nn
from torch.nn.functional import interpolate

from da3_splat.losses import log_depth_loss
from da3_splat.nerfstudio_plugin.cameras import from_nerfstudio
from da3_splat.nerfstudio_plugin.feed_forward import confidence_picture, from_state, to_state
from da3_splat.refinement import trust_of
from da3_splat.rendering import render_with_screen
from da3_splat.types import Gaussians

NEVER = 10_000_000  # steps


@dataclass
class Da3SplatModelConfig(SplatfactoModelConfig):
    """Splatfacto's options with defaults for a start that is good already: full resolution and full SH at once, thin
    Gaussians kept, no opacity reset, a fixed background."""

    _target: type = field(default_factory=lambda: Da3SplatModel)
    num_downscales: int = 0
    sh_degree: int = 2
    sh_degree_interval: int = 1
    cull_alpha_thresh: float = 0.005
    reset_alpha_every: int = NEVER
    background_color: Literal["random", "black", "white"] = "black"
    depth_weight: float = 0.0
    """pull rendered depth towards the depth that the Gaussians were laid on, each picture scaled to fit; falls to a
    hundredth over `depth_steps`. Off: with the embedded weights it won nothing (0.0 to -0.2 dB on two captures)"""
    depth_steps: int = 1000


class LazyLpips(nn.Module):
    """LPIPS (AlexNet, torchmetrics) built on first use; NaN, with one line that says why, where its weights are not."""

    def __init__(self, **options):
        super().__init__()
        self.options, self.missing = options, False
        self._metric: list[nn.Module] = []  # in a list, so that its weights stay out of checkpoints

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        if not self._metric and not self.missing:
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            try:
                self._metric.append(LearnedPerceptualImagePatchSimilarity(**self.options).to(image.device))
            except OSError as error:  # its AlexNet weights are downloaded
                self.missing = True
                CONSOLE.log(f"LPIPS is not available: its weights could not be downloaded ({error})")
        if self.missing:
            return torch.full((), float("nan"))
        return self._metric[0](image, target)


class Da3SplatModel(SplatfactoModel):
    config: Da3SplatModelConfig

    def populate_modules(self):
        # Real Gaussians arrive by `set_gaussians`; four points keep the base class from wanting CUDA for colours.
        self.seed_points = (torch.eye(4)[:, :3], torch.zeros(0, 3))
        with patch("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", LazyLpips):
            super().populate_modules()
        # The last loss of each training picture; not kept on disk.
        self.view_losses = torch.full((self.num_train_data,), float("nan"))
        self.feed_forward: Gaussians | None = None
        self.shown = ViewerDropdown("Gaussians", "refined", ["refined", "feed-forward"])
        self.with_confidence = ViewerCheckbox("Confidence", False, hint="adds an output, at the price of a rendering")

    def set_gaussians(self, gaussians: Gaussians) -> None:
        """Replace all parameters by these Gaussians (1,N) in Nerfstudio's frame; before the optimizers are made."""
        gaussians = self.feed_forward = gaussians.detach().to(self.device, torch.float32)
        count, bases = gaussians.means.shape[1], (self.config.sh_degree + 1) ** 2
        rest = gaussians.means.new_zeros(count, bases - 1, 3)
        given = gaussians.sh[0, :, 1:bases]
        rest[:, : given.shape[1]] = given
        values = {
            "means": gaussians.means[0],
            "scales": gaussians.scales[0].log(),
            "quats": gaussians.quats[0],
            "features_dc": gaussians.sh[0, :, 0],
            "features_rest": rest,
            "opacities": torch.logit(gaussians.opacities[0], eps=1e-4)[:, None],
        }
        for name, value in values.items():
            self.gauss_params[name] = nn.Parameter(value.clone().contiguous())

    def set_depth_targets(self, depth: dict[int, Tensor]) -> None:
        """Depth (H,W) by the index of the training picture, 0 where it is not known, of any size; not kept on disk."""
        self.depth_targets = {index: value.detach().to(self.device) for index, value in depth.items()}

    def get_loss_dict(self, outputs, batch, metrics_dict=None) -> dict[str, Tensor]:
        """Splatfacto's losses, and the pull towards the network's depth where it is asked for. Where cameras move, a
        picture that fits much worse than the others counts less, as in refinement.py."""
        losses = super().get_loss_dict(outputs, batch, metrics_dict)
        index = int(batch.get("image_idx", -1))
        if self.training and index >= 0 and self.config.camera_optimizer.mode != "off":
            self.view_losses[index] = losses["main_loss"].detach().cpu()
            losses["main_loss"] = losses["main_loss"] * float(trust_of(self.view_losses)[index])
        target = getattr(self, "depth_targets", {}).get(index)
        if self.training and self.config.depth_weight > 0 and target is not None:
            depth, alpha = (outputs[name][None, None, ..., 0] for name in ("depth", "accumulation"))
            depth, alpha = (interpolate(part, target.shape, mode="nearest-exact")[:, 0] for part in (depth, alpha))
            mask = (target[None] > 0) & (alpha.detach() > 0.5)
            weight = self.config.depth_weight * 0.01 ** min(1.0, self.step / self.config.depth_steps)
            losses["depth_loss"] = weight * log_depth_loss(depth, target[None], mask)
        return losses

    def gaussians(self) -> Gaussians:
        """The current Gaussians (1,N), activated, differentiable; cut to the viewer's crop box outside training."""
        if not self.training and self.shown.value == "feed-forward" and self.feed_forward is not None:
            return self.feed_forward
        raw = dict(self.gauss_params.items())
        if self.crop_box is not None and not self.training:
            inside = self.crop_box.within(raw["means"]).squeeze(-1)
            raw = {name: value[inside] for name, value in raw.items()}
        return Gaussians(
            means=raw["means"][None],
            quats=raw["quats"][None],
            scales=raw["scales"].exp()[None],
            opacities=raw["opacities"][None, :, 0].sigmoid(),
            sh=torch.cat([raw["features_dc"][:, None], raw["features_rest"]], dim=1)[None],
        )

    def get_outputs(self, camera: NerfstudioCameras) -> dict[str, Tensor | list]:
        """rgb (H,W,3), expected depth and accumulation (H,W,1), background of one camera, by our renderer."""
        poses = self.camera_optimizer.apply_to_camera(camera) if self.training else camera.camera_to_worlds
        scale = self._get_downscale_factor()
        camera.rescale_output_resolution(1 / scale)
        ours = from_nerfstudio(camera, poses.to(self.device))
        camera.rescale_output_resolution(scale)
        self.last_size = (ours.height, ours.width)
        background = self._get_background_color()
        gaussians = self.gaussians()
        if gaussians.means.shape[1] == 0:
            return self.get_empty_outputs(ours.width, ours.height, background)
        rendering, (screen,) = render_with_screen(
            gaussians,
            ours,
            background=background,
            antialiased=self.config.rasterize_mode == "antialiased",
            absolute=self.training and self.strategy.absgrad,
        )
        if self.training:
            self.info = {
                "means2d": screen.probe,
                "radii": screen.radii,
                "width": ours.width,
                "height": ours.height,
                "n_cameras": 1,
                "gaussian_ids": None,
            }
            self.strategy.step_pre_backward(
                self.gauss_params, self.optimizers, self.strategy_state, self.step, self.info
            )
        rgb = rendering.color[0, 0].permute(1, 2, 0).clamp(0, 1)
        alpha, depth = rendering.alpha[0, 0, ..., None], rendering.depth[0, 0, ..., None]
        metadata = camera.metadata or {}
        if self.training and self.config.use_bilateral_grid and "cam_idx" in metadata:
            rgb = self._apply_bilateral_grid(rgb[None], metadata["cam_idx"], ours.height, ours.width)[0]
        outputs = {
            "rgb": rgb,
            "depth": torch.where(alpha > 0, depth, depth.detach().max()),
            "accumulation": alpha,
            "background": background if self.training else background.expand(*rgb.shape),
        }
        if not self.training and self.with_confidence.value and self.feed_forward is not None:
            outputs["confidence"] = confidence_picture(self.feed_forward, ours)[..., None]
        return outputs

    def get_image_metrics_and_images(self, outputs, batch):
        metrics, images = super().get_image_metrics_and_images(outputs, batch)
        if self.lpips.missing:
            metrics = {name: value for name, value in metrics.items() if "lpips" not in name}
        return metrics, images

    def get_extra_state(self) -> dict[str, Tensor]:
        """What checkpoints keep beside the parameters: the Gaussians as the network gave them."""
        return to_state(self.feed_forward)

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        self.feed_forward = from_state(state, self.device)

    def load_state_dict(self, dict, **kwargs):
        """As the base class, but parameters of the right size are filled in place, so their optimizers keep them."""
        dict.setdefault("_extra_state", {})  # checkpoints of older versions have none
        count = dict["gauss_params.means"].shape[0]
        if count == self.num_points:
            self.step = NEVER  # until a training step says otherwise: evaluate with everything on
            return nn.Module.load_state_dict(self, dict, **kwargs)
        return super().load_state_dict(dict, **kwargs)

    def resize(self, count: int) -> None:
        """Make room for a checkpoint of `count` Gaussians, before the optimizers are made."""
        for name, value in self.gauss_params.items():
            self.gauss_params[name] = nn.Parameter(value.new_zeros(count, *value.shape[1:]))
