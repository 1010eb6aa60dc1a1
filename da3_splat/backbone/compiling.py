"""torch.compile for any number of views, in shapes that are known beforehand.

Compiled code holds for the shapes it was made for, and the number of views is another one in every folder of photos.
But all of the network except attention across views works view by view: so the views go through in pieces of 1, 2, 4,
... up to a largest number of them, the last piece filled up with zeros to the next of these counts, and what comes out
for these is thrown away. Attention across views is left to torch's own kernel. Every count and picture size is compiled
when it is first met, which takes a while: for many scenes of one size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from da3_splat.backbone.attention import Block, Rotary

Compiler = Callable[[Callable], Callable]  # torch.compile, or what gives a function back as it is


def buckets(count: int, largest: int) -> Iterator[tuple[slice, int]]:
    """Pieces of `count` items, and how many each is filled up to: a power of two, `largest` at most."""
    for start in range(0, count, largest):
        stop = min(start + largest, count)
        yield slice(start, stop), min(largest, 1 << (stop - start - 1).bit_length())


def filled(values: Tensor, piece: slice, size: int) -> Tensor:
    """A piece of `values` (N,...) with zeros behind it up to `size` items."""
    part = values[piece]
    if len(part) == size:
        return part
    return torch.cat([part, part.new_zeros(size - len(part), *part.shape[1:])])


class CompiledBlocks:
    """Runs the blocks of a transformer, without gradients, on `largest` views at a time."""

    def __init__(self, largest: int, compiler: Compiler):
        self.largest = largest
        self._whole, self._projected, self._finished = compiler(_whole), compiler(_projected), compiler(_finished)

    def within(self, block: Block, tokens: Tensor, rotary: Rotary | None) -> Tensor:
        """`block` on sequences (N,T,D) of one view each."""
        return self._in_pieces(len(tokens), lambda *piece: self._whole(block, filled(tokens, *piece), rotary))

    def across(self, block: Block, tokens: Tensor, rotary: Rotary) -> Tensor:
        """`block` on the sequences (B,S*T,D) of all views of a scene, T tokens each as the rotary embedding counts."""
        assert rotary.stride is not None, "across views it has one"
        views = tokens.reshape(-1, rotary.stride, tokens.shape[-1])  # (B*S,T,D)
        mixed = self._attention(block, views, rotary, len(tokens))
        found = self._in_pieces(
            len(views), lambda *piece: self._finished(block, filled(views, *piece), filled(mixed, *piece))
        )
        return found.reshape(tokens.shape)

    def _attention(self, block: Block, views: Tensor, rotary: Rotary, batch: int) -> Tensor:
        """What the tokens of views (B*S,T,D) take from each other (B*S,T,D), before it is projected."""
        held: list[Tensor] | None = None
        for piece, size in buckets(len(views), self.largest):
            parts = self._projected(block, filled(views, piece, size), rotary)  # (b,heads,T,d)
            if held is None:
                heads, count, width = parts[2].shape[1:]
                held = [parts[2].new_empty(len(views), count, heads, width) for _ in parts]
            for whole, part in zip(held, parts):
                whole[piece] = part[: piece.stop - piece.start].transpose(1, 2)
        assert held is not None, "there are views"
        query, key, value = (part.reshape(batch, -1, *part.shape[2:]).transpose(1, 2) for part in held)
        return scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(views.shape)

    def _in_pieces(self, count: int, answer: Callable[[slice, int], Tensor]) -> Tensor:
        """The answers for all pieces of `count` views as one tensor. Each is copied before the next call: a captured
        graph writes to the same place every time."""
        joined: Tensor | None = None
        for piece, size in buckets(count, self.largest):
            found = answer(piece, size)
            if joined is None:
                joined = found.new_empty(count, *found.shape[1:])
            joined[piece] = found[: piece.stop - piece.start]
        assert joined is not None, "there are views"
        return joined


class CompiledHead:
    """Runs a dense head, without gradients, on few views that are filled up."""

    def __init__(self, compiler: Compiler):
        self._run = compiler(_head)

    def __call__(
        self, head: nn.Module, taps: list[Tensor], height: int, width: int, rays: bool, largest: int
    ) -> dict[str, Tensor]:
        """`head` on the taps (N,P,D) of N <= `largest` views. To be copied before the next call."""
        ((piece, size),) = buckets(len(taps[0]), largest)
        found = self._run(head, [filled(tap, piece, size) for tap in taps], height, width, rays)
        return {name: values[piece] for name, values in found.items()}


def _whole(block: Block, tokens: Tensor, rotary: Rotary | None) -> Tensor:
    return block.widened(block.attended(tokens, rotary))


def _projected(block: Block, tokens: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
    return block.attn.project(block.norm1(tokens), rotary)


def _finished(block: Block, tokens: Tensor, mixed: Tensor) -> Tensor:
    return block.widened(tokens + block.attn.proj(mixed) * block.ls1.gamma)


def _head(head: nn.Module, taps: list[Tensor], height: int, width: int, rays: bool) -> dict[str, Tensor]:
    return head(taps, height, width, rays)
