"""The one interface of inverse models, and the objective that adds them up (Eq. 2 of the paper)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stec.core.actions import ViewPair


class Features(NamedTuple):
    """What an encoder makes of the views of a pair: a tensor or a tuple of tensors each, batch first."""

    x: Any
    x_prime: Any
    more: tuple[Any, ...] = ()  # of `pair.more.views`, in their order; of the large ones alone where a target made them

    @property
    def pair(self) -> tuple[Any, ...]:
        """x and x', or x alone where a pair has no x'."""
        return (self.x,) if self.x_prime is None else (self.x, self.x_prime)


class InverseModel(nn.Module, ABC):
    """q(a | x, x'): the surprise, in nats, of the efference copy under the action read off two representations.

    `online` are the encoder's features of x and x'; `target` the momentum encoder's, without gradient, or None unless
    a model of the objective sets `needs_target`. The loss is a scalar, the mean over the local batch, scaled so that
    its mean over processes is the loss of the joined batch. A model that knows more terms of Eq. 2 than its own, such
    as a regulariser of the embedding that it made, names them in `further` and returns a scalar for each after its own.
    """

    needs_target: bool = False
    further: tuple[str, ...] = ()

    @abstractmethod
    def forward(
        self, online: Features, target: Features | None, pair: ViewPair
    ) -> Float[Tensor, ""] | tuple[Float[Tensor, ""], ...]: ...


class STECObjective(nn.Module):
    """Eq. 2: L = L_id + lambda_manip L_manip + ..., a named and weighted sum of inverse models.

    Raises ValueError where the names of models and weights differ, or a model is called "loss".
    """

    def __init__(self, models: Mapping[str, InverseModel], weights: Mapping[str, float]) -> None:
        super().__init__()
        names = [term for name, model in models.items() for term in [name, *model.further]]
        if sorted(names) != sorted(weights) or {"loss", "online"} & set(names) or not names:
            raise ValueError(
                f"models give the terms {sorted(names)}, weights are {sorted(weights)}: they need the same names, each "
                "once and at least one; 'loss' is the name of their sum, 'online' of the probe's accuracy"
            )
        self.models = nn.ModuleDict(models)
        self.weights = {name: weights[name] for name in names}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.weights)

    @property
    def needs_target(self) -> bool:
        return any(model.needs_target for model in self.models.values())

    def forward(self, online: Features, target: Features | None, pair: ViewPair) -> dict[str, Float[Tensor, ""]]:
        """Every term in nats under its name, and their weighted sum as "loss"."""
        values: list[Tensor] = []
        for model in self.models.values():
            found = model(online, target, pair)
            values.extend([found] if isinstance(found, Tensor) else found)
        terms = dict(zip(self.weights, values))
        terms["loss"] = torch.stack([self.weights[name] * terms[name] for name in self.weights]).sum()
        return terms


def encode(encoder: Callable[[Any], Any], pair: ViewPair, *, large_only: bool = False) -> Features:
    """Features of both views from one pass over 2b of them, so that BatchNorm sees both (as SimCLR does).

    An encoder gives a tensor, or a tuple of tensors, with the batch first. A pair without x' is encoded alone. Further
    large views join the pass of the pair, small ones share another, unless `large_only` (a target sees no others).
    """
    if pair.x_prime is None:
        return Features(encoder(pair.x), None)
    views = [pair.x, pair.x_prime, *(pair.more.views if pair.more else ())]
    large = pair.more.large if pair.more else 2
    features = _in_one_pass(encoder, views[:large])
    if not large_only and len(views) > large:
        features += _in_one_pass(encoder, views[large:])
    return Features(features[0], features[1], tuple(features[2:]))


def _in_one_pass(encoder: Callable[[Any], Any], views: Sequence[Any]) -> list[Any]:
    """Features of views of one shape, encoded together."""
    together = encoder(torch.cat(list(views)))
    if isinstance(together, Tensor):
        return list(together.chunk(len(views)))
    parts = [part.chunk(len(views)) for part in together]
    return [tuple(part[i] for part in parts) for i in range(len(views))]
