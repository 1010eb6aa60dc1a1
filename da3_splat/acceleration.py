"""What makes a network faster on a GPU without training it anew: half precision, memory layout, compiled code."""

from __future__ import annotations

from functools import partial
from typing import Literal, TypeVar

import torch
from torch import nn

from da3_splat.backbone.compiling import CompiledNetwork
from da3_splat.backbone.network import DepthAnything3, views_per_chunk
from da3_splat.heads.pixel import PixelHead

Model = TypeVar("Model", bound=nn.Module)
Precision = Literal["float32", "bfloat16"]
VIEWS_PER_PIECE = 32  # that compiled blocks see at a time
VARIANTS = 128


def accelerate(
    model: Model, precision: Precision = "bfloat16", compiled: bool = False, graphs: bool = False, backend="inductor"
) -> Model:
    """Set every Depth Anything 3 network in `model` to run faster, where no gradients are asked for; returns `model`.

    precision: "bfloat16" runs the transformer under autocast, as the released code does, and keeps the tapped features
        in half the memory; its residual stream and the heads stay in float32.
    compiled: blocks and dense heads through torch.compile (`backend`), in fixed counts of views (compiling.py); the
        first call of each size takes a minute or so, which pays over many scenes.
    graphs: also capture them as CUDA graphs, which pays where launching the kernels takes longer than running them: a
        few views, small networks.

    Convolutions get the channels-last layout on a GPU. Nothing here was measured on one; `scripts/benchmark_gpu.py`
    does. Calling it again replaces what was set before.
    """
    half = torch.bfloat16 if precision == "bfloat16" else None
    mode = "reduce-overhead" if graphs else None
    if compiled or graphs:
        from torch import _dynamo  # takes seconds to import, for nobody else

        # Each kind of block and each count of views is one more variant of the same few functions.
        _dynamo.config.recompile_limit = max(VARIANTS, _dynamo.config.recompile_limit)
    compile = partial(torch.compile, dynamic=False, mode=mode, backend=backend)
    for module in model.modules():
        if isinstance(module, DepthAnything3):
            device = next(module.parameters()).device
            module.precision = half
            module.compiled = module.backbone.compiled = None
            if compiled or graphs:
                module.compiled = CompiledNetwork(views_per_chunk(device), compile)
                module.backbone.compiled = CompiledNetwork(VIEWS_PER_PIECE, compile)
            if device.type == "cuda":
                _channels_last(module.head)
        if isinstance(module, PixelHead) and next(module.parameters()).is_cuda:
            _channels_last(module)
    return model


def _channels_last(head: nn.Module) -> None:
    for weights in head.parameters():
        if weights.ndim == 4:
            weights.data = weights.data.contiguous(memory_format=torch.channels_last)
