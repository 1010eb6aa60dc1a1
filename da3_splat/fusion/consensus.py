"""Making views agree before they are merged: small corrections of depth and poses, found from what the views show.

Unknown are, for each view, a twist of its camera (6 numbers, unless the poses are given) and a smooth factor on its
depth (a coarse grid of log factors, bilinear between). For pixels of a view, projected into its neighbours, two things
must match: the colour found there, and the depth found there. Gauss-Newton on both, robust, from blurred pictures to
sharp ones; priors hold every correction near zero, which also fixes the gauge. A guard compares the fit on pixels that
were not used, and leaves everything as it was where the corrections do not improve it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from da3_splat.fusion.two_views import CorrectedViews, Look
from da3_splat.geometry.surfaces import steep
from da3_splat.types import Cameras, Geometry, RayMap

AGREES = 0.05  # of depth


@dataclass(frozen=True)
class ConsensusConfig:
    """How views are made to agree. Angles in degrees, lengths as shares of the median depth."""

    iterations: int = 4  # at each blur
    blurs: tuple[float, ...] = (3.0, 1.5, 0.75)  # of the pictures, in pixels of one that is 224 wide
    grid: tuple[int, int] = (4, 5)  # of log depth factors
    samples: int = 1500  # pixels of each view
    neighbours: int = 6
    rotation_prior: float = 1.0
    translation_prior: float = 0.02
    depth_prior: float = 0.03
    gate: float = 0.15  # of depth, beyond which a point is taken to be hidden
    typical: float = 0.03  # of depth, a disagreement up to which prior and gate hold as they are; beyond, they grow
    redundancy: float = 30.0  # so many samples count as one observation: neighbours are not independent
    seed: int = 0


@dataclass(frozen=True)
class Consensus:
    """The corrected geometry, and how well views agree: means over unused pixels, before and after."""

    geometry: Geometry
    accepted: bool
    color_before: float
    color_after: float
    depth_before: float
    depth_after: float
    agreement: float  # share of what two views see where their depths are within AGREES of each other, in the end
    rotation: float  # median correction, degrees
    translation: float  # median correction, as a share of the median depth


def reach_consensus(
    geometry: Geometry,
    images: Tensor,
    fixed: Tensor,
    config: ConsensusConfig = ConsensusConfig(),
    usable: Tensor | None = None,
) -> Consensus:
    """Corrections of one scene: geometry and images (1,S,3,H,W) of batch size 1. Cameras that are `fixed` (S) bool,
    because their poses were given, are not touched; pixels outside `usable` (1,S,H,W) are not asked.

    Cost: iterations * views * neighbours * samples; 24 views of 168x224 take about ten seconds on two cores.
    """
    scene = _Scene(geometry, images, config, usable)
    start = CorrectedViews(
        geometry.cameras.camera_to_world[0].double(),
        geometry.depth.new_zeros(geometry.depth.shape[1], *config.grid, dtype=torch.float64),
        geometry.depth.new_zeros(geometry.depth.shape[1], 6, dtype=torch.float64),
    )
    pairs = scene.neighbours(start)
    scene.adapt(scene.agreement(start, pairs)[1])
    state = start
    for blur in config.blurs:
        scene.blur(blur * geometry.depth.shape[3] / 224)
        for _ in range(config.iterations):
            state = scene.step(state, pairs, fixed)
    before, after = scene.agreement(start, pairs), scene.agreement(state, pairs)
    accepted = after[0] + after[1] < before[0] + before[1] and after[0] <= before[0] * 1.001
    kept = state if accepted else start
    return Consensus(
        geometry=scene.corrected(kept, fixed) if accepted else geometry,
        accepted=bool(accepted),
        color_before=before[0],
        color_after=after[0],
        depth_before=before[1],
        depth_after=after[1],
        agreement=after[2] if accepted else before[2],
        rotation=float(torch.rad2deg(kept.twists[:, 3:].norm(dim=-1)).median()),
        translation=float(kept.twists[:, :3].norm(dim=-1).median() / scene.unit),
    )


class _Scene:
    """What stays the same through all iterations."""

    def __init__(self, geometry: Geometry, images: Tensor, config: ConsensusConfig, usable: Tensor | None):
        self.geometry, self.images, self.config = geometry, images[0], config
        self.views, self.height, self.width = geometry.depth.shape[1:]
        self.intrinsics = geometry.cameras.resized(self.height, self.width).intrinsics[0].float()
        depth = geometry.depth[0].float()
        valid = depth.isfinite() & (depth > 0)
        if geometry.sky is not None:
            valid &= ~geometry.sky_mask[0]
        if usable is not None:
            valid &= usable[0]
        self.unit = float(depth[valid].median()) if bool(valid.any()) else 1.0  # of length
        self.log_depth = torch.where(valid, depth.clamp_min(1e-12).log(), depth.new_zeros(()))
        # A pixel beside a jump of depth says nothing that its neighbour would not deny.
        self.usable = valid & ~steep(torch.where(valid, depth, torch.ones_like(depth))[None], 0.05)[0]
        self.generator = torch.Generator().manual_seed(config.seed)
        self.pixels, self.chosen = self._sample(config.samples)
        self.spare_pixels, self.spare_chosen = self._sample(config.samples // 2)
        self.blur(0.75)

    def blur(self, sigma: float) -> None:
        self.colors = _gaussian_blur(self.images.float(), sigma)
        dx, dy = _central(self.colors, 3), _central(self.colors, 2)
        lx, ly = _central(self.log_depth[:, None], 3), _central(self.log_depth[:, None], 2)
        # Colours, their slopes, log depth, its slopes, and whether it is usable: one lookup finds them all.
        self.maps = torch.cat([self.colors, dx, dy, self.log_depth[:, None], lx, ly, self.usable[:, None].float()], 1)

    def _sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Pixel centres (S,N,2) drawn at random, and whether they can be used (S,N)."""
        draw = torch.rand(self.views, count, 2, generator=self.generator).to(self.images.device)
        size = draw.new_tensor([self.width, self.height])
        index = (draw * size).long()
        flat = index[..., 1] * self.width + index[..., 0]
        return index + 0.5, self.usable.flatten(1).gather(1, flat)

    def neighbours(self, state: CorrectedViews) -> Tensor:
        """Ordered pairs (P,2) of views that see much of the same: for each view some near and some far ones."""
        pairs = torch.tensor([(i, j) for i in range(self.views) for j in range(self.views) if i != j])
        overlap = torch.zeros(self.views, self.views)
        for chunk in pairs.split(64):
            look = self.look(state, chunk, self.spare_pixels[:, ::4], self.spare_chosen[:, ::4])
            overlap[chunk[:, 0], chunk[:, 1]] = (look.weight * (look.depth_residual.abs() < 0.1)).mean(dim=1).cpu()
        chosen = []
        for view in range(self.views):
            ranked = [j for j in overlap[view].argsort(descending=True).tolist() if overlap[view, j] > 0.15]
            count = min(len(ranked), self.config.neighbours)
            picks = {ranked[round(k * (len(ranked) - 1) / max(1, count - 1))] for k in range(count)}
            chosen += [(view, j) for j in sorted(picks)]
        return torch.tensor(chosen, dtype=torch.long).reshape(-1, 2)

    def adapt(self, disagreement: float) -> None:
        """Allow for larger corrections where views disagree by more than a good network's do."""
        growth = min(max(disagreement / self.config.typical, 1.0), 5.0) if disagreement < float("inf") else 1.0
        config = self.config
        self.config = replace(config, depth_prior=config.depth_prior * growth, gate=config.gate * min(growth, 2.0))

    def look(self, state: CorrectedViews, pairs: Tensor, pixels: Tensor, chosen: Tensor) -> Look:
        return Look(self.maps, self.intrinsics, self.unit, state, pairs, pixels, chosen)

    def agreement(self, state: CorrectedViews, pairs: Tensor) -> tuple[float, float, float]:
        """Mean colour difference and mean relative depth difference over the spare pixels within the gate; and the
        share of all that are seen twice whose depths agree (0 where nothing is)."""
        color, depth, close = [], [], []
        for chunk in pairs.split(32):
            look = self.look(state, chunk, self.spare_pixels, self.spare_chosen)
            seen = look.weight > 0
            near = seen & (look.depth_residual.abs() < self.config.gate)
            color.append(look.color_residual.abs().mean(dim=-1)[near])
            depth.append(look.depth_residual.abs()[near])
            close.append((look.depth_residual.abs() < AGREES)[seen])
        if not close or not any(len(part) for part in color):
            return float("inf"), float("inf"), 0.0
        return float(torch.cat(color).mean()), float(torch.cat(depth).mean()), float(torch.cat(close).float().mean())

    def step(self, state: CorrectedViews, pairs: Tensor, fixed: Tensor) -> CorrectedViews:
        """One damped Gauss-Newton step over all pairs."""
        config, rows = self.config, self.config.grid[0] * self.config.grid[1]
        size = 6 + rows
        normal = torch.zeros(self.views, size, self.views, size, dtype=torch.float64)
        right = torch.zeros(self.views, size, dtype=torch.float64)
        looks = [self.look(state, chunk, self.pixels, self.chosen) for chunk in pairs.split(16)]
        near = torch.cat([(look.weight > 0) & (look.depth_residual.abs() < config.gate) for look in looks]).flatten()
        if not bool(near.any()):
            return state
        color_scale = torch.cat([look.color_residual.norm(dim=-1).flatten() for look in looks])[near].median()
        depth_scale = torch.cat([look.depth_residual.abs().flatten() for look in looks])[near].median()
        color_scale, depth_scale = color_scale.clamp_min(0.01), depth_scale.clamp(0.002, 0.05)
        for look in looks:
            blocks, vectors = look.normal_equations(float(color_scale), float(depth_scale))
            blocks, vectors = blocks.double().cpu() / config.redundancy, vectors.double().cpu() / config.redundancy
            for (i, j), block, vector in zip(look.pairs.tolist(), blocks, vectors):
                normal[i, :, i] += block[:size, :size]
                normal[i, :, j] += block[:size, size:]
                normal[j, :, i] += block[size:, :size]
                normal[j, :, j] += block[size:, size:]
                right[i] += vector[:size]
                right[j] += vector[size:]
        prior = torch.cat(
            [
                torch.full((3,), (config.translation_prior * self.unit) ** -2),
                torch.full((3,), torch.deg2rad(torch.tensor(config.rotation_prior)).item() ** -2),
                torch.full((rows,), config.depth_prior**-2),
            ]
        ).double()
        so_far = torch.cat([state.twists, state.factors.flatten(1)], dim=1).cpu()
        flat = normal.reshape(self.views * size, self.views * size)
        flat.diagonal().add_(prior.repeat(self.views))
        right = (right + prior * so_far).flatten()
        free = torch.ones(self.views, size, dtype=torch.bool)
        free[fixed.cpu(), :6] = False
        index = torch.nonzero(free.flatten())[:, 0]
        solution = torch.zeros_like(right)
        factor = torch.linalg.cholesky(flat[index][:, index])
        solution[index] = -torch.cholesky_solve(right[index, None], factor)[:, 0]
        solution = solution.reshape(self.views, size).to(state.twists)
        twists, factors = solution[:, :6], solution[:, 6:].reshape(state.factors.shape)
        return CorrectedViews(
            state.camera_to_world @ torch.linalg.matrix_exp(_twist_matrix(twists)),
            state.factors + factors,
            state.twists + twists,
        )

    def corrected(self, state: CorrectedViews, fixed: Tensor) -> Geometry:
        """The geometry with the corrections applied."""
        before = self.geometry.cameras.world_to_camera
        moved = torch.linalg.inv(state.camera_to_world).to(before)[None]
        cameras = replace(self.geometry.cameras, world_to_camera=torch.where(fixed[None, :, None, None], before, moved))
        factor = torch.nn.functional.interpolate(
            state.factors[:, None].float(), (self.height, self.width), mode="bilinear", align_corners=True
        )[:, 0].exp()
        rays = _following_rays(self.geometry.ray_map, self.geometry.cameras, cameras)
        return replace(self.geometry, depth=self.geometry.depth * factor[None], cameras=cameras, ray_map=rays)


def _following_rays(rays: RayMap | None, before: Cameras, after: Cameras) -> RayMap | None:
    """The ray map (1,S) moved with its cameras."""
    if rays is None:
        return None
    motion = after.camera_to_world @ before.world_to_camera
    turn, shift = motion[:, :, None, :3, :3], motion[:, :, None, None, :3, 3]
    directions = rays.directions @ turn.transpose(-1, -2)
    return replace(rays, directions=directions, origins=rays.origins @ turn.transpose(-1, -2) + shift)


def _twist_matrix(twists: Tensor) -> Tensor:
    """(S,4,4) of twists (S,6): translation, rotation vector."""
    matrix = twists.new_zeros(twists.shape[0], 4, 4)
    x, y, z = twists[:, 3:].unbind(1)
    matrix[:, 0, 1], matrix[:, 0, 2], matrix[:, 1, 2] = -z, y, -x
    matrix[:, 1, 0], matrix[:, 2, 0], matrix[:, 2, 1] = z, -y, x
    matrix[:, :3, 3] = twists[:, :3]
    return matrix


def _central(maps: Tensor, axis: int) -> Tensor:
    """Central differences of maps (S,C,H,W) along an axis, per pixel."""
    return torch.gradient(maps, dim=axis)[0]


def _gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Pictures (S,C,H,W) blurred by a Gaussian of `sigma` pixels."""
    radius = max(1, round(3 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=images.device) / sigma) ** 2)
    taps = (taps / taps.sum()).to(images.dtype)
    flat = images.flatten(0, 1)[:, None]
    flat = conv2d(pad(flat, (radius, radius, 0, 0), mode="replicate"), taps[None, None, None])
    flat = conv2d(pad(flat, (0, 0, radius, radius), mode="replicate"), taps[None, None, :, None])
    return flat[:, 0].unflatten(0, images.shape[:2])
