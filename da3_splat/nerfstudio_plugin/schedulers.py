"""A learning-rate schedule that leaves plain floats in checkpoints (stock ones leave NumPy's, which torch refuses)."""

from __future__ import annotations

from dataclasses import dataclass, field

from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass
class DecayConfig(SchedulerConfig):
    """Exponential decay over the whole run."""

    _target: type = field(default_factory=lambda: Decay)
    final_fraction: float = 0.01
    """learning rate at the end, as a share of the first"""
    steps: int | None = None
    """steps to the end; None: to the end of the run, steps before a resume included"""


class Decay(Scheduler):
    config: DecayConfig

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LambdaLR:
        steps = max(1, self.config.steps or 1)
        return LambdaLR(optimizer, lambda step: self.config.final_fraction ** min(1.0, step / steps))
