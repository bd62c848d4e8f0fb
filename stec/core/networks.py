"""The small networks around an encoder: multi-layer perceptrons, projection heads, the momentum encoder."""

import copy
from collections import OrderedDict
from collections.abc import Sequence

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


class MomentumEncoder(nn.Module):
    """A slow copy of a module: parameters follow by xi <- m xi + (1 - m) theta, without gradient.

    The Learner updates every MomentumEncoder it holds after each optimiser step, with m rising from `momentum` to 1
    along half a cosine (Grill et al. 2020). Buffers are its own: BatchNorm runs in training mode on the views it sees.
    """

    def __init__(self, online: nn.Module, *, momentum: float) -> None:
        super().__init__()
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum is {momentum}; need a value in [0, 1]")
        self.module = copy.deepcopy(online).requires_grad_(False)
        self.momentum = momentum
        self._online = (online,)  # in a tuple: not a submodule, so neither saved nor trained twice

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Tensor:
        output: Tensor = self.module(*inputs)
        return output

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """One step towards the online module. `momentum` 1 freezes, 0 copies."""
        online = self._online[0]
        torch._foreach_lerp_(list(self.module.parameters()), list(online.parameters()), 1.0 - momentum)
