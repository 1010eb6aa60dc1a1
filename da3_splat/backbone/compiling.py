"""torch.compile for any number of views, in shapes that are known beforehand.

Compiled code holds for the shapes it was made for, and the number of views is another one in every folder of photos.
But all of the network except attention across views works view by view: so the views go through in pieces of 1, 2, 4,
... up to `largest` of them, the last piece filled up with zeros to the next of these counts, and what comes out for
these is thrown away. Attention across views is left to torch's own kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from da3_splat.backbone.attention import Block, Rotary

Compile = Callable[[Callable], Callable]


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


class CompiledNetwork:
    """Runs the blocks and the dense heads of one network without gradients; see the head of this file.

    `largest` is the number of views in a piece, `compile` what compiles a function (torch.compile, or one that gives it
    back as it is). Every bucket and picture size is compiled when it is first met, which takes a while: for many scenes
    of one size.
    """

    def __init__(self, largest: int, compile: Compile):
        self.largest = largest
        self._whole, self._projected, self._finished = compile(_whole), compile(_projected), compile(_finished)
        self._head = compile(_head)

    def block(self, block: Block, tokens: Tensor, rotary: Rotary | None) -> Tensor:
        """`block` on sequences (N,T,D) of one view each."""
        outcome = None
        for piece, size in buckets(len(tokens), self.largest):
            found = self._whole(block, filled(tokens, piece, size), rotary)
            outcome = tokens.new_empty(tokens.shape, dtype=found.dtype) if outcome is None else outcome
            # Copied before the next call: a captured graph writes its answer to the same place each time.
            outcome[piece] = found[: piece.stop - piece.start]
        assert outcome is not None, "there are views"
        return outcome

    def block_across(self, block: Block, tokens: Tensor, rotary: Rotary) -> Tensor:
        """`block` on the sequences (B,S*T,D) of all views of a scene, T tokens each as the rotary embedding counts."""
        assert rotary.stride is not None, "across views it has one"
        flat = tokens.reshape(-1, rotary.stride, tokens.shape[-1])  # (B*S,T,D)
        held: list[Tensor] | None = None
        for piece, size in buckets(len(flat), self.largest):
            parts = self._projected(block, filled(flat, piece, size), rotary)  # (b,heads,T,d)
            if held is None:
                _, heads, count, width = parts[2].shape
                held = [part.new_empty(len(flat), count, heads, width) for part in parts]
            for whole, part in zip(held, parts):
                whole[piece] = part[: piece.stop - piece.start].transpose(1, 2)
        assert held is not None, "there are views"
        query, key, value = (part.reshape(len(tokens), -1, *part.shape[2:]).transpose(1, 2) for part in held)
        mixed = scaled_dot_product_attention(query.to(value.dtype), key.to(value.dtype), value)  # (B,heads,S*T,d)
        mixed = mixed.transpose(1, 2).reshape(len(flat), rotary.stride, -1)
        outcome = None
        for piece, size in buckets(len(flat), self.largest):
            found = self._finished(block, filled(flat, piece, size), filled(mixed, piece, size))
            outcome = flat.new_empty(flat.shape, dtype=found.dtype) if outcome is None else outcome
            outcome[piece] = found[: piece.stop - piece.start]
        assert outcome is not None
        return outcome.reshape(tokens.shape)

    def head(self, head: nn.Module, taps: list[Tensor], height: int, width: int, rays: bool) -> dict[str, Tensor]:
        """`head` on the taps (N,P,D) of some views, at most `largest`."""
        count = len(taps[0])
        ((piece, size),) = buckets(count, self.largest)
        found = self._head(head, [filled(tap, piece, size) for tap in taps], height, width, rays)
        return {name: values[:count].clone() for name, values in found.items()}


def _whole(block: Block, tokens: Tensor, rotary: Rotary | None) -> Tensor:
    return block.widened(block.attended(tokens, rotary))


def _projected(block: Block, tokens: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
    return block.attn.project(block.norm1(tokens), rotary)


def _finished(block: Block, tokens: Tensor, mixed: Tensor) -> Tensor:
    return block.widened(tokens + block.attn.proj(mixed) * block.ls1.gamma)


def _head(head: nn.Module, taps: list[Tensor], height: int, width: int, rays: bool) -> dict[str, Tensor]:
    return head(taps, height, width, rays)
