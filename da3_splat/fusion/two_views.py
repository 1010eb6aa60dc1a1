"""What two views say of the same points, and how their corrections change it: the residuals of the consensus."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from da3_splat.geometry.projection import inverse_intrinsics


@dataclass(frozen=True)
class CorrectedViews:
    """Corrected cameras, log depth factors (S,rows,columns), and the twists so far (S,6), for the priors."""

    camera_to_world: Tensor
    factors: Tensor
    twists: Tensor


class Look:
    """Pixels (P,N) of the first view of each pair as the second one sees them, and what that says."""

    def __init__(
        self,
        maps: Tensor,
        intrinsics: Tensor,
        unit: float,
        state: CorrectedViews,
        pairs: Tensor,
        pixels: Tensor,
        chosen: Tensor,
    ):
        """maps (S,13,H,W) as `_Scene.blur` lays them out; pixels (S,N,2) and which of them count (S,N)."""
        self.pairs = pairs
        first, second = pairs.to(pixels.device).unbind(1)
        (height, width), grid = maps.shape[2:], state.factors.shape[1:]
        pixels = pixels[first]
        here = _lookup(maps, first, pixels, nearest=True)
        basis = _basis(pixels, height, width, grid)
        factors = state.factors.float()
        log_depth = here[..., 9] + (basis * factors[first].flatten(1)[:, None]).sum(dim=-1)
        homogeneous = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1)
        self.points = homogeneous @ inverse_intrinsics(intrinsics)[first].transpose(1, 2)
        self.points = self.points * log_depth.exp()[..., None]
        relative = (torch.linalg.inv(state.camera_to_world[second]) @ state.camera_to_world[first]).float()
        self.turn = relative[:, :3, :3]
        self.there = self.points @ self.turn.transpose(1, 2) + relative[:, None, :3, 3]
        z = self.there[..., 2].clamp_min(1e-6 * unit)
        self.k = intrinsics[second]
        seen = torch.stack(
            [
                self.k[:, None, 0, 0] * self.there[..., 0] / z + self.k[:, None, 0, 2],
                self.k[:, None, 1, 1] * self.there[..., 1] / z + self.k[:, None, 1, 2],
            ],
            dim=-1,
        )
        found = _lookup(maps, second, seen)
        inside = (seen > 0.5).all(dim=-1) & (seen[..., 0] < width - 0.5) & (seen[..., 1] < height - 0.5)
        usable = chosen[first] & inside & (self.there[..., 2] > 1e-3 * unit) & (found[..., 12] > 0.99)
        self.weight = usable.float()
        self.basis, self.basis_there = basis, _basis(seen, height, width, grid)
        self.color_residual = found[..., :3] - here[..., :3]
        self.color_slopes = torch.stack([found[..., 3:6], found[..., 6:9]], dim=-1)  # (P,N,3,2)
        self.depth_slopes = found[..., 10:12]
        depth_there = found[..., 9] + (self.basis_there * factors[second].flatten(1)[:, None]).sum(dim=-1)
        self.depth_residual = z.log() - depth_there
        self.z = z

    def normal_equations(self, color_scale: float, depth_scale: float) -> tuple[Tensor, Tensor]:
        """J^T W J (P,2M,2M) and J^T W r (P,2M) over the parameters of the first and the second view."""
        z, there, points = self.z, self.there, self.points
        zero = torch.zeros_like(z)
        fx, fy = self.k[:, None, 0, 0] / z, self.k[:, None, 1, 1] / z
        pixel_slope = torch.stack(
            [
                torch.stack([fx, zero, -fx * there[..., 0] / z], dim=-1),
                torch.stack([zero, fy, -fy * there[..., 1] / z], dim=-1),
            ],
            dim=-2,
        )  # (P,N,2,3): pixel by point
        color = self.color_slopes @ pixel_slope  # (P,N,3,3): colour by point
        depth = torch.stack([zero, zero, 1 / z], dim=-1) - (self.depth_slopes[..., None, :] @ pixel_slope)[..., 0, :]
        by_point = torch.cat([color, depth[..., None, :]], dim=-2)  # (P,N,4,3)
        turned = by_point @ self.turn[:, None]
        moved = -_cross_rows(turned, points)
        by_first = torch.cat(
            [turned, moved, (turned @ points[..., None]) * self.basis[..., None, :]], dim=-1
        )  # (P,N,4,6+G)
        own = torch.zeros_like(by_first[..., 6:])
        own[..., 3, :] = -self.basis_there
        by_second = torch.cat([-by_point, _cross_rows(by_point, there), own], dim=-1)
        residual = torch.cat([self.color_residual, self.depth_residual[..., None]], dim=-1)
        color_size = (self.color_residual / (2 * color_scale)).square().sum(dim=-1)
        depth_size = (self.depth_residual / (3 * depth_scale)).square()
        # A point that the depth map of the other view denies is hidden there: its colour says nothing.
        trust_depth = 1 / (1 + depth_size).square()
        trust_color = trust_depth / (1 + color_size).square()
        weights = torch.stack([trust_color / color_scale**2] * 3 + [trust_depth / depth_scale**2], dim=-1)
        weights = weights * self.weight[..., None]
        jacobian = torch.cat([by_first, by_second], dim=-1).flatten(1, 2)
        weighted = jacobian * weights.flatten(1)[..., None]
        return weighted.transpose(1, 2) @ jacobian, (weighted * residual.flatten(1)[..., None]).sum(dim=1)


def _cross_rows(rows: Tensor, points: Tensor) -> Tensor:
    """rows (P,N,R,3) times the cross-product matrix of points (P,N,3): row @ [p]x."""
    return torch.linalg.cross(rows, points[..., None, :].expand_as(rows), dim=-1)


def _lookup(maps: Tensor, views: Tensor, pixels: Tensor, nearest: bool = False) -> Tensor:
    """Values (P,N,C) of maps (S,C,H,W) at pixels (P,N,2) of the given views (P)."""
    size = pixels.new_tensor([maps.shape[3], maps.shape[2]])
    grid = (pixels / size * 2 - 1)[:, :, None]
    found = grid_sample(
        maps[views], grid, mode="nearest" if nearest else "bilinear", padding_mode="border", align_corners=False
    )
    return found[..., 0].transpose(1, 2)


def _basis(pixels: Tensor, height: int, width: int, grid: tuple[int, int]) -> Tensor:
    """(P,N,rows*columns): how much each node of the grid counts at pixels (P,N,2); bilinear, nodes on the borders."""
    rows, columns = grid

    def hat(at: Tensor, count: int) -> Tensor:
        return (1 - (at[..., None] - torch.arange(count, device=at.device)).abs()).clamp_min(0)

    x = ((pixels[..., 0] - 0.5) / (width - 1)).clamp(0, 1) * (columns - 1)
    y = ((pixels[..., 1] - 0.5) / (height - 1)).clamp(0, 1) * (rows - 1)
    return (hat(y, rows)[..., :, None] * hat(x, columns)[..., None, :]).flatten(-2)
