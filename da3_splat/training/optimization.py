"""What every training here shares: the state of a run, one step of it, and its checkpoints.

An objective is a module whose forward takes a batch and returns (loss, parts as numbers). Lightning Fabric gives it
processes, devices and precision; on two CPU cores and on many GPUs the same lines run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from da3_splat.backbone.attention import Block
from da3_splat.io.checkpoints import read_checkpoint, write_checkpoint
from da3_splat.types import Record


@dataclass(frozen=True)
class OptimizationConfig:
    """AdamW with warm-up and cosine decay, gradient clipping, and averaged weights."""

    steps: int = 5000
    """steps of the whole run: the end of the cosine"""
    warmup_steps: int = 200
    rate: float = 1e-3
    """learning rate after the warm-up"""
    backbone_rate: float = 0.0
    """that of the backbone: where a Gaussian head is trained, 0 freezes it; where geometry is, 0 means `rate`"""
    final_fraction: float = 0.02
    """learning rate at the end, as a share of the highest"""
    weight_decay: float = 0.02
    clip: float = 1.0
    """largest norm of the gradient"""
    accumulate: int = 1
    """batches whose gradients are averaged into one step"""
    average_decay: float = 0.998
    """of the averaged weights, which are what a run is for"""


def launch(precision: str = "32-true", strategy: Literal["ddp", "fsdp"] = "ddp") -> Fabric:
    """This process's part of a run: alone, or one of those that torchrun started (gloo on CPUs, NCCL on GPUs).

    With several processes, each holds all of the network (ddp), or parameters, gradients and optimizer are shared out
    among all of them (fsdp, PyTorch's second).
    """
    ranks, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    chosen: str | Strategy = "auto"
    if ranks > 1 and strategy == "ddp":
        # Some batches leave parts idle: the camera encoder learns only where cameras are given.
        chosen = DDPStrategy(find_unused_parameters=True)
    elif ranks > 1:
        chosen = ModelParallelStrategy(_share_out, data_parallel_size=ranks, tensor_parallel_size=1)
    named: Any = precision  # Fabric checks it; the type that lists the names is private
    fabric = Fabric(devices=local, num_nodes=max(1, ranks // local), strategy=chosen, precision=named)
    fabric.launch()
    return fabric


def _share_out(module: nn.Module, mesh) -> nn.Module:
    """Shard the blocks of the transformers one by one, so that only one at a time is whole, then all the rest."""
    mesh = mesh["data_parallel"]
    for part in [part for part in module.modules() if isinstance(part, Block)]:
        fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def rate_factor(step: int, config: OptimizationConfig) -> float:
    """Share of the highest learning rate at `step`: linear warm-up, then a cosine to `final_fraction`."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, config.steps))))
    return warm * (config.final_fraction + (1 - config.final_fraction) * cosine)


class _Sealed:
    """A batch that Fabric hands on as it is: it would convert the tensors of records, and cannot (they are frozen)."""

    def __init__(self, batch: Record):
        self.batch = batch


class _Unsealing(nn.Module):
    def __init__(self, objective: nn.Module):
        super().__init__()
        self.objective = objective

    def forward(self, sealed: _Sealed):
        return self.objective(sealed.batch)


class TrainingState:
    """An objective, its optimizer, averaged weights and counters: all that a checkpoint must bring back."""

    def __init__(self, fabric: Fabric, objective: nn.Module, groups: Mapping[float, Sequence[nn.Parameter]], config):
        """`groups` maps learning rates to the parameters that learn so; all others of the objective are left alone."""
        self.fabric, self.config = fabric, config
        self.module = objective
        rates = {id(p): rate for rate, chosen in groups.items() if rate > 0 for p in chosen}
        named = {name: rates[id(p)] for name, p in objective.named_parameters() if id(p) in rates}
        for name, parameter in objective.named_parameters():
            parameter.requires_grad_(name in named)
        # Sharding puts other parameters in the place of these, so the optimizer comes after.
        self.objective = fabric.setup_module(_Unsealing(objective))
        self.learned = {name: p for name, p in objective.named_parameters() if name in named}
        parameters = [
            {"params": [self.learned[name] for name in named if named[name] == rate], "peak": rate, "lr": rate}
            for rate in dict.fromkeys(named.values())
        ]
        optimizer = torch.optim.AdamW(parameters, weight_decay=config.weight_decay, betas=(0.9, 0.98))
        self.optimizer: Any = fabric.setup_optimizers(optimizer)  # its own wrapper
        self.average = {name: p.detach().clone() for name, p in self.learned.items()}
        self.step = self.skipped = 0

    def advance(self, batches: Sequence[Record]) -> dict[str, float]:
        """One optimizer step on the mean loss of `batches`; the parts of the loss as numbers, each the
        mean over the batches that have it.

        A step whose gradient is not finite changes nothing and is counted in `skipped`, on all ranks alike.
        """
        factor = rate_factor(self.step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        seen: dict[str, list[float]] = {}
        self.optimizer.zero_grad()
        for index, batch in enumerate(batches):
            with self.fabric.no_backward_sync(self.objective, enabled=index + 1 < len(batches)):
                loss, parts = self.objective(_Sealed(batch.to(self.fabric.device, non_blocking=True)))
                self.fabric.backward(loss / len(batches))
            for name, value in parts.items():
                seen.setdefault(name, []).append(value)
        norm = nn.utils.clip_grad_norm_(list(self.learned.values()), self.config.clip)
        if bool(torch.isfinite(_whole(norm))):
            self.optimizer.step()
        else:
            self.skipped += 1
        # Young averages follow fast, so that they do not remember the first weights for long.
        decay = min(self.config.average_decay, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            shares = [[_own(p) for p in held.values()] for held in (self.average, self.learned)]
            torch._foreach_lerp_(shares[0], shares[1], 1 - decay)
        self.step += 1
        return {name: sum(values) / len(values) for name, values in seen.items()}

    def averaged(self) -> dict[str, Tensor]:
        """State of the objective with the averaged weights in place of the last ones; all ranks must call."""
        return {name: _whole(value) for name, value in {**self.module.state_dict(), **self.average}.items()}

    def state_dict(self, sampler: Mapping[str, int]) -> dict[str, object]:
        """All that `load_state_dict` needs, for any strategy and number of processes: whole tensors and plain values.

        All ranks must call; only rank 0 gets the tensors, so that a node does not hold eight copies of them.
        """
        gathered = self.fabric.all_gather(torch.get_rng_state())
        assert isinstance(gathered, Tensor), "a tensor is gathered as one"
        randomness = gathered.reshape(self.fabric.world_size, -1).cpu()
        keep = self.fabric.global_rank == 0
        optimizer = self.optimizer.state_dict()
        return {
            "step": self.step,
            "skipped": self.skipped,
            "learned": {name: _kept(p.detach(), keep) for name, p in self.learned.items()},
            "average": {name: _kept(p, keep) for name, p in self.average.items()},
            "optimizer": {
                "param_groups": optimizer["param_groups"],
                "state": {
                    index: {name: _kept(value, keep) for name, value in held.items()}
                    for index, held in optimizer["state"].items()
                },
            },
            "sampler": dict(sampler),
            "randomness": randomness,
        }

    def load_state_dict(self, state: dict, where: str = "checkpoint") -> dict[str, int]:
        """Go on from a state; returns the sampler's. ValueError where it is of another model."""
        missing = {"step", "skipped", "learned", "average", "optimizer", "sampler", "randomness"} - state.keys()
        if missing:
            raise ValueError(f"{where}: no checkpoint of a training; it lacks {', '.join(sorted(missing))}")
        if state["learned"].keys() != self.learned.keys():
            raise ValueError(f"{where}: holds other parameters than this training learns")
        with torch.no_grad():
            for name, value in state["learned"].items():
                self.learned[name].copy_(_shared(value, self.learned[name]))
                self.average[name].copy_(_shared(state["average"][name], self.learned[name]))
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        held = {
            index: {
                name: value if value.ndim == 0 else _shared(value, parameters[index]) for name, value in one.items()
            }
            for index, one in state["optimizer"]["state"].items()
        }
        self.optimizer.load_state_dict({**state["optimizer"], "state": held})
        self.step, self.skipped = state["step"], state["skipped"]
        if len(state["randomness"]) == self.fabric.world_size:
            torch.set_rng_state(state["randomness"][self.fabric.global_rank])
        return state["sampler"]

    def save(self, path: Path, sampler: Mapping[str, int]) -> None:
        """Write a checkpoint beside its place and rename it. All ranks call; rank 0 writes."""
        state = self.state_dict(sampler)
        if self.fabric.global_rank == 0:
            write_checkpoint(path, state)

    def load(self, path: Path) -> dict[str, int]:
        """Go on from a checkpoint; returns the sampler's state. ValueError where it is of another model."""
        return self.load_state_dict(read_checkpoint(path), str(path))


def _own(tensor: Tensor) -> Tensor:
    """This rank's share of a sharded tensor; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, which all ranks must ask for; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _kept(tensor: Tensor, keep: bool) -> Tensor | None:
    whole = _whole(tensor)
    if not keep:
        return None
    return whole.cpu() if isinstance(tensor, DTensor) else whole


def _shared(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor sharded as `like` is."""
    whole = whole.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements) if isinstance(like, DTensor) else whole
