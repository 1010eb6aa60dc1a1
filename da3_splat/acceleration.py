"""What makes a network answer faster without training it anew: half precision, memory layout, compiled code."""

from __future__ import annotations

from functools import partial
from typing import Literal, TypeVar

import torch
from torch import nn

from da3_splat.backbone.compiling import CompiledBlocks, CompiledHead
from da3_splat.backbone.network import DepthAnything3
from da3_splat.heads.pixel import PixelHead

Model = TypeVar("Model", bound=nn.Module)
Precision = Literal["auto", "float32", "bfloat16"]
COMPILED_VIEWS = 32  # that compiled blocks see at a time
VARIANTS = 128  # of one compiled function


def accelerate(
    model: Model, precision: Precision = "auto", compiled: bool = False, graphs: bool = False, backend: str = "inductor"
) -> Model:
    """Set every Depth Anything 3 network in `model`, on the device where it is to stay, to answer faster where no
    gradients are asked for. Returns `model`.

    precision: "bfloat16" runs the transformer under autocast, as the released code does, and keeps the tapped features
        in half the memory; sums over blocks and the dense heads stay in float32. "auto" is that on a GPU which computes
        in it, else "float32".
    compiled: blocks and dense heads through torch.compile (`backend`), in fixed counts of views (compiling.py); the
        first call of each size takes a minute or so, which pays over many scenes.
    graphs: also capture them as CUDA graphs, which pays where launching the kernels takes longer than running them: a
        few views, small networks.

    On a GPU, convolutions of the heads get the channels-last layout. Nothing here was measured on one;
    `scripts/benchmark_gpu.py` does. Calling it again replaces what was set before, but for the layout.
    """
    compiler = partial(torch.compile, dynamic=False, mode="reduce-overhead" if graphs else None, backend=backend)
    if compiled or graphs:
        from torch import _dynamo  # takes seconds to import, for nobody else

        # Each kind of block and each count of views is one more variant of the same few functions.
        _dynamo.config.recompile_limit = max(VARIANTS, _dynamo.config.recompile_limit)
    for module in model.modules():
        if isinstance(module, DepthAnything3):
            device = next(module.parameters()).device
            half = precision == "bfloat16" or (precision == "auto" and _computes_in_half(device))
            module.precision = torch.bfloat16 if half else None
            module.compiled = CompiledHead(compiler) if compiled or graphs else None
            module.backbone.compiled = CompiledBlocks(COMPILED_VIEWS, compiler) if compiled or graphs else None
            if device.type == "cuda":
                _channels_last(module.head)
        if isinstance(module, PixelHead) and next(module.parameters()).is_cuda:
            _channels_last(module)
    return model


def precision_of(model: nn.Module) -> torch.dtype:
    """What the transformers of a model compute in; of a nested model, the one that sees all views."""
    networks = [module for module in model.modules() if isinstance(module, DepthAnything3)]
    return (networks[0].precision if networks else None) or torch.float32


def _computes_in_half(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _channels_last(head: nn.Module) -> None:
    for weights in head.parameters():
        if weights.ndim == 4:
            weights.data = weights.data.contiguous(memory_format=torch.channels_last)
