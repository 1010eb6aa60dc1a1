"""Training the models that see one view at a time: teacher, monocular student and metric model (section 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from da3_splat.backbone import DepthAnything3
from da3_splat.backbone.network import METRIC_FOCAL
from da3_splat.data.synthetic_batches import GeometryBatch
from da3_splat.geometry.frames import camera_at_origin
from da3_splat.teacher_losses import metric_loss, teacher_loss
from da3_splat.training.geometry import exact
from da3_splat.types import SKY_THRESHOLD, Cameras

# L_T leaves scale and shift open, and Adam's steps move them all the same: this holds log depth near 0.
ANCHOR = 0.01
NOMINAL_FOCAL = 0.87  # in widths, 60 degrees: for the normals of pictures whose lens nobody knows


class TeacherObjective(nn.Module):
    """L_T of a monocular network on exact depth (section 4.1): synthetic data only."""

    def __init__(self, network: DepthAnything3):
        super().__init__()
        self.network = network

    def forward(self, batch: GeometryBatch) -> tuple[Tensor, dict[str, float]]:
        """Loss to differentiate and its parts as numbers."""
        maps = predict_maps(self.network, batch.images)
        with exact(batch.images):
            truth = batch.truth
            sky = None if truth.sky is None else (maps["sky"], truth.sky.flatten(0, 1) > 0.5)
            objects = None
            if batch.objects is not None and "objects" in maps:
                objects = (maps["objects"], batch.objects.flatten(0, 1))
            parts = teacher_loss(maps["depth"], truth.depth.flatten(0, 1), single(truth.known_cameras), sky, objects)
            return _summed(parts | {"anchor": anchor(maps["depth"])})


class MonoObjective(nn.Module):
    """The same loss on a teacher's depth and sky of pictures without any truth (section 4.3)."""

    def __init__(self, network: DepthAnything3, teacher: DepthAnything3):
        super().__init__()
        self.network = network
        self.teacher = (teacher.eval().requires_grad_(False),)  # a tuple: no part of what is trained and saved

    def forward(self, batch: GeometryBatch) -> tuple[Tensor, dict[str, float]]:
        """Loss to differentiate and its parts as numbers. Of the batch, only the pictures are looked at."""
        height, width = batch.images.shape[-2:]
        maps = predict_maps(self.network, batch.images)
        teacher = self.teacher[0].to(batch.images.device)
        with torch.no_grad():
            labels = predict_maps(teacher, batch.images)
        with exact(batch.images):
            sky = labels["sky"] >= SKY_THRESHOLD
            target = torch.where(sky, 0, labels["depth"])
            camera = camera_at_origin(NOMINAL_FOCAL * width, height, width).to(batch.images)
            cameras = Cameras(
                world_to_camera=camera.world_to_camera.expand(len(target), 1, 4, 4),
                intrinsics=camera.intrinsics.expand(len(target), 1, 3, 3),
                height=height,
                width=width,
            )
            parts = teacher_loss(maps["depth"], target, cameras, (maps["sky"], sky))
            return _summed(parts | {"anchor": anchor(maps["depth"])})


class MetricObjective(nn.Module):
    """L_depth + L_grad + L_sky of depth in metres seen through the canonical lens (section 4.4)."""

    def __init__(self, network: DepthAnything3):
        super().__init__()
        self.network = network

    def forward(self, batch: GeometryBatch) -> tuple[Tensor, dict[str, float]]:
        """Loss to differentiate and its parts as numbers. The batch's depth is in metres."""
        maps = predict_maps(self.network, batch.images)
        with exact(batch.images):
            truth = batch.truth
            target = canonical_depth(truth.depth, truth.known_cameras).flatten(0, 1)
            sky = None if truth.sky is None else (maps["sky"], truth.sky.flatten(0, 1) > 0.5)
            return _summed(metric_loss(maps["depth"], target, sky))


def predict_maps(network: DepthAnything3, images: Tensor) -> dict[str, Tensor]:
    """Depth, sky and (a teacher) objects (B*S,H,W) of pictures (B,S,3,H,W), each seen by itself, in float32.

    ValueError where the network is an any-view model.
    """
    if network.predicts_cameras:
        raise ValueError("preset: expected a monocular one (da3teacher-large, da3mono-large, da3metric-large)")
    maps = network.maps(network.encode(images))
    return {name: value.flatten(0, 1).float() for name, value in maps.items()}


def anchor(depth: Tensor) -> Tensor:
    """ANCHOR times the mean over pictures (N,H,W) of the squared mean log depth: no part of the paper's loss."""
    return ANCHOR * depth.clamp_min(1e-12).log().mean(dim=(1, 2)).square().mean()


def canonical_depth(depth: Tensor, cameras: Cameras) -> Tensor:
    """Depth (B,S,H,W) in metres as a lens of 300 pixels would have to see it: times 300 / f (section 4.4).

    f is the mean focal length in pixels at the size the network sees; `backbone.network.metres` is the way back.
    """
    focal = cameras.resized(*depth.shape[-2:]).intrinsics.diagonal(dim1=-2, dim2=-1)[..., :2].mean(dim=-1)
    return depth * (METRIC_FOCAL / focal)[..., None, None]


def single(cameras: Cameras) -> Cameras:
    """Cameras (B,S) as scenes of one view each (B*S,1)."""
    return Cameras(
        world_to_camera=cameras.world_to_camera.flatten(0, 1)[:, None],
        intrinsics=cameras.intrinsics.flatten(0, 1)[:, None],
        height=cameras.height,
        width=cameras.width,
    )


def _summed(parts: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    return torch.stack(list(parts.values())).sum(), {name: float(value.detach()) for name, value in parts.items()}
