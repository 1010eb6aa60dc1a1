"""Evaluation where the training poses were refined: held-out cameras are aligned to their pictures first.

Refined cameras and Gaussians may have drifted together, so a held-out camera that kept its given pose would look at
the scene from a little beside its picture. As in the field's pose-free protocols its pose is optimised on the fixed
Gaussians; the picture it is scored on takes part in that, which the log says.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from nerfstudio.cameras.cameras import Cameras as NerfstudioCameras
from torch import Tensor

from da3_splat.evaluation.target_poses import aligned_to_pictures
from da3_splat.nerfstudio_plugin.cameras import from_nerfstudio, to_nerfstudio
from da3_splat.nerfstudio_plugin.model import Da3SplatModel
from da3_splat.types import Views


def aligned_camera(model: Da3SplatModel, camera: NerfstudioCameras, batch: dict, steps: int) -> NerfstudioCameras:
    """The camera (1) whose rendering fits the batch's picture best, from where it stands, in so many steps."""
    image = batch["image"][..., :3].to(model.device)
    image = (image.float() / 255 if image.dtype == torch.uint8 else image.float()).permute(2, 0, 1)
    mask: Tensor | None = batch.get("mask")
    views = Views(
        images=image[None, None],
        cameras=from_nerfstudio(camera.to(model.device)),
        masks=None if mask is None else mask[..., 0].bool().to(model.device)[None, None],
    )
    found = to_nerfstudio(aligned_to_pictures(model.gaussians().detach(), views, steps)).to(model.device)
    found.metadata = camera.metadata
    return found


class AlignedLoader:
    """A loader of (camera, batch) pairs whose cameras are aligned as they come."""

    def __init__(self, loader, model: Da3SplatModel, steps: int):
        self.loader, self.model, self.steps = loader, model, steps

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[NerfstudioCameras, dict]]:
        for camera, batch in self.loader:
            yield aligned_camera(self.model, camera, batch, self.steps), batch
