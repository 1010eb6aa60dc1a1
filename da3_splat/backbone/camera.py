"""The camera head (tokens -> cameras) and the camera encoder (cameras -> tokens)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from da3_splat.backbone.attention import Block, Mlp
from da3_splat.geometry.poses import encode_cameras
from da3_splat.types import Cameras


class CameraDecoder(nn.Module):
    """Camera token (B,S,D) -> encoding (B,S,9): position, quaternion xyzw (any length), field of view (y, x) >= 0."""

    def __init__(self, dim: int):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.fc_t = nn.Linear(dim, 3)
        self.fc_qvec = nn.Linear(dim, 4)
        self.fc_fov = nn.Sequential(nn.Linear(dim, 2), nn.ReLU())

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.backbone(tokens)
        return torch.cat([self.fc_t(x), self.fc_qvec(x), self.fc_fov(x)], dim=-1)


class CameraEncoder(nn.Module):
    """Given cameras -> one token a view (B,S,dim), by an MLP and a few blocks across the views (section 3.2)."""

    def __init__(self, dim: int, heads: int = 16, blocks: int = 4):
        super().__init__()
        self.pose_branch = Mlp(9, dim // 2, dim)
        self.token_norm = nn.LayerNorm(dim)
        self.trunk = nn.Sequential(*(Block(dim, heads, eps=1e-5, scale=0.01) for _ in range(blocks)))
        self.trunk_norm = nn.LayerNorm(dim)

    def forward(self, cameras: Cameras) -> Tensor:
        """Views whose pose is NaN are not known: their tokens are NaN, and the others do not see them."""
        encoding = encode_cameras(cameras).to(self.token_norm.weight.dtype)
        known = encoding.isfinite().all(dim=-1)  # (B,S)
        if known.all():
            return self._encode(encoding)
        tokens = encoding.new_full((*known.shape, self.token_norm.weight.shape[0]), float("nan"))
        for item in range(known.shape[0]):
            if known[item].any():
                tokens[item, known[item]] = self._encode(encoding[item, known[item]][None])[0]
        return tokens

    def _encode(self, encoding: Tensor) -> Tensor:
        return self.trunk_norm(self.trunk(self.token_norm(self.pose_branch(encoding))))
