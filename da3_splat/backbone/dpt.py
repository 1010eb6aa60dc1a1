"""Dense prediction heads: a pyramid of tapped ViT features fused top-down (DPT), with one or two output branches.

Submodule names (projects, scratch.refinenet1.resConfUnit1, ...) are those of the released checkpoints.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from da3_splat.backbone.vision_transformer import PATCH

HIDDEN = 32  # channels before the last 1x1 convolution, in every size


def uv_embedding(rows: int, columns: int, channels: int, aspect: float, device: torch.device) -> Tensor:
    """Sine-cosine embedding (channels,rows,columns) of the image plane scaled to a unit half-diagonal, times 0.1.

    Half the channels encode x, half y; frequencies fall from 1 to 1/100.
    """
    if torch.compiler.is_compiling():  # it cannot look into a cache
        return _make_uv_embedding(rows, columns, channels, aspect, device)
    return _kept_uv_embedding(rows, columns, channels, aspect, device)


@lru_cache(maxsize=32)
def _kept_uv_embedding(rows: int, columns: int, channels: int, aspect: float, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a table made during inference must serve training, too
        return _make_uv_embedding(rows, columns, channels, aspect, device)


def _make_uv_embedding(rows: int, columns: int, channels: int, aspect: float, device: torch.device) -> Tensor:
    diagonal = (aspect**2 + 1) ** 0.5

    def axis(count: int, half_span: float) -> Tensor:
        edge = half_span * (count - 1) / count
        return torch.linspace(-edge, edge, count, dtype=torch.float64, device=device)

    exponents = torch.arange(channels // 4, dtype=torch.float64, device=device) / (channels // 4)
    frequencies = 100.0**-exponents

    def waves(position: Tensor) -> Tensor:
        phase = position[..., None] * frequencies
        return torch.cat([phase.sin(), phase.cos()], dim=-1)

    x = waves(axis(columns, aspect / diagonal))[None].expand(rows, -1, -1)
    y = waves(axis(rows, 1 / diagonal))[:, None].expand(-1, columns, -1)
    return (0.1 * torch.cat([x, y], dim=-1)).float().permute(2, 0, 1).contiguous()


class ResidualUnit(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(relu(x)).relu_()).add_(x)


class FusionBlock(nn.Module):
    """Add the finer level, refine, project, upsample.

    The 1x1 projection comes before the bilinear upsampling: they commute, and this order costs a quarter.
    """

    def __init__(self, channels: int, lateral: bool):
        super().__init__()
        if lateral:
            self.resConfUnit1 = ResidualUnit(channels)
        self.resConfUnit2 = ResidualUnit(channels)
        self.out_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, lateral: Tensor | None, size: tuple[int, int]) -> Tensor:
        if lateral is not None:
            x = self.resConfUnit1(lateral).add_(x)
        return interpolate(self.out_conv(self.resConfUnit2(x)), size, mode="bilinear", align_corners=True)


class Scratch(nn.Module):
    """Holds layers by the names that the released weights give them; heads add their own."""

    output_conv1: nn.Conv2d
    output_conv2: nn.Sequential
    sky_output_conv2: nn.Sequential
    object_output_conv2: nn.Sequential
    output_conv1_aux: nn.Sequential
    output_conv2_aux: nn.ModuleDict


class Pyramid(nn.Module):
    """Four tapped features (N,P,D) -> four maps of one width, coarse to fine.

    `uv` adds the image-plane embedding, `token_norm` a LayerNorm on the tokens (both only in the any-view head and,
    without the norm, in the Gaussian head).
    """

    def __init__(self, dim: int, features: int, channels: tuple[int, ...], uv: bool, token_norm: bool):
        super().__init__()
        self.uv = uv
        self.norm = nn.LayerNorm(dim) if token_norm else nn.Identity()
        self.projects = nn.ModuleList(nn.Conv2d(dim, c, 1) for c in channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(channels[0], channels[0], 4, stride=4),
                nn.ConvTranspose2d(channels[1], channels[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(channels[3], channels[3], 3, stride=2, padding=1),
            ]
        )
        self.scratch = Scratch()
        for level, c in enumerate(channels, start=1):
            setattr(self.scratch, f"layer{level}_rn", nn.Conv2d(c, features, 3, padding=1, bias=False))

    def pyramid(self, features: list[Tensor], height: int, width: int) -> list[Tensor]:
        """Maps at 4, 2, 1 and 1/2 times the patch grid, one width."""
        rows, columns = height // PATCH, width // PATCH
        levels = []
        for index, tokens in enumerate(features):
            x = self.norm(tokens).transpose(1, 2).unflatten(2, (rows, columns))
            x = self.with_uv(self.projects[index](x), height, width)
            x = self.resize_layers[index](x)
            levels.append(getattr(self.scratch, f"layer{index + 1}_rn")(x))
        return levels

    def with_uv(self, x: Tensor, height: int, width: int) -> Tensor:
        if not self.uv:
            return x
        channels, rows, columns = x.shape[1:]
        return x + uv_embedding(rows, columns, channels, width / height, x.device).to(x.dtype)


class DPT(Pyramid):
    """The pyramid fused top-down (N,features/2,8h,8w) -> `outputs` channels at image size; see `Pyramid`."""

    def __init__(
        self,
        dim: int,
        features: int,
        channels: tuple[int, ...],
        outputs: int,
        uv: bool = False,
        token_norm: bool = False,
    ):
        super().__init__(dim, features, channels, uv, token_norm)
        self._add_fusion("", features)
        self.scratch.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.scratch.output_conv2 = _output(features // 2, outputs)

    def _add_fusion(self, suffix: str, features: int) -> None:
        for level in (1, 2, 3, 4):
            setattr(self.scratch, f"refinenet{level}{suffix}", FusionBlock(features, lateral=level < 4))

    def fuse(self, levels: list[Tensor], suffix: str = "") -> Tensor:
        """Top-down fusion to 8 times the patch grid."""
        x: Tensor | None = None
        for level in (4, 3, 2, 1):
            block = getattr(self.scratch, f"refinenet{level}{suffix}")
            if level > 1:
                size = (levels[level - 2].shape[-2], levels[level - 2].shape[-1])
            else:
                size = (2 * levels[0].shape[-2], 2 * levels[0].shape[-1])
            x = block(levels[3], None, size) if x is None else block(x, levels[level - 1], size)
        assert x is not None
        return x

    def image_size_features(self, levels: list[Tensor], height: int, width: int) -> Tensor:
        """(N,features/2,H,W), without the UV embedding."""
        x = self.scratch.output_conv1(self.fuse(levels))
        return interpolate(x, (height, width), mode="bilinear", align_corners=True)


def _output(channels: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, HIDDEN, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(HIDDEN, outputs, 1)
    )


class MonocularHead(DPT):
    """Depth and sky of one view at a time (monocular and metric models); `objects`: and where objects stand, which the
    teacher learns (section 4.1) and no released model has."""

    def __init__(self, dim: int, features: int, channels: tuple[int, ...], objects: bool = False):
        super().__init__(dim, features, channels, outputs=1)
        self.objects = objects
        self.scratch.sky_output_conv2 = _output(features // 2, 1)
        if objects:
            self.scratch.object_output_conv2 = _output(features // 2, 1)

    def forward(self, features: list[Tensor], height: int, width: int, rays: bool) -> dict[str, Tensor]:
        """depth (N,H,W) = exp, sky and objects (N,H,W) >= 0. There is no ray branch: `rays` must be False."""
        if rays:
            raise ValueError("rays: expected False, a monocular model predicts no ray map")
        x = self.image_size_features(self.pyramid(features, height, width), height, width)
        depth, sky = self.scratch.output_conv2(x), self.scratch.sky_output_conv2(x)
        answer = {"depth": depth[:, 0].float().exp(), "sky": sky[:, 0].float().relu()}
        if self.objects:
            answer["objects"] = self.scratch.object_output_conv2(x)[:, 0].float().relu()
        return answer


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map (N,C,h,w)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DualDPT(DPT):
    """Depth and ray map from one pyramid and two fusion branches (section 3.3)."""

    def __init__(self, dim: int, features: int, channels: tuple[int, ...]):
        super().__init__(dim, features, channels, outputs=2, uv=True, token_norm=True)
        self._add_fusion("_aux", features)
        half = features // 2
        widths = [(features, half), (half, features), (features, half), (half, features), (features, half)]
        self.scratch.output_conv1_aux = nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in widths))
        self.scratch.output_conv2_aux = nn.ModuleDict(
            {
                "0": nn.Conv2d(half, HIDDEN, 3, padding=1),
                "2": ChannelNorm(HIDDEN),
                "5": nn.Conv2d(HIDDEN, 7, 1),
            }
        )  # the indices are those of the released sequence, whose other entries hold no weights

    def forward(self, features: list[Tensor], height: int, width: int, rays: bool) -> dict[str, Tensor]:
        """depth (N,H,W) = exp, confidence (N,H,W) = 1 + exp; with `rays` also ray (N,h,w,6) and ray_confidence (N,h,w).

        The ray map has 8/14 of the image's size; directions come first, then origins, both linear. Its branch runs
        only when asked for.
        """
        levels = self.pyramid(features, height, width)
        x = self.with_uv(self.image_size_features(levels, height, width), height, width)
        depth, confidence = self.scratch.output_conv2(x).float().exp().unbind(1)
        answer = {"depth": depth, "confidence": 1 + confidence}
        if rays:
            levels = self.ray_levels(features, levels, height, width)
            x = self.scratch.output_conv1_aux(self.fuse(levels, "_aux"))
            last = self.scratch.output_conv2_aux
            x = last["5"](relu(last["2"](last["0"](self.with_uv(x, height, width))))).float().permute(0, 2, 3, 1)
            answer |= {"ray": x[..., :6], "ray_confidence": 1 + x[..., 6].exp()}
        return answer

    def ray_levels(self, features: list[Tensor], levels: list[Tensor], height: int, width: int) -> list[Tensor]:
        """The pyramid that the ray branch fuses: the one of depth."""
        return levels


class SeparateDPT(DualDPT):
    """Depth and rays from a pyramid each: the head that the paper compares the shared one with (Table 7, row d)."""

    def __init__(self, dim: int, features: int, channels: tuple[int, ...]):
        super().__init__(dim, features, channels)
        self.ray_pyramid = Pyramid(dim, features, channels, uv=True, token_norm=True)

    def ray_levels(self, features: list[Tensor], levels: list[Tensor], height: int, width: int) -> list[Tensor]:
        return self.ray_pyramid.pyramid(features, height, width)
