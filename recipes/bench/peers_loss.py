"""NT-Xent of N pairs, forward and backward: this package's, the libraries', and plain cross-entropy on all logits."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from recipes.bench.vision import plain_nt_xent
from stec.core.losses import nt_xent

TEMPERATURE = 0.5


def _lightly() -> Callable[[Tensor, Tensor], Tensor]:
    found: Callable[[Tensor, Tensor], Tensor] = importlib.import_module("lightly.loss").NTXentLoss(TEMPERATURE)
    return found


def _metric_learning() -> Callable[[Tensor, Tensor], Tensor]:
    losses = importlib.import_module("pytorch_metric_learning.losses")
    found: Callable[[Tensor, Tensor], Tensor] = losses.SelfSupervisedLoss(losses.NTXentLoss(temperature=TEMPERATURE))
    return found


LOSSES: dict[str, Callable[[], Callable[[Tensor, Tensor], Tensor]]] = {
    "stec": lambda: lambda z, z_prime: nt_xent(z, z_prime, TEMPERATURE),
    "torch": lambda: lambda z, z_prime: plain_nt_xent(z, z_prime, TEMPERATURE),
    "lightly": _lightly,
    "pytorch-metric-learning": _metric_learning,
}


class LossWork:
    """Loss and gradient of N pairs a piece."""

    lead = 0

    def __init__(self, arm: str, pairs: int, features: int) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        loss = LOSSES[arm]()
        generator = torch.Generator().manual_seed(0)
        small = torch.randn(2, 8, features, generator=generator).to(device).requires_grad_().unbind()
        value = loss(*small)
        value.backward()  # what a first call alone takes
        self.loss, self.units = loss, pairs
        self.both = torch.randn(2, pairs, features, generator=generator).to(device).requires_grad_()
        self.facts: dict[str, Any] = {"nt_xent": value.item(), "device": device.type}

    def run(self) -> None:
        """Forward and backward."""
        self.loss(*self.both.unbind()).backward()
        self.both.grad = None
