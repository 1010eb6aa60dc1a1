"""What a training will cost, from a dry run at full size on the meta device: shapes without numbers, on any machine."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from da3_splat.backbone import create_single
from da3_splat.backbone.vision_transformer import PATCH

STATE_BYTES = 20  # of a parameter: float32 value, gradient, two moments of AdamW, average
GIB = 2**30


@dataclass(frozen=True)
class DryRun:
    """One batch of `count` scenes of `views` pictures, forward. Operations are multiplications and additions; bytes are
    those of half precision."""

    tokens: int
    parameters: dict[str, int]
    transformer_operations: float
    head_operations: float
    saved_bytes: int
    """activations kept for the way back"""
    block_bytes: int
    """of them, inside one transformer block: with checkpointing, one block's are kept at a time"""
    block_parameters: int


def dry_run(preset: str, count: int, views: int, height: int, width: int, checkpointing: bool) -> DryRun:
    """Forward through a network of a preset on the meta device, keeping books of operations and activations.

    Attention counts as a fused kernel that keeps no scores.
    """
    with torch.device("meta"):
        network = create_single(preset).to(torch.bfloat16).train()
        images = torch.empty(count, views, 3, height, width, dtype=torch.bfloat16)
    parts: dict[str, torch.nn.Module | None] = {
        "transformer": network.backbone,
        "dense heads": network.head,
        "camera head": network.cam_dec,
    }
    parts["camera encoder"] = network.cam_enc
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items() if part is not None}
    network.backbone.checkpointing = checkpointing
    length = 1 + height * width // PATCH**2
    lengths = (length, views * length)
    books = _Books(network, lengths)
    with books, FlopCounterMode(display=False) as transformer:
        features = network.encode(images, reference_view="first")
    with books, FlopCounterMode(display=False) as heads:
        network.maps(features, rays=network.predicts_cameras)
        if network.predicts_cameras:
            network.camera_encoding(features)
    block, inside = network.backbone.blocks[-1], _Books(network, lengths)
    tokens = count * views * length
    with inside:
        block(torch.empty(count, tokens // count, network.backbone.dim, dtype=torch.bfloat16, device="meta"))
    return DryRun(
        tokens=tokens,
        parameters=parameters,
        transformer_operations=transformer.get_total_flops(),
        head_operations=heads.get_total_flops(),
        saved_bytes=books.bytes,
        block_bytes=inside.bytes,
        block_parameters=sum(p.numel() for p in block.parameters()),
    )


class _Books(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes of what autograd keeps, each storage once; parameters and scores of attention between `lengths`
    tokens are left out."""

    def __init__(self, module: torch.nn.Module, lengths: tuple[int, ...]):
        self.bytes, self.lengths = 0, lengths
        self.seen: dict = {}
        self.parameters = {p.untyped_storage()._cdata for p in module.parameters()}
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        scores = tensor.ndim >= 3 and tensor.shape[-1] == tensor.shape[-2] and tensor.shape[-1] in self.lengths
        place = tensor.untyped_storage()._cdata
        if not scores and place not in self.parameters and place not in self.seen:
            self.seen[place] = tensor  # held, so that its place is not given away
            self.bytes += prod(tensor.shape) * tensor.element_size()
        return tensor


@dataclass(frozen=True)
class Machine:
    """What is assumed of the hardware. None of it is measured here."""

    peak_tflops: float = 989.0
    """dense bfloat16 of an H100"""
    utilisation: float = 0.35
    """share of the peak that the step reaches"""
    memory_gib: float = 80.0
    spare_gib: float = 8.0
    """for the framework, buffers of communication and fragmentation"""
    bandwidth_gb: float = 40.0
    """GB/s in and out of each GPU, to the others"""
    pictures_per_core: float = 60.0
    """pictures a second that a core of the host reads, decodes and scales"""
    cores_per_gpu: int = 12


@dataclass(frozen=True)
class Cost:
    """A step on one of `gpus` GPUs, calculated."""

    gpus: int
    strategy: str
    accumulate: int
    memory_gib: float
    fits: bool
    compute_seconds: float
    communication_seconds: float
    loading_seconds: float
    hours: float
    bottleneck: str


def cost(
    run: DryRun,
    gpus: int,
    strategy: str,
    accumulate: int,
    steps: int,
    pictures: int,
    checkpointing: bool,
    machine: Machine,
) -> Cost:
    """What `steps` steps cost, each of `accumulate` batches of `run` and `pictures` pictures on every GPU.

    The way back costs twice the way there, and checkpointing one more way through the transformer. Communication: ddp
    sums float32 gradients once a step (2 passes over them), fsdp gathers float32 parameters on both ways and scatters
    gradients, for every batch. Computing, communicating and loading overlap fully, so the longest decides.
    """
    parameters = sum(run.parameters.values())
    again = run.transformer_operations if checkpointing else 0
    operations = accumulate * (3 * (run.transformer_operations + run.head_operations) + again)
    compute = operations / (machine.peak_tflops * 1e12 * machine.utilisation)
    sharded = strategy == "fsdp" and gpus > 1
    others = (gpus - 1) / gpus
    passes = 3 * accumulate if sharded else 2
    communication = passes * 4 * parameters * others / (machine.bandwidth_gb * 1e9)
    rest = parameters - run.parameters["transformer"]
    # A shard, and for a moment the whole block and all that is in no block, as values and gradients.
    state: float = STATE_BYTES * parameters
    if sharded:
        state = state / gpus + 8 * (rest + run.block_parameters)
    elif gpus > 1:
        state += 4 * parameters  # ddp sums gradients in buckets of its own
    activations = run.saved_bytes + (run.block_bytes if checkpointing else 0)
    memory = (state + activations) / GIB + machine.spare_gib
    loading = accumulate * pictures / (machine.pictures_per_core * machine.cores_per_gpu)
    times = {"computing": compute, "communication": communication, "loading pictures": loading}
    bottleneck = max(times, key=lambda name: times[name])
    return Cost(
        gpus, strategy, accumulate, memory, memory <= machine.memory_gib, compute, communication, loading,
        times[bottleneck] * steps / 3600, bottleneck,
    )  # fmt: skip
