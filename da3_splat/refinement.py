"""Per-scene optimisation: Gaussians, and where it is wanted poses and the focal length, against the pictures.

Adam on every field, L1 + SSIM, one picture a step; no densification, so a start should have the Gaussians it needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from da3_splat.geometry.alignment import transform_cameras, transform_gaussians
from da3_splat.geometry.rotations import rigid_motion
from da3_splat.geometry.user_frame import camera_similarity
from da3_splat.losses import image_loss, log_depth_loss
from da3_splat.metrics import psnr
from da3_splat.rendering import render
from da3_splat.types import Cameras, Gaussians, Record, Rendering, Views

STANDS_OUT = 4.0  # spreads (of the views' losses) above their median from which a view counts less
# Of Adam on cameras: each is looked at some dozens of times, and what was right then is soon forgotten.
POSE_BETAS = (0.5, 0.9)
TRUSTED = 0.5  # a view that counts less than this is named in the report


@dataclass(frozen=True)
class RefinementConfig:
    """How long, how fast, and what. Learning rates are Adam's; that of the means is multiplied by the scene's extent.
    Those of means and cameras fall to a hundredth, the others to a tenth. Rates are high and Adam's memory is short,
    for minutes and not for hours: on ten photos of a real scene (horns, from its sparse points) 100 steps came to 24.2
    dB held out with them, to 22.7 dB with Adam's usual memory, to 22.0 dB with a quarter to half of the rates, too."""

    steps: int | None = 300
    seconds: float | None = None
    """stop after so long, whatever `steps` says; the schedules follow whichever ends first"""
    means_rate: float = 6e-3
    scales_rate: float = 1.6e-1
    quats_rate: float = 3e-2
    opacities_rate: float = 4e-1
    dc_rate: float = 2e-2
    rest_rate: float = 1e-3
    betas: tuple[float, float] = (0.5, 0.99)
    """of Adam, on the Gaussians: how much of the last step and of past squares it keeps"""
    sh_degree: int = 1
    poses: bool = False
    """refine the cameras' poses, too; means then move at a quarter of their rate, so that they wait for the cameras"""
    focal: bool = False
    """refine one factor on all focal lengths, too"""
    pose_rate: float = 8e-3
    """of rotations in radians, and of translations in shares of the median distance to the scene"""
    focal_rate: float = 4e-3
    depth_weight: float = 0.0
    """pull towards the depth that is given to `refine`, each view scaled to fit; falls to a hundredth"""
    seed: int = 0

    def __post_init__(self):
        if self.steps is None and self.seconds is None:
            raise ValueError("refinement: expected steps or seconds, got neither")
        if (self.steps or 0) < 0 or (self.seconds or 0) < 0:
            raise ValueError(f"refinement: expected no less than 0, got {self.steps} steps, {self.seconds} seconds")


@dataclass(frozen=True, kw_only=True)
class Refined(Record):
    """Gaussians (1,N) and cameras (1,S) after some steps, in the frame of the cameras given (a least-squares fit where
    poses were refined). `psnr` in dB is the mean over the last look at each picture; `doubtful` names the views that
    fit so much worse than the others that they were made to count less."""

    gaussians: Gaussians
    cameras: Cameras
    steps: int
    psnr: float
    focal_factor: float = 1.0
    doubtful: tuple[str, ...] = ()


def refine(
    gaussians: Gaussians,
    views: Views,
    config: RefinementConfig = RefinementConfig(),
    depth: Tensor | None = None,
    watch: Callable[[Refinement], None] = lambda refinement: None,
    keep: Callable[[Refined], None] = lambda refined: None,
) -> Refined:
    """Refine the Gaussians (1,N) of the posed `views`, one picture a step, each once a round, masked pixels left out.

    `depth` (1,S,H,W) is what `config.depth_weight` pulls towards, 0 where it is not known. `watch` sees the work after
    every step; `keep` is given what there is after each round that is the best so far. Ctrl-C ends the work early and
    what there is comes back. Renders on the device of the Gaussians.
    """
    refinement, best = Refinement(gaussians, views, config, depth), -float("inf")
    try:
        while refinement.share < 1:
            refinement.step()
            watch(refinement)
            if refinement.steps % refinement.count == 0 and refinement.psnr > best:
                best = refinement.psnr
                keep(refinement.result())
    except KeyboardInterrupt:
        pass
    return refinement.result()


class Refinement:
    """What is optimised, and what is known of each view so far: `refine` one step at a time."""

    def __init__(self, gaussians: Gaussians, views: Views, config: RefinementConfig, depth: Tensor | None = None):
        if views.cameras is None:
            raise ValueError("refine: expected views with cameras")
        self.start, self.config = gaussians.detach(), config
        self.views = views.to(gaussians.means.device)
        self.depth = None if depth is None else depth.to(gaussians.means.device)
        self.count = views.images.shape[1]
        self.raw = _raw(self.start, config.sh_degree)
        # A tensor a view: Adam then lets those rest that are not looked at.
        self.motions = [gaussians.means.new_zeros(6).requires_grad_(config.poses) for _ in range(self.count)]
        self.log_focal = gaussians.means.new_zeros(()).requires_grad_(config.focal)
        self.distance = typical_distance(self.start, self.views.known_cameras)
        groups = [{"params": [value], "name": name} for name, value in self.raw.items()]
        groups += [{"params": self.motions, "name": "pose", "betas": POSE_BETAS}] if config.poses else []
        groups += [{"params": [self.log_focal], "name": "focal"}] if config.focal else []
        self.rates = {group["name"]: getattr(config, f"{group['name']}_rate") for group in groups}
        self.rates["means"] *= scene_extent(views) * (0.25 if config.poses else 1)
        self.optimizer = torch.optim.Adam(groups, lr=0.0, betas=config.betas, eps=1e-15)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.queue: list[int] = []
        self.losses = torch.full((self.count,), float("nan"))
        self.signals = torch.full((self.count,), float("nan"))
        self.steps = 0
        self.began = time.monotonic()

    @property
    def share(self) -> float:
        """How much of the work is done, by steps or by the clock."""
        config, seconds = self.config, time.monotonic() - self.began
        by_step = 0.0 if config.steps is None else self.steps / config.steps if config.steps else 1.0
        by_time = 0.0 if config.seconds is None else seconds / config.seconds if config.seconds else 1.0
        return min(1.0, max(by_step, by_time))

    @property
    def psnr(self) -> float:
        """In dB, the mean over the last look at each picture that was looked at."""
        return float(self.signals.nanmean())

    def step(self) -> None:
        """One picture: render, compare, move."""
        if not self.queue:
            self.queue = torch.randperm(self.count, generator=self.generator).tolist()
        view, decay = self.queue.pop(), 0.01**self.share
        for group in self.optimizer.param_groups:
            in_space = group["name"] in ("means", "pose", "focal")
            group["lr"] = self.rates[group["name"]] * (decay if in_space else decay**0.5)
        rendering = render(activated(self.start, self.raw), self._camera(view))
        target = self.views.images[0, view : view + 1]
        picture = rendering.color[0]
        if self.views.masks is not None:
            mask = self.views.masks[:, view, None]
            picture, target = picture * mask, target * mask
        loss = image_loss(picture, target)
        self.losses[view] = float(loss.detach())
        self.signals[view] = float(psnr(picture.detach().clamp(0, 1), target)[0])
        total = loss * float(self.trust()[view])
        if self.depth is not None and self.config.depth_weight:
            total = total + self.config.depth_weight * decay * self._depth_loss(rendering, view)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        self.steps += 1

    def _depth_loss(self, rendering: Rendering, view: int) -> Tensor:
        assert self.depth is not None, "asked for only where there is depth"
        known = self.depth[:, view]
        return log_depth_loss(rendering.depth[:, 0], known, (known > 0) & (rendering.alpha[:, 0].detach() > 0.5))

    def trust(self) -> Tensor:
        """What each view counts (S)."""
        return trust_of(self.losses)

    def result(self) -> Refined:
        """Gaussians and cameras as they are now, in the frame of the cameras given."""
        with torch.no_grad():
            gaussians = activated(self.start, self.raw).detach()
            parts = [self._camera(view) for view in range(self.count)]
            given = self.views.known_cameras
            cameras = Cameras.concatenate(parts).detach()
            if self.config.poses:
                # Cameras and Gaussians may have drifted together, which no picture shows.
                motion = camera_similarity(cameras, given)
                cameras, gaussians = transform_cameras(motion, cameras), transform_gaussians(motion, gaussians)
        names = self.views.names or tuple(f"view {view}" for view in range(self.count))
        doubtful = doubtful_names(names, self.losses)
        factor = float(self.log_focal.detach().exp())
        return Refined(
            gaussians=gaussians,
            cameras=cameras,
            steps=self.steps,
            psnr=self.psnr,
            focal_factor=factor,
            doubtful=doubtful,
        )

    def _camera(self, view: int) -> Cameras:
        """The camera (1,1) of a view as it is now, differentiable in what is refined."""
        camera = self.views.known_cameras.select([view])
        pose = camera.world_to_camera
        if self.config.poses:
            unit = torch.cat([torch.ones(3), torch.ones(3) * self.distance]).to(pose)
            pose = rigid_motion(self.motions[view] * unit) @ pose
        if not self.config.focal:
            return replace(camera, world_to_camera=pose)
        # Renderers differentiate poses, not intrinsics. Scaling camera space in x and y is scaling the focal length, so
        # the value goes into the intrinsics and the gradient through the pose.
        still = self.log_focal.detach()
        stretch = torch.ones(4, device=pose.device, dtype=pose.dtype)
        stretch = torch.cat([(self.log_focal - still).exp().expand(2), stretch[2:]])
        lens = camera.intrinsics.clone()
        lens[..., 0, 0] *= still.exp()
        lens[..., 1, 1] *= still.exp()
        return replace(camera, world_to_camera=stretch[:, None] * pose, intrinsics=lens)


def trust_of(losses: Tensor) -> Tensor:
    """What each view counts (S) by its last loss (S), NaN where it was not seen yet: 1, less where it stands out from
    the others'. All count fully until all were seen, and where they are fewer than four."""
    if len(losses) < 4 or bool(losses.isnan().any()):
        return torch.ones_like(losses)
    middle = losses.median()
    spread = (1.4826 * (losses - middle).abs().median()).clamp_min(0.25 * middle)
    return (STANDS_OUT * spread / (losses - middle).clamp_min(1e-12)).clamp_max(1.0).square()


def doubtful_names(names: Sequence[str], losses: Tensor) -> tuple[str, ...]:
    """Which views fit so much worse than the others that they count less than TRUSTED."""
    return tuple(name for name, trust in zip(names, trust_of(losses).tolist()) if trust < TRUSTED)


def doubtful_remark(name: str) -> str:
    """What is said of such a view."""
    return f"{name} fits the others badly and counted less: moved things in it, or a wrong pose?"


def _raw(start: Gaussians, sh_degree: int) -> dict[str, Tensor]:
    """The optimised values: logits, log-scales and SH in float32."""
    rest = start.means.new_zeros(1, start.means.shape[1], (sh_degree + 1) ** 2 - 1, 3)
    carried = start.sh[:, :, 1 : rest.shape[2] + 1]
    rest[:, :, : carried.shape[2]] = carried
    raw = {
        "means": start.means.clone(),
        "scales": start.scales.log(),
        "quats": start.quats.clone(),
        "opacities": torch.logit(start.opacities, eps=1e-4),
        "dc": start.sh[:, :, :1].clone(),
        "rest": rest,
    }
    return {name: value.contiguous().requires_grad_() for name, value in raw.items()}


def activated(start: Gaussians, raw: dict[str, Tensor]) -> Gaussians:
    """Gaussians of the optimised values; what is not optimised comes from `start`."""
    return replace(
        start,
        means=raw["means"],
        scales=raw["scales"].exp(),
        quats=raw["quats"],
        opacities=raw["opacities"].sigmoid(),
        sh=torch.cat([raw["dc"], raw["rest"]], dim=2),
    )


def scene_extent(views: Views) -> float:
    """Radius of the cameras' positions around their mean, at least a tenth of their mean distance to the origin."""
    centers = views.known_cameras.centers[0]
    radius = (centers - centers.mean(dim=0)).norm(dim=-1).max()
    return float(1.1 * torch.maximum(radius, 0.1 * centers.norm(dim=-1).mean()).clamp_min(1e-3))


@torch.no_grad()
def typical_distance(gaussians: Gaussians, cameras: Cameras) -> float:
    """Median distance from the cameras' mean position to the Gaussians: what a translation is measured by."""
    middle = cameras.centers[0].mean(dim=0)
    return float((gaussians.means[0] - middle).norm(dim=-1).median().clamp_min(1e-6))
