"""A set of synthetic worlds that stays the same, with depth as real sets have it and a teacher's labels, for
comparisons; and how good a student is on worlds it has not seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from da3_splat.backbone import DepthAnything3
from da3_splat.data.measurement import Measurement, measure
from da3_splat.data.sequences import items_from
from da3_splat.data.synthetic import make_scenes
from da3_splat.data.synthetic_batches import GeometryBatch, StepSampler, batch_shape
from da3_splat.geometry.frames import baseline_scale, cameras_for_encoder
from da3_splat.metrics import absolute_relative_error, pose_auc, pose_errors
from da3_splat.training.pseudo_labels import LabelConfig, align_to_measured
from da3_splat.training.single_view import predict_maps
from da3_splat.types import SKY_THRESHOLD, Cameras, Geometry, Record


@dataclass(frozen=True)
class FixedWorlds(Record):
    """W worlds of S views: images (W,S,3,H,W), exact geometry, measured depth and labels (W,S,H,W), 0 where none."""

    images: Tensor
    truth: Geometry
    measured: Tensor
    labels: Tensor | None = None


def make_fixed_worlds(count: int, views: int, height: int, width: int, seed: int) -> FixedWorlds:
    """Worlds drawn from `seed`, on arcs of 10 to 60 degrees, measured poorly (see `Measurement`)."""
    arc = 10 + 50 * torch.rand(count, generator=torch.Generator().manual_seed(seed))
    parts = [
        make_scenes(len(some), views, height, width, seed + 2 * number, arc=some, supersample=1)
        for number, some in enumerate(arc.split(32))
    ]
    truths = [truth for _, truth in parts]
    cameras = Cameras(
        world_to_camera=torch.cat([truth.known_cameras.world_to_camera for truth in truths]),
        intrinsics=torch.cat([truth.known_cameras.intrinsics for truth in truths]),
        height=height,
        width=width,
    )
    depth, sky = (torch.cat([getattr(truth, name) for truth in truths]) for name in ("depth", "sky"))
    images = torch.cat([given.images for given, _ in parts])
    return FixedWorlds(images, Geometry(depth=depth, sky=sky, cameras=cameras), measure(depth, Measurement(), seed))


@torch.no_grad()
def with_labels(worlds: FixedWorlds, teacher: DepthAnything3) -> tuple[FixedWorlds, Tensor]:
    """The worlds with the teacher's labels, measured depth where a picture's was refused; which were not (W,S)."""
    device = next(teacher.parameters()).device
    labels, accepted = [], []
    for images, measured in zip(worlds.images.split(8), worlds.measured.split(8)):
        maps = {name: value.cpu() for name, value in predict_maps(teacher.eval(), images.to(device)).items()}
        depth = torch.where(maps["sky"] >= SKY_THRESHOLD, 0, maps["depth"])
        fit = align_to_measured(depth, measured.flatten(0, 1), LabelConfig())
        good = torch.tensor([reason is None for reason in fit.reasons])
        accepted.append(good.unflatten(0, measured.shape[:2]))
        kept = torch.where(good[:, None, None], fit.labels(depth), measured.flatten(0, 1))
        labels.append(kept.unflatten(0, measured.shape[:2]))
    return replace(worlds, labels=torch.cat(labels)), torch.cat(accepted)


class FixedBatches(IterableDataset):
    """(position, batch) pairs from fixed worlds: some worlds, some of their views in any order, other exposures.

    Sizes and counts are those of `batch_shape`. Depth is what was measured, and labels from position `labels_from` on.
    """

    def __init__(self, sampler: StepSampler, worlds: FixedWorlds, labels_from: float):
        self.sampler, self.worlds, self.labels_from = sampler, worlds, labels_from

    def __iter__(self) -> Iterator[tuple[int, GeometryBatch]]:
        return items_from(self.sampler.position, lambda position: (position, self.batch(position)))

    def batch(self, position: int) -> GeometryBatch:
        """Batch number `position`: the same for the same seed, whatever is trained."""
        config, worlds = self.sampler.config, self.worlds
        shape = batch_shape(config, position)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + position)
        count = min(shape.count, len(worlds.images))
        chosen = torch.randperm(len(worlds.images), generator=generator)[:count]
        order = torch.rand(count, worlds.images.shape[1], generator=generator).argsort(dim=1)[:, : shape.views]
        late = position >= self.labels_from
        depth = (worlds.labels if late and worlds.labels is not None else worlds.measured)[chosen[:, None], order]
        cameras = replace(
            worlds.truth.known_cameras,
            world_to_camera=worlds.truth.known_cameras.world_to_camera[chosen[:, None], order],
            intrinsics=worlds.truth.known_cameras.intrinsics[chosen[:, None], order],
        )
        gain = 0.7 + 0.6 * torch.rand(count, shape.views, 3, 1, 1, generator=generator)
        images = (worlds.images[chosen[:, None], order] * gain).clamp(0, 1)
        return GeometryBatch(images, Geometry(depth=depth, cameras=cameras), shape.give_cameras)


@torch.no_grad()
def student_scores(network: DepthAnything3, worlds: FixedWorlds) -> dict[str, float]:
    """Means over the worlds: AUC30 (0 to 100) of camera head and of rays, AbsRel of depth without and with poses given.

    Depth counts up to one scale a world (`abs_rel`, see `absolute_relative_error`), and in the units of the true
    cameras (`abs_rel_units`): scaled by the distances between the cameras that the network says, which is how a
    reconstruction gets its scale. `edge_error` is the mean difference of neighbours' log depth, in x, where the truth
    has a step of more than 10 %.
    """
    network.eval()
    device = next(network.parameters()).device
    found: dict[str, list[Tensor]] = {}
    for start in range(0, len(worlds.images), 8):
        images, truth = worlds.images[start : start + 8].to(device), worlds.truth
        depth = truth.depth[start : start + 8].to(device)
        cameras = replace(
            truth.known_cameras,
            world_to_camera=truth.known_cameras.world_to_camera[start : start + 8].to(device),
            intrinsics=truth.known_cameras.intrinsics[start : start + 8].to(device),
        )
        alone = network(images, reference_view="first", pose_from="rays")
        told = network(images, cameras_for_encoder(cameras), reference_view="first")
        head = network.cameras(network.encode(images, reference_view="first"))
        for name, said in (("auc30_head", head), ("auc30_rays", alone.known_cameras)):
            errors = pose_errors(said, cameras)
            found.setdefault(name, []).append(100 * pose_auc(errors, 30))
        for name, said in (("", replace(alone, cameras=head)), ("_given_poses", told)):
            found.setdefault(f"abs_rel{name}", []).append(absolute_relative_error(said.depth, depth))
            found.setdefault(f"abs_rel_units{name}", []).append(error_in_units(said, cameras, depth))
        found.setdefault("edge_error", []).append(_edge_error(alone.depth, depth))
    return {name: float(torch.cat(values).mean()) for name, values in found.items()}


def error_in_units(said: Geometry, cameras: Cameras, depth: Tensor) -> Tensor:
    """AbsRel (B) of depth scaled by the distances between the cameras; 1 where the network says that none has moved."""
    scale = baseline_scale(said.known_cameras, cameras).nan_to_num(0.0)
    return absolute_relative_error(said.depth, depth, scale)


def _edge_error(depth: Tensor, truth: Tensor) -> Tensor:
    """(B): see `student_scores`; 0 for worlds without such steps."""
    valid = (truth[..., 1:] > 0) & (truth[..., :-1] > 0)
    true, said = truth.clamp_min(1e-6).log().diff(dim=-1), depth.clamp_min(1e-6).log().diff(dim=-1)
    edges = valid & (true.abs() > 0.1)
    return ((said - true).abs() * edges).sum(dim=(1, 2, 3)) / edges.sum(dim=(1, 2, 3)).clamp_min(1)
