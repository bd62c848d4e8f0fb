"""Heads of one shape on one set of features, stacked: they share one matrix product, and learn as each would alone."""

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

Layers = list[tuple[Tensor, Tensor]]  # weight (in, out) and bias (out) of each


class HeadGroup:
    """Stacked heads (h of them) on the f columns of one set of features; `labels` names what each of them reads."""

    def __init__(
        self,
        labels: Mapping[str, str],
        features: str,
        *,
        f: int,
        hidden: int | None,
        classes: int,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.features, self.hidden = features, hidden
        self.names, self.labels = list(labels), list(labels.values())
        h = len(labels)
        widths = (f, classes) if hidden is None else (f, hidden, classes)
        self.weights, self.biases = [], []
        for inputs, outputs in pairwise(widths):
            weight = torch.randn(inputs, outputs, generator=generator) * math.sqrt(2 / (inputs + outputs))
            # Heads of one shape start alike, so that none depends on which others there are.
            self.weights.append(weight.repeat(h, 1, 1).to(device).requires_grad_())
            self.biases.append(torch.zeros(h, 1, outputs, device=device).requires_grad_())
        # The first layer is one product for all heads: (b, f) @ (f, h * out).
        first = self.weights[0].detach().permute(1, 0, 2).reshape(f, -1).contiguous()
        self.weights[0] = first.requires_grad_()
        self.parameters = self.weights + self.biases
        self.sums = torch.zeros(2, h, device=device)  # of the epoch: nats, frames

    def loss(self, inputs: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> Tensor:
        """The sum of the heads' mean losses in nats; a head without a labelled frame in the batch adds 0."""
        h = len(self.names)
        x = inputs[self.features] @ self.weights[0]
        x = x.view(len(x), h, -1).transpose(0, 1) + self.biases[0]  # (h, b, out)
        if self.hidden is not None:
            x = torch.baddbmm(self.biases[1], x.relu(), self.weights[1])
        labels = torch.stack([truth[name] for name in self.labels])  # (h, b)
        nats = F.cross_entropy(x.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="none").view_as(labels)
        sums, counts = nats.sum(dim=1), (labels != -1).sum(dim=1)
        self.sums += torch.stack((sums.detach(), counts))
        return (sums / counts.clamp(min=1)).sum()

    def epoch_losses(self) -> list[tuple[str, float]]:
        """The mean loss of each head since the last call, nats."""
        means = (self.sums[0] / self.sums[1]).tolist()
        self.sums.zero_()
        return list(zip(self.names, means))

    def layers(self) -> Iterator[tuple[str, Layers]]:
        """The weights of each head by itself."""
        h = len(self.names)
        first = self.weights[0].detach().view(len(self.weights[0]), h, -1).transpose(0, 1)
        weights = [first, *(weight.detach() for weight in self.weights[1:])]
        for i, name in enumerate(self.names):
            yield name, [(weight[i].clone(), bias.detach()[i, 0].clone()) for weight, bias in zip(weights, self.biases)]
