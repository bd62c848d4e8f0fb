"""Encoder, objective and views of a Config: the one place where its words become modules."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from recipes.audio.presets import Config
from stec.audio.encoders import PADDINGS, CPCEncoder
from stec.core import distributed
from stec.core.actions import ViewPair
from stec.core.networks import projection_head
from stec.core.objective import Features, InverseModel, STECObjective
from stec.core.sequence import (
    CPC,
    FrameIdentity,
    LinearPredictor,
    MLPPredictor,
    PooledIdentity,
    Predictor,
    SwitchIdentity,
    TransformerPredictor,
)


def encoder(config: Config) -> CPCEncoder:
    """The network whose context and latents are kept."""
    return CPCEncoder(
        channels=config.channels,
        context_dim=config.context_dim,
        paddings=PADDINGS[config.paddings],
        normalisation=config.normalisation,
        recurrence=config.recurrence,
        mean=config.input_mean,
        std=config.input_std,
    )


def objective(config: Config, classes: int) -> STECObjective:
    """Eq. 2 as the configuration weighs it; or the supervised baseline over that many phones."""
    if config.supervised:
        return STECObjective({"phones": FramePhones(config.context_dim, classes)}, {"phones": 1.0})
    models: dict[str, InverseModel] = {"time_sensitive": time_sensitive(config)}
    weights = {"time_sensitive": config.lambda_time_sensitive}
    if config.time_insensitive != "none":
        models["time_insensitive"] = time_insensitive(config)
        weights["time_insensitive"] = config.lambda_time_insensitive
    return STECObjective(models, weights)


def time_sensitive(config: Config) -> CPC:
    """CPC with the predictor and the negatives that the configuration names."""
    c, z, scale = config.context_dim, config.channels, 1.0 if config.score == "dot" else 1 / config.channels
    predictor: Predictor
    if config.predictor == "linear":
        predictor = LinearPredictor(c, z, steps=config.steps, scale=scale)
    elif config.predictor == "mlp":
        predictor = MLPPredictor(c, z, steps=config.steps, hidden=c, scale=scale)
    else:
        predictor = TransformerPredictor(c, z, steps=config.steps, scale=scale)
    return CPC(
        predictor,
        negatives=config.negatives,
        batch_group=config.batch_group,
        own_sequence=config.own_sequence,
        samples=config.samples,
    )


def time_insensitive(config: Config) -> InverseModel:
    """Form A, B or C."""
    c, z, out = config.context_dim, config.channels, config.projection_out
    if config.time_insensitive == "pooled":
        projector = projection_head(c if config.part == "context" else z, config.projection_hidden, out)
        return PooledIdentity(
            projector,
            temperature=config.temperature,
            part=config.part,
            pooling=config.pooling,
            others=config.others,
        )
    if config.time_insensitive == "frames":
        return FrameIdentity(nn.Linear(c, out), nn.Linear(z, out), batch_group=config.batch_group, others=config.others)
    return SwitchIdentity(nn.Linear(c, out), nn.Linear(z, out), others=config.others)


class FramePhones(InverseModel):
    """The supervised baseline: a linear layer reads the phone off every frame of the context.

    No inverse model of the theory: it stands in the objective so that the same Learner trains it. Frames labelled -1
    do not count; a batch without labelled frames gives 0.
    """

    def __init__(self, context_dim: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(context_dim, classes)

    def logits(self, context: Float[Tensor, "b t d"]) -> Float[Tensor, "b t k"]:
        logits: Tensor = self.linear(context)
        return logits

    def forward(self, online: Features, target: Features | None, pair: ViewPair) -> Float[Tensor, ""]:
        labels: Int[Tensor, "b t"] = pair.label
        logits = self.logits(online.x[0]).float()
        surprise = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="sum")
        labelled = (labels != -1).sum()
        return distributed.part_of_mean(surprise / labelled.clamp(min=1), labelled)


def untrained(config: Config) -> CPCEncoder:
    """The encoder that a run with this seed starts from."""
    torch.manual_seed(config.seed)
    return encoder(config)
