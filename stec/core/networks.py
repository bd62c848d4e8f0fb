"""The small networks around an encoder: multi-layer perceptrons, projection heads, the momentum encoder."""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn


def mlp(in_features: int, hidden: Sequence[int], out_features: int, *, bias: bool = True) -> nn.Sequential:
    """Linear-BatchNorm-ReLU for each hidden width, then Linear; `bias` is the last layer's.

    Layers are called hidden_0, bn_0, relu_0, ..., output, so that rules by name (`bn`, `bias`) find them.

    >>> mlp(8, [16], 4)(torch.zeros(2, 8)).shape
    torch.Size([2, 4])
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, width in enumerate(hidden):
        layers[f"hidden_{i}"] = nn.Linear(in_features, width)
        layers[f"bn_{i}"] = nn.BatchNorm1d(width)
        layers[f"relu_{i}"] = nn.ReLU(inplace=True)
        in_features = width
    layers["output"] = nn.Linear(in_features, out_features, bias=bias)
    return nn.Sequential(layers)


def projection_head(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    """The head g of Eq. 4 as the released code builds it: Linear-BN-ReLU-Linear-BN.

    The last Linear has no bias and the last BatchNorm's bias stays 0. Normalisation to unit length is the loss's.
    """
    head = mlp(in_features, [hidden], out_features, bias=False)
    last = nn.BatchNorm1d(out_features)
    last.bias.requires_grad_(False)
    head.add_module("bn_output", last)
    return head


def standardised_head(in_features: int, hidden: Sequence[int], out_features: int) -> nn.Sequential:
    """A projector whose output has mean 0 and variance 1 over the batch: `mlp`, then BatchNorm without affine part.

    With two hidden layers this is SimSiam's projector, whose last BatchNorm has no affine part (Chen and He 2021).
    BYOL's two networks are `mlp(f, [4096], 256, bias=False)`, VICReg's expander and Barlow Twins' projector
    `mlp(f, [8192, 8192], 8192, bias=False)`, SimSiam's predictor `mlp(2048, [512], 2048)`.

    >>> z = standardised_head(8, [16, 16], 4)(torch.randn(64, 8)).detach()
    >>> z.var(correction=0).round(decimals=2)
    tensor(1.)
    """
    head = mlp(in_features, hidden, out_features, bias=False)
    head.add_module("bn_output", nn.BatchNorm1d(out_features, affine=False))
    return head


class MomentumEncoder(nn.Module):
    """A slow copy of a module: parameters follow by xi <- m xi + (1 - m) theta, without gradient.

    The Learner updates every MomentumEncoder it holds after each optimiser step, with m rising from `momentum` to 1
    along half a cosine (Grill et al. 2020). Parameters alone are averaged. Buffers, which are BatchNorm's running
    statistics, are `"own"`: they follow the views that this copy sees in training mode, as in BYOL's published code.
    Or they are `"copied"` from the online module at every update. It makes a difference in evaluation mode only: in
    training mode BatchNorm normalises by the views at hand either way. The copy starts equal to the online module.
    """

    def __init__(self, online: nn.Module, *, momentum: float, buffers: Literal["own", "copied"] = "own") -> None:
        super().__init__()
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum is {momentum}; need a value in [0, 1]")
        if buffers not in ("own", "copied"):
            raise ValueError(f"buffers is {buffers!r}; use 'own' or 'copied'")
        self.module = copy.deepcopy(online).requires_grad_(False)
        self.momentum = momentum
        self.buffer_rule = buffers
        self._online = (online,)  # in a tuple: not a submodule, so neither saved nor trained twice

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        """What the slow copy makes of the inputs: a tensor, or a tuple of tensors, as the online module does."""
        return self.module(*inputs)

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """One step towards the online module. `momentum` 1 freezes the parameters, 0 copies them."""
        online = self._online[0]
        mine: list[Tensor] = list(self.module.parameters())
        theirs: list[Tensor] = list(online.parameters())
        if mine:  # the multi-tensor kernels take no empty list
            torch._foreach_lerp_(mine, theirs, 1.0 - momentum)
        if self.buffer_rule == "copied" and (kept := list(self.module.buffers())):
            torch._foreach_copy_(kept, list(online.buffers()))
