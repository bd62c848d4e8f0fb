"""A training step on speech: CPC as this package trains it, and a plain loop of Greedy InfoMax's loss beside it.

One batch of ready waveforms for all, and Adam. The same encoder for "stec" and "greedy-infomax", both in float32 with
ten negatives; "stec-default" is the preset `cpc` as it stands, which takes every frame of eight windows as candidates.
"""

import dataclasses
from typing import Any

import torch

from recipes.audio import networks
from recipes.audio.measure import device
from recipes.audio.presets import preset
from recipes.audio.run import precision
from recipes.bench.peers_step import count
from recipes.bench.speech_peers import PermutedInfoNCE, pair_of
from recipes.bench.speech_step import train
from stec.core.memory import keep_freed_memory
from stec.core.objective import Features


class SpeechWork:
    """A training step a piece."""

    lead = 0

    def __init__(self, arm: str, batch: int, window: int, channels: int, compiled: bool, keep: bool) -> None:
        torch.manual_seed(0)
        where = device()
        if keep and where.type == "cpu":
            keep_freed_memory()  # as recipes.run.fit does
        config = preset("cpc" if arm == "stec-default" else "gim")
        if arm != "stec-default":
            config = dataclasses.replace(config, precision="32-true")
        config = dataclasses.replace(config, channels=channels, compiled=compiled and arm == "stec-default")
        generator = torch.Generator().manual_seed(0)
        pair = pair_of(0.1 * torch.randn(batch, window, generator=generator).to(where))
        encoder = networks.encoder(config).to(where)
        loss: torch.nn.Module
        if arm == "greedy-infomax":
            loss = PermutedInfoNCE(
                config.context_dim, config.channels, steps=config.steps, negatives=config.samples or 10
            ).to(where)
            self.step = train(config, pair, lambda f: loss(*f.x), encoder=encoder, loss=loss)
        else:
            loss = networks.objective(config, 0).to(where)
            self.step = train(config, pair, self._loss_of(loss, pair), encoder=encoder, loss=loss)
        self.units = batch
        self.facts: dict[str, Any] = {
            "parameters of the encoder": count(encoder),
            "parameters of the predictor": count(loss),
            "precision": precision(config),
            "compiled": config.compiled,
            "device": where.type,
        }

    @staticmethod
    def _loss_of(objective: torch.nn.Module, pair: Any) -> Any:
        def loss(features: Features) -> torch.Tensor:
            value: torch.Tensor = objective(features, None, pair)["loss"]
            return value

        return loss

    def run(self) -> None:
        """Forward, backward, update."""
        self.step()
