"""DA3's student training: ground truth in the network's own frame and scale, the loss, cameras as input."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, max_pool2d

from da3_splat.backbone import DepthAnything3
from da3_splat.backbone.attention import Attention
from da3_splat.backbone.vision_transformer import PATCH, TRAINED_GRID
from da3_splat.data.synthetic_batches import GeometryBatch
from da3_splat.geometry.frames import cameras_for_encoder, relative_to_first, scaled
from da3_splat.geometry.poses import decode_cameras
from da3_splat.geometry.projection import project, rays_from_cameras, unproject
from da3_splat.losses import camera_loss, student_loss
from da3_splat.metrics import pose_auc, pose_errors
from da3_splat.types import Cameras, Geometry


def normalise_truth(truth: Geometry) -> Geometry:
    """`truth` (B,S) in the frame of its first camera, divided by the mean norm of its valid points (section 3.3)."""
    cameras = relative_to_first(truth.known_cameras)
    points = unproject(truth.depth, cameras)
    valid = truth.depth > 0
    scale = (points.norm(dim=-1) * valid).sum(dim=(1, 2, 3)) / valid.sum(dim=(1, 2, 3)).clamp_min(1)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return replace(truth, depth=truth.depth / scale[:, None, None, None], cameras=scaled(cameras, 1 / scale))


STUDENT_TERMS = ("depth", "ray", "point", "camera", "gradient")


class StudentObjective(nn.Module):
    """The five terms of the student (section 3.3) on a network, or some of them: Table 6 compares what is asked for."""

    def __init__(self, network: DepthAnything3, terms: tuple[str, ...] = STUDENT_TERMS):
        super().__init__()
        if not terms or not set(terms) <= set(STUDENT_TERMS):
            raise ValueError(f"terms: expected some of {', '.join(STUDENT_TERMS)}, got {terms}")
        self.network, self.terms = network, terms

    def forward(self, batch: GeometryBatch) -> tuple[Tensor, dict[str, float]]:
        """Loss to differentiate, its parts as numbers, and AUC30 of the cameras (0 to 100) where they are not given."""
        truth, cameras = _targets(batch)
        prediction = self.network(batch.images, cameras, reference_view="first", rays=True)
        with exact(batch.images):
            parts = student_loss(prediction.to(torch.float32), truth)
            parts = {name: parts[name] for name in self.terms}
            return torch.stack(list(parts.values())).sum(), _numbers(
                parts, prediction.cameras, truth, batch.give_cameras
            )


class PatchObjective(nn.Module):
    """A cheap beginning for a transformer that starts from nothing: rays and depth of whole patches, and cameras.

    A linear layer takes the place of the dense heads, which cost two thirds of a step and teach matching no better.
    Matching itself is asked for, too: without it a small network says for thousands of steps that no camera has moved.
    So the first head of the first two cross-view attentions is told where to look (see `matching_loss`), and rays and
    depth are asked for after every cross-view block. Only transformer, camera head and camera encoder learn; the linear
    layers are thrown away.
    """

    def __init__(self, network: DepthAnything3):
        super().__init__()
        self.network = network
        width = 2 * network.backbone.dim
        self.patches = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 7)) for _ in range(3))
        across = [block for index, block in enumerate(network.backbone.blocks) if network.backbone.looks_across(index)]
        attentions = [block.get_submodule("attn") for block in across[:2]]
        self.told = [attention for attention in attentions if isinstance(attention, Attention)]

    def forward(self, batch: GeometryBatch) -> tuple[Tensor, dict[str, float]]:
        """Loss to differentiate, its parts as numbers, and AUC30 of the cameras (0 to 100) where they are not given."""
        truth, cameras = _targets(batch)
        with ExitStack() as stack:
            looks = [stack.enter_context(attention_scores(attention, head=0)) for attention in self.told]
            features = self.network.encode(batch.images, cameras, reference_view="first")
        encoding = self.network.camera_encoding(features)
        with exact(batch.images):
            said = torch.stack([layer(tap.float()) for layer, tap in zip(self.patches, features.taps[-3:])])
            parts = {
                "camera": camera_loss(encoding, truth.known_cameras),
                **self._parts(said, truth),
                "matching": 0.2 * matching_loss([look[0] for look in looks], truth),
            }
            cameras = decode_cameras(encoding, features.height, features.width)
            return torch.stack(list(parts.values())).sum(), _numbers(parts, cameras, truth, batch.give_cameras)

    def _parts(self, said: Tensor, truth: Geometry) -> dict[str, Tensor]:
        """Ray and depth losses of what the linear layers say (3,B,S,P,7), their mean."""
        rows, columns = truth.known_cameras.height // PATCH, truth.known_cameras.width // PATCH
        directions, origins, log_depth = said.unflatten(3, (rows, columns)).split([3, 3, 1], dim=-1)
        rays = rays_from_cameras(truth.known_cameras, rows, columns)
        # The farthest pixel of a patch: sky has depth 0, and a mean over an edge is nobody's depth.
        depth = max_pool2d(truth.depth, PATCH)
        valid = (depth > 0).expand_as(log_depth[..., 0])
        error = (log_depth[..., 0] - depth.clamp_min(1e-3).log()).abs()
        return {
            "ray": (directions - rays.directions).abs().mean() + 2 * (origins - rays.origins).abs().mean(),
            "depth": 0.5 * (error * valid).sum() / valid.sum().clamp_min(1),
        }


@contextmanager
def attention_scores(attention: Attention, head: int):
    """A list that holds, after a forward pass within, the scores (B,N,N) of one head before the softmax."""
    found: list[Tensor] = []

    def keep(module: Attention, inputs: tuple) -> None:
        query, key = (part[:, head].float() for part in module.project(*inputs[:2])[:2])
        found.append(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5)

    handle = attention.register_forward_pre_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def matching_loss(scores: list[Tensor], truth: Geometry) -> Tensor:
    """Cross entropy of cross-view attention against the truth: a patch of a further view should look at the patch of
    the first view that shows what its centre shows, and those of the first view at one of the second.

    `scores` are (B,N,N) over all tokens of all views, a class token before the patches of each. Patches whose centre
    the other view does not see do not count; worlds count alike, so that ranks may share a batch.
    """
    rows, columns = truth.known_cameras.height // PATCH, truth.known_cameras.width // PATCH
    patches, views = rows * columns, truth.depth.shape[1]
    rays = rays_from_cameras(truth.known_cameras, rows, columns)
    depth = truth.depth[..., PATCH // 2 :: PATCH, PATCH // 2 :: PATCH]
    points = (rays.origins + depth[..., None] * rays.directions).flatten(2, 3)  # (B,S,P,3)
    total, count = points.new_zeros(len(points)), points.new_zeros(len(points))
    for source, target in [(view, 0) for view in range(1, views)] + [(0, 1)]:
        pixels, z = project(points[:, source], truth.known_cameras.select([target]))
        x, y = (pixels[:, 0] / PATCH).floor().long().unbind(-1)  # (B,P)
        inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows) & (z[:, 0] > 0)
        index = (y * columns + x).clamp(0, patches - 1)
        there = depth[:, target].flatten(1).gather(1, index)
        # Patches are coarse, so their depths agree only roughly where they show the same.
        seen = inside & (depth[:, source].flatten(1) > 0) & ((z[:, 0] / there.clamp_min(1e-6)).log().abs() < 0.1)
        first = source * (1 + patches) + 1
        for all_scores in scores:
            answers = all_scores[:, first : first + patches].transpose(1, 2)
            error = cross_entropy(answers, target * (1 + patches) + 1 + index, reduction="none")
            total, count = total + (error * seen).sum(dim=1), count + seen.sum(dim=1)
    return (total / count.clamp_min(1)).mean()


def _targets(batch: GeometryBatch) -> tuple[Geometry, Cameras | None]:
    """The truth in the network's frame and scale, and the cameras that are given to it."""
    with exact(batch.images):
        truth = normalise_truth(batch.truth)
        return truth, cameras_for_encoder(truth.known_cameras) if batch.give_cameras else None


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
def _numbers(parts: dict[str, Tensor], cameras: Cameras, truth: Geometry, given: bool) -> dict[str, float]:
    numbers = {name: float(value.detach()) for name, value in parts.items()}
    if given:
        return numbers  # poses that are told are no achievement
    errors = pose_errors(cameras, truth.known_cameras)
    return {**numbers, "auc30": 100 * float(pose_auc(errors, 30).mean())}
