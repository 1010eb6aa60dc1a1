"""DA3's student training: ground truth in the network's own frame and scale, the loss, cameras as input."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, max_pool2d, normalize

from da3_splat.backbone import DepthAnything3
from da3_splat.backbone.vision_transformer import PATCH, TRAINED_GRID
from da3_splat.data.synthetic_batches import GeometryBatch
from da3_splat.geometry.frames import cameras_for_encoder, relative_to_first, scaled
from da3_splat.geometry.poses import decode_cameras
from da3_splat.geometry.projection import project, rays_from_cameras, unproject
from da3_splat.losses import camera_loss, student_loss
from da3_splat.metrics import pose_auc, relative_pose_errors
from da3_splat.types import Cameras, Geometry

MATCHED_TAPS = (1, 2)  # where `mini` has looked at a view alone thrice, and again after it looked at the others


def normalise_truth(truth: Geometry) -> Geometry:
    """`truth` (B,S) in the frame of its first camera, divided by the mean norm of its valid points (section 3.3)."""
    cameras = relative_to_first(truth.cameras)
    points = unproject(truth.depth, cameras)
    valid = truth.depth > 0
    scale = (points.norm(dim=-1) * valid).sum(dim=(1, 2, 3)) / valid.sum(dim=(1, 2, 3)).clamp_min(1)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return replace(truth, depth=truth.depth / scale[:, None, None, None], cameras=scaled(cameras, 1 / scale))


class StudentObjective(nn.Module):
    """The five terms of the student (section 3.3) on a network."""

    def __init__(self, network: DepthAnything3):
        super().__init__()
        self.network = network

    def forward(self, batch: GeometryBatch) -> tuple[Tensor, dict[str, float]]:
        """Loss to differentiate, and its parts with AUC30 of the cameras (0 to 100) as numbers."""
        truth, cameras = _targets(batch)
        prediction = self.network(batch.images, cameras, reference_view="first", rays=True)
        with exact(batch.images):
            parts = student_loss(prediction.to(torch.float32), truth)
            return torch.stack(list(parts.values())).sum(), _numbers(parts, prediction.cameras, truth)


class PatchObjective(nn.Module):
    """A cheap beginning for a transformer that starts from nothing: rays and depth of whole patches, and cameras.

    A linear layer takes the place of the dense heads, which cost two thirds of a step and teach matching no better.
    Matching itself is asked for, too: without it a small network says for thousands of steps that no camera has moved.
    Only the transformer, the camera head and the camera encoder learn; the layers are thrown away.
    """

    def __init__(self, network: DepthAnything3):
        super().__init__()
        self.network = network
        width = 2 * network.backbone.dim
        self.patches = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 7))
        self.descriptors = nn.ModuleList(nn.Linear(network.backbone.dim, 64) for _ in MATCHED_TAPS)

    def forward(self, batch: GeometryBatch) -> tuple[Tensor, dict[str, float]]:
        """Loss to differentiate, and its parts with AUC30 of the cameras (0 to 100) as numbers."""
        truth, cameras = _targets(batch)
        features = self.network.encode(batch.images, cameras, reference_view="first")
        encoding = self.network.camera_encoding(features)
        with exact(batch.images):
            parts = self._parts(self.patches(features.taps[-1].float()), encoding, truth)
            # The first half of a tap is what a view knew before it last looked at the others.
            within = [features.taps[tap][..., : self.network.backbone.dim].float() for tap in MATCHED_TAPS]
            described = [layer(tokens) for layer, tokens in zip(self.descriptors, within)]
            parts["matching"] = 0.2 * matching_loss(described, truth)
            cameras = decode_cameras(encoding, features.height, features.width)
            return torch.stack(list(parts.values())).sum(), _numbers(parts, cameras, truth)

    def _parts(self, said: Tensor, encoding: Tensor, truth: Geometry) -> dict[str, Tensor]:
        rows, columns = truth.cameras.height // PATCH, truth.cameras.width // PATCH
        said = said.unflatten(2, (rows, columns))
        directions, origins, log_depth = said[..., :3], said[..., 3:6], said[..., 6]
        rays = rays_from_cameras(truth.cameras, rows, columns)
        # The farthest pixel of a patch: sky has depth 0, and a mean over an edge is nobody's depth.
        depth = max_pool2d(truth.depth, PATCH)
        valid = depth > 0
        return {
            "camera": camera_loss(encoding, truth.cameras),
            "ray": (directions - rays.directions).abs().mean() + 2 * (origins - rays.origins).abs().mean(),
            "depth": 0.5 * ((log_depth - depth.clamp_min(1e-3).log()).abs() * valid).sum() / valid.sum().clamp_min(1),
        }


def matching_loss(descriptors: list[Tensor], truth: Geometry) -> Tensor:
    """Cross entropy of finding, among the patches of the first view, the one that shows what a patch of another view
    shows in its centre, and the other way round. Each of `descriptors` is (B,S,P,D); `truth` says which patches match.

    Patches whose centre the other view does not see do not count.
    """
    rows, columns = truth.cameras.height // PATCH, truth.cameras.width // PATCH
    rays = rays_from_cameras(truth.cameras, rows, columns)
    depth = truth.depth[..., PATCH // 2 :: PATCH, PATCH // 2 :: PATCH]
    points = (rays.origins + depth[..., None] * rays.directions).flatten(2, 3)  # (B,S,P,3)
    losses = []
    for view in range(1, truth.depth.shape[1]):
        for source, target in ((view, 0), (0, view)):
            pixels, z = project(points[:, source], truth.cameras.select([target]))
            x, y = (pixels[:, 0] / PATCH).floor().long().unbind(-1)  # (B,P)
            inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows) & (z[:, 0] > 0)
            index = (y * columns + x).clamp(0, rows * columns - 1)
            there = depth[:, target].flatten(1).gather(1, index)
            # Patches are coarse, so their depths agree only roughly where they show the same.
            seen = inside & (depth[:, source].flatten(1) > 0) & ((z[:, 0] / there.clamp_min(1e-6)).log().abs() < 0.1)
            for tokens in descriptors:
                unit = normalize(tokens, dim=-1)
                scores = 10 * unit[:, source] @ unit[:, target].transpose(1, 2)
                error = cross_entropy(scores.transpose(1, 2), index, reduction="none")
                losses.append((error * seen).sum() / seen.sum().clamp_min(1))
    return torch.stack(losses).mean()


def _targets(batch: GeometryBatch) -> tuple[Geometry, Cameras | None]:
    """The truth in the network's frame and scale, and the cameras that are given to it."""
    with exact(batch.images):
        truth = normalise_truth(batch.truth)
        return truth, cameras_for_encoder(truth.cameras) if batch.give_cameras else None


def exact(like: Tensor) -> torch.autocast:
    """No half precision within: geometry and losses are float32 however the network runs."""
    return torch.autocast(like.device.type, enabled=False)


def smooth_positions(network: DepthAnything3) -> None:
    """Give a fresh transformer a position embedding that changes slowly over the picture, instead of noise.

    Small pictures sample the released 37x37 grid coarsely: from noise, every size would have to learn its own places.
    """
    embedding = network.backbone.pos_embed
    frequencies = torch.pi / 2 * 2 ** torch.linspace(0, 3, embedding.shape[-1] // 4)
    line = torch.linspace(-1, 1, TRAINED_GRID)
    angles = torch.cartesian_prod(line, line)[:, :, None] * frequencies
    with torch.no_grad():
        embedding[0, 1:] = 0.5 * torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)


@torch.no_grad()
def _numbers(parts: dict[str, Tensor], cameras: Cameras, truth: Geometry) -> dict[str, float]:
    errors = torch.maximum(*relative_pose_errors(cameras, truth.cameras))
    auc = 100 * float(pose_auc(errors, 30).mean())
    return {**{name: float(value.detach()) for name, value in parts.items()}, "auc30": auc}
