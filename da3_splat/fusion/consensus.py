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

from da3_splat.backbone.attention import at_once
from da3_splat.fusion.pair_equations import PairEquations
from da3_splat.fusion.two_views import CorrectedViews, Look, ViewMaps
from da3_splat.geometry.projection import inverse_intrinsics
from da3_splat.geometry.surfaces import in_pieces, steep
from da3_splat.types import Cameras, Geometry, RayMap

AGREES = 0.05  # of depth
SIGHTED = 64  # pixels of a view by which it is guessed who sees the same
PAIRS_AT_A_TIME = {"cpu": 8, "cuda": 32}  # more do not stay in a core's cache; fewer would not keep a GPU busy


@dataclass(frozen=True)
class ConsensusConfig:
    """How views are made to agree. Angles in degrees, lengths as shares of the median depth."""

    iterations: int = 4  # at each blur
    blurs: tuple[float, ...] = (3.0, 1.5, 0.75)  # of the pictures, in pixels of one that is 224 wide
    grid: tuple[int, int] = (4, 5)  # of log depth factors
    samples: int = 1500  # pixels of each view
    neighbours: int = 6
    candidates: int = 40  # views that each is compared with to find these
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

    Cost: iterations * views * neighbours * samples; 24 views of 168x126 take some five seconds on two cores.
    """
    scene = _Scene(geometry, images, config, usable)
    start = CorrectedViews(
        geometry.known_cameras.camera_to_world[0].double(),
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
        self.pairs_at_a_time = at_once(PAIRS_AT_A_TIME, self.images.device)
        self.intrinsics = geometry.known_cameras.resized(self.height, self.width).intrinsics[0].float()
        self.inverse_intrinsics = inverse_intrinsics(self.intrinsics)
        depth = geometry.depth[0].float()
        valid = depth.isfinite() & (depth > 0)
        if geometry.sky is not None:
            valid &= ~geometry.sky_mask[0]
        if usable is not None:
            valid &= usable[0]
        self.unit = float(depth[valid].median()) if bool(valid.any()) else 1.0  # of length
        log_depth = torch.where(valid, depth.clamp_min(1e-12).log(), depth.new_zeros(()))
        # A pixel beside a jump of depth says nothing that its neighbour would not deny.
        beside = in_pieces(lambda depth, valid: steep(depth.where(valid, 1.0), 0.05), depth[None], valid[None])
        self.usable = valid & ~beside[0]
        self.maps = ViewMaps(log_depth, self.usable)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.pixels, self.chosen = self._sample(config.samples)
        self.spare_pixels, self.spare_chosen = self._sample(config.samples // 2)
        self.blur(0.75)

    def blur(self, sigma: float) -> None:
        self.maps.blur(self.images, sigma)

    def _sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Pixel centres (S,N,2) drawn at random, and whether they can be used (S,N)."""
        draw = torch.rand(self.views, count, 2, generator=self.generator).to(self.images.device)
        size = draw.new_tensor([self.width, self.height])
        index = (draw * size).long()
        flat = index[..., 1] * self.width + index[..., 0]
        return index + 0.5, self.usable.flatten(1).gather(1, flat)

    def neighbours(self, state: CorrectedViews) -> Tensor:
        """Ordered pairs (P,2) of views that see much of the same: for each view some near and some far ones."""
        candidates = self._candidates(state)
        overlap = torch.zeros(len(candidates))
        for start in range(0, len(candidates), 64):
            look = self.look(
                state, candidates[start : start + 64], self.spare_pixels[:, ::4], self.spare_chosen[:, ::4]
            )
            near = look.weight * (look.depth_residual.abs() < 0.1)
            overlap[start : start + 64] = near.mean(dim=1).cpu()
        chosen = []
        for view in range(self.views):
            of_view = torch.nonzero((candidates[:, 0] == view) & (overlap > 0.15))[:, 0]
            ranked = candidates[of_view[overlap[of_view].argsort(descending=True, stable=True)], 1].tolist()
            chosen += [(view, j) for j in _spread(ranked, self.config.neighbours)]
        pairs = torch.tensor(sorted(chosen, key=lambda pair: pair[::-1]), dtype=torch.long)
        return pairs.reshape(-1, 2)

    def _candidates(self, state: CorrectedViews) -> Tensor:
        """Ordered pairs (P,2) that may see much of the same, by the second: of few views all, of many those
        `config.candidates` of each, near and far, whose cameras have some points of it in their pictures."""
        chosen = []
        everyone = list(range(self.views))
        world_to_camera = torch.linalg.inv(state.camera_to_world).float()
        for view in everyone:
            others = everyone
            if self.views > self.config.candidates + 1:
                shares = self._in_sight(view, state.camera_to_world[view].float(), world_to_camera)
                ranked = shares.argsort(descending=True, stable=True).tolist()
                others = [j for j in ranked if j != view and shares[j] > 0.15]
                others = _spread(others, self.config.candidates)
            chosen += [(view, j) for j in others if j != view]
        pairs = torch.tensor(sorted(chosen, key=lambda pair: pair[::-1]), dtype=torch.long)
        return pairs.reshape(-1, 2)

    def _in_sight(self, view: int, camera_to_world: Tensor, world_to_camera: Tensor) -> Tensor:
        """(S): which share of some points of a view lies within the picture of each, whatever may hide them."""
        pixels, counts = self.spare_pixels[view, :SIGHTED], self.spare_chosen[view, :SIGHTED]
        depth = self.maps.at_pixels(torch.tensor([view], device=pixels.device), pixels[None])[0, :, 3].exp()
        rays = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1) @ self.inverse_intrinsics[view].T
        points = (depth[:, None] * rays) @ camera_to_world[:3, :3].T + camera_to_world[:3, 3]
        there = points @ world_to_camera[:, :3, :3].transpose(1, 2) + world_to_camera[:, None, :3, 3]
        seen = there @ self.intrinsics.transpose(1, 2)
        z = seen[..., 2:].clamp_min(1e-6 * self.unit)
        inside = (seen[..., :2] > 0) & (seen[..., :2] < z * seen.new_tensor([self.width, self.height]))
        return (inside.all(dim=-1) & (there[..., 2] > 0) & counts).float().mean(dim=1).cpu()

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
        scales = self._scales(state, pairs)
        if scales is None:
            return state
        blocks, vectors = [], []
        for chunk in pairs.split(self.pairs_at_a_time):
            found = self.look(state, chunk, self.pixels, self.chosen).normal_equations(*scales)
            blocks.append(found[0].double().cpu() / config.redundancy)
            vectors.append(found[1].double().cpu() / config.redundancy)
        prior = torch.cat(
            [
                torch.full((3,), (config.translation_prior * self.unit) ** -2),
                torch.full((3,), torch.deg2rad(torch.tensor(config.rotation_prior)).item() ** -2),
                torch.full((rows,), config.depth_prior**-2),
            ]
        ).double()
        so_far = torch.cat([state.twists, state.factors.flatten(1)], dim=1).cpu()
        free = torch.ones(self.views, 6 + rows, dtype=torch.bool)
        free[fixed.cpu(), :6] = False
        equations = PairEquations(pairs, torch.cat(blocks), torch.cat(vectors), prior, prior * so_far, free)
        solution = equations.solve().to(state.twists)
        twists, factors = solution[:, :6], solution[:, 6:].reshape(state.factors.shape)
        return CorrectedViews(
            state.camera_to_world @ torch.linalg.matrix_exp(_twist_matrix(twists)),
            state.factors + factors,
            state.twists + twists,
        )

    def _scales(self, state: CorrectedViews, pairs: Tensor) -> tuple[float, float] | None:
        """Median residuals of colour and of depth within the gate, over a quarter of the pixels; None where no pair
        sees any of these twice."""
        color, depth = [], []
        for chunk in pairs.split(self.pairs_at_a_time):
            look = self.look(state, chunk, self.pixels[:, ::4], self.chosen[:, ::4])  # enough for a median
            near = (look.weight > 0) & (look.depth_residual.abs() < self.config.gate)
            color.append(look.color_residual.norm(dim=-1)[near])
            depth.append(look.depth_residual.abs()[near])
        if not any(len(part) for part in color):
            return None
        typical_color, typical_depth = torch.cat(color).median(), torch.cat(depth).median()
        return float(typical_color.clamp_min(0.01)), float(typical_depth.clamp(0.002, 0.05))

    def corrected(self, state: CorrectedViews, fixed: Tensor) -> Geometry:
        """The geometry with the corrections applied."""
        before = self.geometry.known_cameras.world_to_camera
        moved = torch.linalg.inv(state.camera_to_world).to(before)[None]
        cameras = replace(
            self.geometry.known_cameras, world_to_camera=torch.where(fixed[None, :, None, None], before, moved)
        )
        factor = torch.nn.functional.interpolate(
            state.factors[:, None].float(), (self.height, self.width), mode="bilinear", align_corners=True
        )[:, 0].exp()
        rays = _following_rays(self.geometry.ray_map, self.geometry.known_cameras, cameras)
        return replace(self.geometry, depth=self.geometry.depth * factor[None], cameras=cameras, ray_map=rays)


def _spread(ranked: list[int], count: int) -> list[int]:
    """At most `count` of a ranking, evenly spread over it, in order of their numbers."""
    count = min(len(ranked), count)
    return sorted({ranked[round(k * (len(ranked) - 1) / max(1, count - 1))] for k in range(count)})


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
