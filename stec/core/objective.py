"""The one interface of inverse models, and the objective that adds them up (Eq. 2 of the paper)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stec.core.actions import ViewPair


class Features(NamedTuple):
    """What an encoder makes of the two views of a pair: a tensor or a tuple of tensors each, batch first."""

    x: Any
    x_prime: Any


class InverseModel(nn.Module, ABC):
    """q(a | x, x'): the surprise, in nats, of the efference copy under the action read off two representations.

    `online` are the encoder's features of x and x'; `target` the momentum encoder's, without gradient, or None unless
    a model of the objective sets `needs_target`. The loss is a scalar, the mean over the local batch, scaled so that
    its mean over processes is the loss of the joined batch.
    """

    needs_target: ClassVar[bool] = False

    @abstractmethod
    def forward(self, online: Features, target: Features | None, pair: ViewPair) -> Float[Tensor, ""]: ...


class STECObjective(nn.Module):
    """Eq. 2: L = L_id + lambda_manip L_manip + ..., a named and weighted sum of inverse models.

    Raises ValueError where the names of models and weights differ, or a model is called "loss".
    """

    def __init__(self, models: Mapping[str, InverseModel], weights: Mapping[str, float]) -> None:
        super().__init__()
        if set(models) != set(weights) or {"loss", "online"} & set(models) or not models:
            raise ValueError(
                f"models {sorted(models)} and weights {sorted(weights)} need the same names, at least one; "
                "'loss' is the name of their sum, 'online' of the probe's accuracy"
            )
        self.models = nn.ModuleDict(models)
        self.weights = dict(weights)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.weights)

    @property
    def needs_target(self) -> bool:
        return any(model.needs_target for model in self.models.values())

    def forward(self, online: Features, target: Features | None, pair: ViewPair) -> dict[str, Float[Tensor, ""]]:
        """Every term in nats under its name, and their weighted sum as "loss"."""
        terms = {name: model(online, target, pair) for name, model in self.models.items()}
        terms["loss"] = torch.stack([self.weights[name] * terms[name] for name in self.weights]).sum()
        return terms


def encode(encoder: Callable[[Any], Any], pair: ViewPair) -> Features:
    """Features of both views from one pass over 2b of them, so that BatchNorm sees both (as SimCLR does).

    An encoder gives a tensor, or a tuple of tensors, with the batch first. A pair without x' is encoded alone.
    """
    if pair.x_prime is None:
        return Features(encoder(pair.x), None)
    both = encoder(torch.cat((pair.x, pair.x_prime)))
    if isinstance(both, Tensor):
        return Features(*both.chunk(2))
    halves = [part.chunk(2) for part in both]
    return Features(tuple(half[0] for half in halves), tuple(half[1] for half in halves))
