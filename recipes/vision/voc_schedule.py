"""How a detector or segmenter is trained: SGD whose rate warms up and falls in steps (Goyal et al. 2017)."""

import dataclasses
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclasses.dataclass(frozen=True)
class Schedule:
    """SGD with momentum 0.9: how long, how fast, how regularised."""

    steps: int
    batch_size: int
    lr: float  # at its peak
    warmup_steps: int  # from a thousandth of the rate, linearly
    drops: tuple[int, ...]  # the steps at which the rate falls to a tenth
    weight_decay: float = 1e-4  # of all but BatchNorm
    precise_bn: int = 200  # batches that BatchNorm's statistics are measured on after training; 0 keeps running means
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    workers: int = 8  # processes that decode images
    check_every: int = 20  # steps between two reads of the losses: reading waits for the device
    save_every: int = 1000  # steps between two checkpoints

    def check(self) -> None:
        """ValueError where the numbers make no sense."""
        for name in ("steps", "check_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; need at least 1")
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(f"{self.warmup_steps} warm-up steps of {self.steps}; lower --warmup-steps or train longer")
        if not self.lr > 0 or self.weight_decay < 0 or self.precise_bn < 0 or self.workers < 0:
            raise ValueError("lr must be positive; weight_decay, precise_bn and workers must not be negative")

    def factor(self, step: int) -> float:
        """The share of the peak rate at a step, from 0.

        >>> law = Schedule(steps=100, batch_size=2, lr=0.02, warmup_steps=10, drops=(50, 80))
        >>> [round(law.factor(step), 4) for step in (0, 5, 10, 49, 50, 80)]
        [0.001, 0.5005, 1.0, 1.0, 0.1, 0.01]
        """
        warm = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        return float((0.001 * (1 - warm) + warm) * 0.1 ** sum(step >= drop for drop in self.drops))


def sgd(model: nn.Module, schedule: Schedule) -> torch.optim.SGD:
    """The optimiser, with weight decay on all but BatchNorm's parameters, as in detectron2."""
    norms = {id(p) for m in model.modules() if isinstance(m, _BatchNorm) for p in m.parameters(recurse=False)}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in norms], "weight_decay": schedule.weight_decay},
        {"params": [p for p in trained if id(p) in norms], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=schedule.lr, momentum=0.9)
