"""What two views say of the same points, and how their corrections change it: the residuals of the consensus."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from da3_splat.geometry.projection import inverse_intrinsics


@dataclass(frozen=True)
class CorrectedViews:
    """Corrected cameras, log depth factors (S,rows,columns), and the twists so far (S,6), for the priors."""

    camera_to_world: Tensor
    factors: Tensor
    twists: Tensor


class ViewMaps:
    """What all views show, 20 bytes a pixel: blurred colours, log depth, whether they count. Slopes are taken anew for
    the views that are looked at, so that nothing of 13 channels is held for all of them."""

    def __init__(self, log_depth: Tensor, usable: Tensor):
        """log_depth (S,H,W), usable (S,H,W) bool; the colours come by `blur`."""
        self.height, self.width = log_depth.shape[1:]
        self.values = torch.cat([log_depth.new_zeros(*log_depth.shape, 3), log_depth[..., None]], dim=-1)
        self.usable = usable

    def blur(self, images: Tensor, sigma: float) -> None:
        """Take the colours of images (S,3,H,W), blurred by `sigma` pixels."""
        for view, image in enumerate(images):
            self.values[view, ..., :3] = gaussian_blur(image[None].float(), sigma)[0].permute(1, 2, 0)

    def at_pixels(self, views: Tensor, pixels: Tensor) -> Tensor:
        """Colour and log depth (P,N,4) at pixel centres (P,N,2) of views (P)."""
        column, row = pixels[..., 0].long(), pixels[..., 1].long()
        return self.values.flatten(0, 2)[(views[:, None] * self.height + row) * self.width + column]

    def between_pixels(self, views: Tensor, pixels: Tensor) -> Tensor:
        """(P,N,13) at any pixels (P,N,2) of views (P), bilinear, the border continued: colour and log depth (4), their
        slopes by x (4) and by y (4), whether it is usable."""
        shown, index = views.unique(return_inverse=True)
        values = self.values[shown]
        by_y, by_x = torch.gradient(values, dim=(1, 2))
        maps = torch.cat([values, by_x, by_y, self.usable[shown][..., None].to(values)], dim=-1).flatten(0, 2)
        x = (pixels[..., 0] - 0.5).clamp(0, self.width - 1)
        y = (pixels[..., 1] - 0.5).clamp(0, self.height - 1)
        left, top = x.floor().clamp_max(max(0, self.width - 2)), y.floor().clamp_max(max(0, self.height - 2))
        u, v = (x - left)[..., None], (y - top)[..., None]
        corner = (index[:, None] * self.height + top.long()) * self.width + left.long()
        right, down = min(1, self.width - 1), self.width * min(1, self.height - 1)
        upper = torch.lerp(maps[corner], maps[corner + right], u)
        return torch.lerp(upper, torch.lerp(maps[corner + down], maps[corner + down + right], u), v)


class Look:
    """Pixels (P,N) of the first view of each pair as the second one sees them, and what that says."""

    def __init__(
        self,
        maps: ViewMaps,
        intrinsics: Tensor,
        unit: float,
        state: CorrectedViews,
        pairs: Tensor,
        pixels: Tensor,
        chosen: Tensor,
    ):
        """Pixel centres (S,N,2) of every view, and which of them count (S,N)."""
        self.pairs = pairs
        first, second = pairs.to(pixels.device).unbind(1)
        height, width, grid = maps.height, maps.width, state.factors.shape[1:]
        pixels = pixels[first]
        here = maps.at_pixels(first, pixels)
        basis = _basis(pixels, height, width, grid)
        factors = state.factors.float()
        log_depth = here[..., 3] + (basis * factors[first].flatten(1)[:, None]).sum(dim=-1)
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
        found = maps.between_pixels(second, seen)
        inside = (seen > 0.5).all(dim=-1) & (seen[..., 0] < width - 0.5) & (seen[..., 1] < height - 0.5)
        usable = chosen[first] & inside & (self.there[..., 2] > 1e-3 * unit) & (found[..., 12] > 0.99)
        self.weight = usable.float()
        self.basis, self.basis_there = basis, _basis(seen, height, width, grid)
        self.color_residual = found[..., :3] - here[..., :3]
        self.color_slopes = torch.stack([found[..., 4:7], found[..., 8:11]], dim=-1)  # (P,N,3,2)
        self.depth_slopes = found[..., [7, 11]]
        depth_there = found[..., 3] + (self.basis_there * factors[second].flatten(1)[:, None]).sum(dim=-1)
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
        nodes = self.basis.shape[-1]
        second = 6 + nodes  # where the parameters of the second view begin
        jacobian = by_point.new_zeros(*by_point.shape[:3], 2 * second)  # (P,N,4,2M), filled in place
        jacobian[..., :3] = turned
        jacobian[..., 3:6] = -_cross_rows(turned, points)
        torch.mul(turned @ points[..., None], self.basis[..., None, :], out=jacobian[..., 6:second])
        jacobian[..., second : second + 3] = -by_point
        jacobian[..., second + 3 : second + 6] = _cross_rows(by_point, there)
        jacobian[..., 3, second + 6 :] = -self.basis_there
        residual = torch.cat([self.color_residual, self.depth_residual[..., None]], dim=-1)
        color_size = (self.color_residual / (2 * color_scale)).square().sum(dim=-1)
        depth_size = (self.depth_residual / (3 * depth_scale)).square()
        # A point that the depth map of the other view denies is hidden there: its colour says nothing.
        trust_depth = 1 / (1 + depth_size).square()
        trust_color = trust_depth / (1 + color_size).square()
        weights = torch.stack([trust_color / color_scale**2] * 3 + [trust_depth / depth_scale**2], dim=-1)
        weights = weights * self.weight[..., None]
        root = weights.sqrt()
        jacobian = (jacobian.mul_(root[..., None])).flatten(1, 2)
        residual = (residual * root).flatten(1)[..., None]
        return jacobian.transpose(1, 2) @ jacobian, (jacobian.transpose(1, 2) @ residual)[..., 0]


def _cross_rows(rows: Tensor, points: Tensor) -> Tensor:
    """rows (P,N,R,3) times the cross-product matrix of points (P,N,3): row @ [p]x."""
    return torch.linalg.cross(rows, points[..., None, :].expand_as(rows), dim=-1)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Pictures (S,C,H,W) blurred by a Gaussian of `sigma` pixels."""
    radius = max(1, round(3 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=images.device) / sigma) ** 2)
    taps = (taps / taps.sum()).to(images.dtype)
    flat = images.flatten(0, 1)[:, None]
    flat = conv2d(pad(flat, (radius, radius, 0, 0), mode="replicate"), taps[None, None, None])
    flat = conv2d(pad(flat, (0, 0, radius, radius), mode="replicate"), taps[None, None, :, None])
    return flat[:, 0].unflatten(0, images.shape[:2])


def _basis(pixels: Tensor, height: int, width: int, grid: tuple[int, ...]) -> Tensor:
    """(P,N,rows*columns): how much each node of the grid counts at pixels (P,N,2); bilinear, nodes on the borders."""
    rows, columns = grid

    def hat(at: Tensor, count: int) -> Tensor:
        return (1 - (at[..., None] - torch.arange(count, device=at.device)).abs()).clamp_min(0)

    x = ((pixels[..., 0] - 0.5) / (width - 1)).clamp(0, 1) * (columns - 1)
    y = ((pixels[..., 1] - 0.5) / (height - 1)).clamp(0, 1) * (rows - 1)
    return (hat(y, rows)[..., :, None] * hat(x, columns)[..., None, :]).flatten(-2)
