"""Encoder, objective and views of a Config: the one place where its words become modules."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from recipes.vision.config import Config
from stec.core.actions import Allocentric, Bins, Chance, EfferenceCopy, Egocentric, chance_level
from stec.core.identity import SimCLR
from stec.core.manipulation import BinnedActions, RegressedActions
from stec.core.networks import mlp, projection_head
from stec.core.objective import InverseModel, STECObjective
from stec.vision.affine import Affine, AugSelfCopy, OfficialCopy, official_bins, quantile_bins, simulate_actions
from stec.vision.encoders import init_official_, resnet18, resnet50
from stec.vision.views import TwoViews

COPIES: dict[str, EfferenceCopy] = {
    "exact": Egocentric(Affine()),
    "official": OfficialCopy(),
    "allocentric": Allocentric(Affine()),
    "augself": AugSelfCopy(),
}


def encoder(config: Config) -> nn.Module:
    """The network f whose features are kept; `feature_dim` tells their number."""
    build = {"resnet18": resnet18, "resnet50": resnet50}[config.arch]
    network = build(config.stem, width=config.width)
    if config.initialisation == "official":
        init_official_(network)
    return network


def action_bins(config: Config, image_size: tuple[int, int]) -> Bins:
    """The bins of the action: the released code's, or equal shares under the law of the views."""
    if config.action == "official":
        return official_bins(config.bins)
    law = config.augmentation
    return quantile_bins(
        COPIES[config.action], config.bins, image_size=image_size, scale=law.scale, ratio=law.ratio, p_flip=law.p_flip
    )


def simulated(config: Config, image_size: tuple[int, int]) -> Float[Tensor, "n d"]:
    """100,000 actions under the law of the views; always the same ones."""
    law = config.augmentation
    return simulate_actions(
        COPIES[config.action],
        100_000,
        image_size=image_size,
        scale=law.scale,
        ratio=law.ratio,
        p_flip=law.p_flip,
        generator=torch.Generator().manual_seed(1),
    )


def chance(config: Config, bins: Bins, image_size: tuple[int, int]) -> Chance:
    """What a predictor blind to the views reaches on these bins, from 100,000 simulated pairs."""
    return chance_level(bins(simulated(config, image_size)), bins.bins)


def objective(config: Config, feature_dim: int, image_size: tuple[int, int]) -> STECObjective:
    """Eq. 2 as the configuration weighs it; without a manipulation weight, SimCLR."""
    models: dict[str, InverseModel] = {
        "identity": SimCLR(
            projection_head(feature_dim, config.projection_hidden, config.projection_out),
            temperature=config.temperature,
        )
    }
    weights = {"identity": config.lambda_id}
    if config.lambda_manip:
        models["manipulation"] = manipulation(config, feature_dim, image_size)
        weights["manipulation"] = config.lambda_manip
    return STECObjective(models, weights)


def manipulation(config: Config, feature_dim: int, image_size: tuple[int, int]) -> InverseModel:
    """q(a_manip | x, x') as a classifier of bins (Eq. 3), or as a regression (Fig. 3A)."""
    copy = COPIES[config.action]
    hidden = [config.manipulation_hidden]
    d = len(copy.components)
    if config.manipulation == "binned":
        bins = action_bins(config, image_size)
        return BinnedActions(mlp(2 * feature_dim, hidden, d * bins.bins), bins)
    std = simulated(config, image_size).std(dim=0)
    # A constant component (two of the released label's six) teaches nothing; any width will do for it.
    return RegressedActions(mlp(2 * feature_dim, hidden, d), std=torch.where(std > 0, std, 1.0))


def views(config: Config) -> TwoViews:
    """The pipeline from a batch to a ViewPair."""
    return TwoViews(config.augmentation, COPIES[config.action], compile=config.compiled)
