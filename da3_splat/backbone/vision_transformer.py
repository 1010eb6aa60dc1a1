"""DINOv2 that sees any number of views by rearranging tokens between within-view and cross-view attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.checkpoint import checkpoint

from da3_splat.backbone.attention import Block, Rotary
from da3_splat.backbone.compiling import CompiledBlocks
from da3_splat.backbone.reference_view import front_order, move_to_front, restore_order, select_reference_view

PATCH = 14
TRAINED_GRID = 37  # the released position embedding is 37 x 37 patches (518 pixels)
VIEWS_PER_PIECE = 16  # are embedded, and written as features, at a time
Storage = Callable[[tuple[int, ...], Tensor], Tensor]


def in_memory(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Room for features of a shape, on the device and in the dtype of `like`."""
    return like.new_empty(shape)


class PatchEmbed(nn.Module):
    """Pictures (B,3,H,W), sides multiples of 14, to one token a patch (B,P,D), row by row."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, stride=PATCH)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.proj(pictures).flatten(2).transpose(1, 2)


@lru_cache(maxsize=16)
def _rotary(kind: str, rows: int, columns: int, head_dim: int, device: torch.device) -> Rotary:
    """Rotary tables are made once per grid, not once per call."""
    with torch.inference_mode(False):  # a table made during inference must serve training, too
        return getattr(Rotary, kind)(rows, columns, head_dim, device)


def _query_mask(views: int, queries: int, tokens: int, device: torch.device) -> Tensor:
    """(N,N) bool over the tokens of all views: which column a row may look at. A query sees itself and the others."""
    view = torch.arange(views, device=device).repeat_interleave(tokens)
    return (view[None] < views - queries) | (view[None] == view[:, None])


class VisionTransformer(nn.Module):
    """DA3's backbone (section 3.2). Block i attends across views iff i >= alternate_from and i is odd.

    `alternate_from` None gives the plain DINOv2 of the monocular and metric models: no camera token, no rotary
    embedding, no q/k norm, features of the current block only. Otherwise a tapped feature is the last within-view
    output beside the current one, only the second half normalised, D = 2 * dim.
    """

    def __init__(
        self, dim: int, depth: int, heads: int, taps: tuple[int, ...], alternate_from: int | None, swiglu: bool
    ):
        super().__init__()
        self.compiled: CompiledBlocks | None = None  # runs the blocks where no gradients are asked for
        self.checkpointing = False  # training may trade time for memory: blocks are then computed again on the way back
        self.taps, self.alternate_from, self.heads, self.dim = taps, alternate_from, heads, dim
        self.patch_embed = PatchEmbed(dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if alternate_from is not None:
            self.camera_token = nn.Parameter(torch.randn(1, 2, dim))  # of the reference view, of all others
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + TRAINED_GRID**2, dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        self.blocks = nn.ModuleList(
            Block(dim, heads, qk_norm=alternate_from is not None and i >= alternate_from, swiglu=swiglu)
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        images: Tensor,
        camera_tokens: Tensor | None = None,
        reference_view: str | int = "saddle_balanced",
        extra_layers: tuple[int, ...] = (),
        queries: int = 0,
        normalise: Callable[[Tensor], Tensor] = lambda images: images,
        storage: Storage = in_memory,
    ) -> tuple[list[Tensor], Tensor, dict[int, Tensor], Tensor]:
        """Tapped patch features, camera tokens of the last tap, normalised tokens of `extra_layers`, reference views.

        images (B,S,3,H,W), ImageNet-normalised (by `normalise`, some at a time), H and W multiples of 14.
        camera_tokens (B,S,dim) replace the learned ones; NaN rows stand for views whose camera is not known, which get
        the learned token of a source view. The last
        `queries` views look at the others, and nobody at them: the answer for the others is what it is without them.
        Without gradients the tapped features are written once, into what `storage` gives.
        Returns [(B,S,P,D)] in the order of the input views, (B,S,D), {layer: (B,S,P,dim)} and the reference views (B).
        """
        batch, views, _, height, width = images.shape
        rows, columns = height // PATCH, width // PATCH
        if height % PATCH or width % PATCH:
            raise ValueError(f"images: expected height and width in multiples of {PATCH}, got {height}x{width}")
        pieces = images.split(VIEWS_PER_PIECE, dim=1)
        tokens = torch.cat([self._embed(normalise(piece)) for piece in pieces], dim=1)
        order = None
        local_tokens = tokens
        features, extra = [], {}
        head_dim = self.dim // self.heads
        mask = _query_mask(views, queries, 1 + rows * columns, images.device) if queries else None
        for index, block in enumerate(self.blocks):
            if self._chooses_reference_before(index) and camera_tokens is None and views >= 3:
                order = select_reference_view(tokens[:, : views - queries, 0], reference_view)
                tokens, local_tokens = move_to_front(tokens, order), move_to_front(local_tokens, order)
            if index == self.alternate_from:
                tokens = torch.cat([self._camera_tokens(camera_tokens, tokens), tokens[:, :, 1:]], dim=2)
            alternating = self.alternate_from is not None and index >= self.alternate_from
            if self.looks_across(index):
                rotary: Rotary | None = _rotary("across_views", rows, columns, head_dim, images.device)
                joined = rearrange(tokens, "b s n d -> b (s n) d")
                tokens = rearrange(self._run(block, joined, rotary, mask), "b (s n) d -> b s n d", s=views)
            else:
                rotary = _rotary("within_view", rows, columns, head_dim, images.device) if alternating else None
                single = rearrange(tokens, "b s n d -> (b s) n d")
                tokens = rearrange(self._run(block, single, rotary), "(b s) n d -> b s n d", b=batch)
                local_tokens = tokens
            if index in self.taps:
                features.append(self._tap(local_tokens, tokens, order, storage))
            if index in extra_layers:
                extra[index] = restore_order(self.norm(tokens)[:, :, 1:], order)
        camera = tokens[:, :, 0]
        if self.alternate_from is not None:
            camera = torch.cat([local_tokens[:, :, 0], camera], dim=-1)
        reference = torch.zeros(batch, dtype=torch.long, device=images.device) if order is None else order
        return features, restore_order(camera, order), extra, reference

    def looks_across(self, index: int) -> bool:
        """Whether block `index` attends across the views."""
        return self.alternate_from is not None and index >= self.alternate_from and index % 2 == 1

    def _run(self, block: nn.Module, tokens: Tensor, rotary: Rotary | None, mask: Tensor | None = None) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, tokens, rotary, mask, use_reentrant=False)
        if self.compiled is None or mask is not None or torch.is_grad_enabled():
            return block(tokens, rotary, mask)
        assert isinstance(block, Block), "what a backbone is made of"
        if rotary is not None and rotary.stride is not None:
            return self.compiled.across(block, tokens, rotary)
        return self.compiled.within(block, tokens, rotary)

    def _chooses_reference_before(self, index: int) -> bool:
        return self.alternate_from is not None and index == self.alternate_from - 1

    def _embed(self, images: Tensor) -> Tensor:
        batch, views, _, height, width = images.shape
        patches = rearrange(self.patch_embed(images.flatten(0, 1)), "(b s) n d -> b s n d", b=batch)
        position = self.position_embedding(height // PATCH, width // PATCH)
        class_token = (self.cls_token + position[:, :1]).expand(batch, views, 1, -1).to(patches.dtype)
        return torch.cat([class_token, patches + position[:, 1:].to(patches.dtype)], dim=2)

    def position_embedding(self, rows: int, columns: int) -> Tensor:
        """(1,1+rows*columns,dim): the trained grid, bicubically resampled as the released code does it.

        The scale factor has 0.1 added to the patch count, which moves the sampling points a little; DINOv2 was
        trained with this rounding guard, so it is part of the model.
        """
        if rows == columns == TRAINED_GRID:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].float().unflatten(1, (TRAINED_GRID, TRAINED_GRID)).permute(0, 3, 1, 2)
        factors = ((rows + 0.1) / TRAINED_GRID, (columns + 0.1) / TRAINED_GRID)
        grid = interpolate(grid, scale_factor=factors, mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
        return torch.cat([self.pos_embed[:, :1], grid.to(self.pos_embed.dtype)], dim=1)

    def _camera_tokens(self, given: Tensor | None, tokens: Tensor) -> Tensor:
        """Slot 0 of every view: learned tokens, or the encoded cameras where they are given. (B,S,1,dim)"""
        batch, views = tokens.shape[:2]
        reference, source = self.camera_token[:, :1], self.camera_token[:, 1:]
        learned = torch.cat([reference, source.expand(-1, views - 1, -1)], dim=1).expand(batch, -1, -1)
        if given is not None:
            unknown = given.isnan().any(dim=-1, keepdim=True)
            learned = torch.where(unknown, source, given.nan_to_num())
        return learned[:, :, None].to(tokens.dtype)

    def _tap(self, local_tokens: Tensor, tokens: Tensor, order: Tensor | None, storage: Storage) -> Tensor:
        """(B,S,P,D) of the patches, in the order of the input views."""
        if torch.is_grad_enabled():
            return restore_order(self._tapped(local_tokens, tokens), order)
        batch, views, count, dim = tokens.shape
        dim = dim if self.alternate_from is None else 2 * dim
        features = storage((batch, views, count - 1, dim), tokens)
        item = torch.arange(batch, device=tokens.device)[:, None]
        places = torch.arange(views, device=tokens.device).expand(batch, -1)
        places = places if order is None else front_order(order, views)
        for piece in torch.arange(views).split(VIEWS_PER_PIECE):
            few = slice(int(piece[0]), int(piece[-1]) + 1)
            answer = self._tapped(local_tokens[:, few], tokens[:, few])
            features[item.to(features.device), places[:, few].to(features.device)] = answer.to(features)
        return features

    def _tapped(self, local_tokens: Tensor, tokens: Tensor) -> Tensor:
        normalised = self.norm(tokens[:, :, 1:])
        if self.alternate_from is None:
            return normalised
        return torch.cat([local_tokens[:, :, 1:], normalised.to(tokens.dtype)], dim=-1)
