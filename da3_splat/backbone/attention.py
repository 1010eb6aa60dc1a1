"""The transformer block of DA3's backbone and camera encoder, keyed like the released weights.

Its three smallest parts are timm's in all but the import, which brings torchvision and torch's compiler along: 4 of the
7 seconds that a command took to start, and 180 MB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

ROPE_BASE = 100.0
# In inference: tokens of the MLP at a time, and of everything else in a block but what all tokens look at. A core's
# cache asks for few; few would not keep a GPU busy (whose numbers are not measured).
TOKENS_PER_CHUNK = {"cpu": 1536, "cuda": 32768}
TOKENS_PER_PIECE = {"cpu": 8192, "cuda": 32768}


class Attention(nn.Module):
    """Multi-head self-attention with optional per-head LayerNorm of queries and keys, before the rotary embedding."""

    def __init__(self, dim: int, heads: int, qk_norm: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, rotary: Rotary | None = None, mask: Tensor | None = None) -> Tensor:
        """Tokens (B,N,D) to the same; `mask` (N,N) bool says which column a row may look at."""
        query, key, value = self.project(tokens, rotary)
        query, key = query.to(value.dtype), key.to(value.dtype)  # LayerNorm answers in float32 under autocast
        return self.proj(_joined(scaled_dot_product_attention(query, key, value, attn_mask=mask)))

    def across_pieces(
        self, pieces: Sequence[Tensor], norm: nn.Module, rotary: Rotary | None, mask: Tensor | None
    ) -> Iterator[Tensor]:
        """`forward` of the normalised pieces (B,n,D) of one sequence, piece by piece: of the whole sequence only
        queries, keys, values and what they mix to are held."""
        total, start = sum(piece.shape[1] for piece in pieces), 0
        held: list[Tensor] | None = None
        for piece in pieces:
            parts = self.project(norm(piece), rotary)
            if held is None:
                batch, heads, _, width = parts[2].shape
                held = [parts[2].new_empty(batch, heads, total, width) for _ in parts]
            for whole, part in zip(held, parts):
                whole[:, :, start : start + piece.shape[1]] = part
            start += piece.shape[1]
        assert held is not None, "a sequence has pieces"
        query, key, value = held
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        del held, query, key, value
        for part in mixed.split([piece.shape[1] for piece in pieces], dim=2):
            yield self.proj(_joined(part))

    def project(self, tokens: Tensor, rotary: Rotary | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys as they are compared, and values, each (B,heads,N,D/heads)."""
        batch, count, dim = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, count, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = self.q_norm(query), self.k_norm(key)
        if rotary is not None:
            query, key = rotary.rotate(query), rotary.rotate(key)
        return query, key, value


def _joined(mixed: Tensor) -> Tensor:
    """(B,heads,N,D/heads) -> (B,N,D)."""
    return mixed.transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    """fc2(gelu(fc1(x)))."""

    def __init__(self, dim: int, hidden: int, out: int | None = None):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out or dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(tokens)))


class SwiGLU(nn.Module):
    """w3(silu(a) * b) with (a, b) = w12(x); hidden width 2/3 of the MLP's, rounded up to a multiple of 8."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        hidden = (hidden * 2 // 3 + 7) // 8 * 8
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        gate, value = self.w12(tokens).chunk(2, dim=-1)
        return self.w3(silu(gate) * value)


class LayerScale(nn.Module):
    """The learned factor of each channel that a branch is weighed by."""

    def __init__(self, dim: int, start: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), start))


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale on both branches."""

    def __init__(
        self, dim: int, heads: int, qk_norm: bool = False, swiglu: bool = False, eps: float = 1e-6, scale: float = 1.0
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qk_norm)
        self.ls1 = LayerScale(dim, scale)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = SwiGLU(dim, 4 * dim) if swiglu else Mlp(dim, 4 * dim)
        self.ls2 = LayerScale(dim, scale)

    def forward(self, tokens: Tensor, rotary: Rotary | None = None, mask: Tensor | None = None) -> Tensor:  # (B,N,D)
        # Product and sum are rounded one after the other, as in the official code: with a fused addcmul, Giant's forty
        # blocks drift apart from it by a fifth more.
        if torch.is_grad_enabled():
            return self.widened(self.attended(tokens, rotary, mask))
        tokens = self._attended(tokens, rotary, mask)
        # Without gradients a few tokens at a time, in place: the wide layer stays in cache and asks for no new pages.
        for part in tokens.flatten(0, 1).split(at_once(TOKENS_PER_CHUNK, tokens.device)):
            part.add_(self.mlp(self.norm2(part)).mul_(self.ls2.gamma))
        return tokens

    def attended(self, tokens: Tensor, rotary: Rotary | None = None, mask: Tensor | None = None) -> Tensor:
        """The first branch, all tokens (B,N,D) at once."""
        return tokens + self.attn(self.norm1(tokens), rotary, mask) * self.ls1.gamma

    def widened(self, tokens: Tensor) -> Tensor:
        """The second branch, all tokens (B,N,D) at once."""
        return tokens + self.mlp(self.norm2(tokens)) * self.ls2.gamma

    def _attended(self, tokens: Tensor, rotary: Rotary | None, mask: Tensor | None) -> Tensor:
        """tokens (B,N,D) + attention as a new tensor, piece by piece: short sequences some at a time, a long one by
        its tokens, whole views of them where the rotary embedding counts in views."""
        batch, count, dim = tokens.shape
        answer = tokens.new_empty(tokens.shape, dtype=torch.promote_types(tokens.dtype, self.ls1.gamma.dtype))
        most = at_once(TOKENS_PER_PIECE, tokens.device)
        if count <= most:
            sequences = max(1, most // count)
            for part, room in zip(tokens.split(sequences), answer.split(sequences)):
                torch.add(part, self.attn(self.norm1(part), rotary, mask) * self.ls1.gamma, out=room)
            return answer
        if rotary is not None and rotary.stride is None:  # one view of many tokens, each at its own position
            return self.attended(tokens, rotary, mask)
        unit = (rotary and rotary.stride) or 1
        pieces = tokens.split(max(1, most // unit) * unit, dim=1)
        start = 0
        for piece, mixed in zip(pieces, self.attn.across_pieces(pieces, self.norm1, rotary, mask)):
            stop = start + piece.shape[1]
            answer[:, start:stop] = piece + mixed * self.ls1.gamma
            start = stop
        return answer


def at_once(limits: dict[str, int], device: torch.device) -> int:
    """The limit for a kind of device; others count as GPUs."""
    return limits.get(device.type, limits["cuda"])


class Rotary:
    """Rotary position embedding: the first half of a head turns with a token's y, the second with its x.

    With a `stride` it acts on the first of every `stride` tokens alone (the class tokens).
    """

    def __init__(self, positions: Tensor, head_dim: int, stride: int | None = None):
        half = head_dim // 2
        exponent = torch.arange(0, half, 2, device=positions.device, dtype=torch.float32) / half
        angles = positions.float()[..., None] / ROPE_BASE**exponent  # (N,2,half/2)
        angles = torch.cat([angles, angles], dim=-1).flatten(-2)  # (N,head_dim)
        self.cos, self.sin = angles.cos(), angles.sin()
        self.stride = stride

    @classmethod
    def within_view(cls, rows: int, columns: int, head_dim: int, device: torch.device) -> Rotary:
        """Patches at (row + 1, column + 1), the class token at (0, 0)."""
        grid = torch.cartesian_prod(torch.arange(1, rows + 1), torch.arange(1, columns + 1))
        return cls(torch.cat([torch.zeros(1, 2, dtype=torch.long), grid]).to(device), head_dim)

    @classmethod
    def across_views(cls, rows: int, columns: int, head_dim: int, device: torch.device) -> Rotary:
        """All patches share position (1, 1), the class tokens have (0, 0).

        Attention sees differences of positions only, so turning the few class tokens by (-1, -1) and leaving the
        patches alone gives the same scores for a fraction of the work.
        """
        return cls(torch.full((1, 2), -1, device=device), head_dim, stride=1 + rows * columns)

    def rotate(self, x: Tensor) -> Tensor:  # (B,heads,N,head_dim)
        if self.stride is None:
            return self._turn(x)
        grouped = x.unflatten(2, (-1, self.stride))
        return torch.cat([self._turn(grouped[:, :, :, :1]), grouped[:, :, :, 1:]], dim=3).flatten(2, 3)

    def _turn(self, x: Tensor) -> Tensor:
        first_y, second_y, first_x, second_x = x.chunk(4, dim=-1)
        partner = torch.cat([-second_y, first_y, -second_x, first_x], dim=-1)
        return x * self.cos.to(x.dtype) + partner * self.sin.to(x.dtype)
