"""Encoder, objective and views of a Config: the one place where its words become modules."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor, nn

from recipes.vision.config import NAMES, Config
from stec.core.actions import Allocentric, Bins, Chance, EfferenceCopy, Egocentric, chance_level
from stec.core.identity import BYOL, BarlowTwins, MoCo, ReLIC, ReLICv2, SimCLR, SimSiam, VICReg
from stec.core.manipulation import BinnedActions, EveryPair, RegressedActions
from stec.core.networks import mlp, projection_head, standardised_head
from stec.core.objective import InverseModel, STECObjective
from stec.vision.affine import Affine, AugSelfCopy, OfficialCopy, official_bins
from stec.vision.colour import WithColour
from stec.vision.encoders import init_official_, resnet18, resnet50
from stec.vision.multicrop import MultiCrop
from stec.vision.simulation import actions_of_law, bins_of_law
from stec.vision.views import Augmentation, TwoViews

COPIES: dict[str, EfferenceCopy] = {
    "exact": Egocentric(Affine()),
    "official": OfficialCopy(),
    "allocentric": Allocentric(Affine()),
    "augself": AugSelfCopy(),
    "augself-colour": WithColour(AugSelfCopy()),
}


def encoder(config: Config) -> nn.Module:
    """The network f whose features are kept; `feature_dim` tells their number."""
    build = {"resnet18": resnet18, "resnet50": resnet50}[config.arch]
    network = build(config.stem, width=config.width)
    if config.initialisation == "official":
        init_official_(network)
    return network


def action_bins(config: Config, image_size: tuple[int, int]) -> Bins:
    """The bins of the action: the released code's, or equal shares under the law of the views.

    With small crops the shares are equal over all the pairs that `EveryPair` reads: of large views, and from a small
    one to a large one.
    """
    copy, law = COPIES[config.action], config.augmentation
    if config.action == "official":
        return official_bins(config.bins)
    if not config.small_views:
        return bins_of_law(law, copy, config.bins, image_size=image_size)
    generator = torch.Generator().manual_seed(0)
    share = (config.large_views - 1) / (config.large_views - 1 + config.small_views)
    sizes = round(100_000 * share), round(100_000 * (1 - share))
    among = actions_of_law(law, copy, sizes[0], image_size=image_size, generator=generator)
    from_small = actions_of_law(small_law(config), copy, sizes[1], image_size=image_size, generator=generator, then=law)
    return Bins.quantile(torch.cat((among, from_small)), config.bins)


def small_law(config: Config) -> Augmentation:
    """The law of the small crops. ValueError where they have no size."""
    if config.small_size is None:
        raise ValueError("small crops need a size: give --small-size, half the size of the large views say")
    return dataclasses.replace(config.augmentation, size=config.small_size, scale=config.small_scale)


def simulated(config: Config, image_size: tuple[int, int]) -> Float[Tensor, "n d"]:
    """100,000 actions under the law of the views; always the same ones."""
    generator = torch.Generator().manual_seed(1)
    return actions_of_law(
        config.augmentation, COPIES[config.action], 100_000, image_size=image_size, generator=generator
    )


def chance(config: Config, bins: Bins, image_size: tuple[int, int]) -> Chance:
    """What a predictor blind to the views reaches on these bins, from 100,000 simulated pairs."""
    return chance_level(bins(simulated(config, image_size)), bins.bins)


def objective(config: Config, feature_dim: int, image_size: tuple[int, int]) -> STECObjective:
    """Eq. 2 as the configuration weighs it: one line adds the manipulation term to any identity model."""
    models = {"identity": identity(config, feature_dim)}
    weights = {"identity": config.lambda_id}
    if config.identity == "vicreg":
        weights["regulariser"] = config.lambda_reg
    if config.lambda_manip:
        model = manipulation(config, feature_dim, image_size)
        models["manipulation"] = EveryPair(model) if many_views(config) else model
        weights["manipulation"] = config.lambda_manip
    return STECObjective(models, weights)


def identity(config: Config, feature_dim: int) -> InverseModel:
    """q(a_id | x, x'), by its name. ValueError where a setting that it needs is missing."""
    name, momentum = config.identity, config.momentum
    if config.small_views + config.large_views > 2 and name != "relicv2":
        raise ValueError(f"{NAMES[name]} compares two views; leave --large-views at 2 and --small-views at 0")
    hidden, out = config.projection_hidden, config.projection_out
    widths = [hidden] * (config.projection_layers - 1)
    projector: nn.Module = projection_head(feature_dim, hidden, out)
    if name in ("byol", "vicreg", "barlow"):
        projector = mlp(feature_dim, widths, out, bias=False)
    if name == "simsiam":
        projector = standardised_head(feature_dim, widths, out)
    predictor = mlp(out, [config.predictor_hidden], out, bias=name != "byol")
    if name == "simclr":
        return SimCLR(projector, temperature=config.temperature)
    if name in ("relic", "relicv2"):
        model = ReLIC if name == "relic" else ReLICv2
        return model(
            projector, temperature=config.temperature, alpha=config.alpha, momentum=momentum, predictor=predictor
        )
    if name == "byol":
        return BYOL(projector, predictor, momentum=momentum, stop_gradient=config.stop_gradient)
    if name == "simsiam":
        return SimSiam(projector, predictor, stop_gradient=config.stop_gradient)
    if name == "vicreg":
        return VICReg(projector, variance_weight=config.variance_weight)
    if name == "barlow":
        return BarlowTwins(projector, redundancy=config.redundancy)
    if momentum is None:
        raise ValueError("MoCo v2 reads keys off a momentum encoder: give --momentum 0.99")
    return MoCo(projector, temperature=config.temperature, queue=config.queue, momentum=momentum, features=out)


def manipulation(config: Config, feature_dim: int, image_size: tuple[int, int]) -> InverseModel:
    """q(a_manip | x, x') as a classifier of bins (Eq. 3), or as a regression (Fig. 3A)."""
    copy = COPIES[config.action]
    widths = config.manipulation_hidden
    hidden = (widths,) if isinstance(widths, int) else widths
    d = len(copy.components)
    if config.manipulation == "binned":
        bins = action_bins(config, image_size)
        return BinnedActions(mlp(2 * feature_dim, hidden, d * bins.bins), bins, components=copy.components)
    std = simulated(config, image_size).std(dim=0)
    # A constant component (two of the released label's six) teaches nothing; any width will do for it.
    return RegressedActions(mlp(2 * feature_dim, hidden, d), std=torch.where(std > 0, std, 1.0))


def many_views(config: Config) -> bool:
    """Whether batches hold more than x and x'."""
    return config.large_views + config.small_views > 2


def views(config: Config) -> TwoViews | MultiCrop:
    """The pipeline from a batch to a ViewPair."""
    law, copy = config.augmentation, COPIES[config.action]
    if not many_views(config):
        return TwoViews(law, copy, compile=config.compiled)
    small = small_law(config) if config.small_views else None
    return MultiCrop(
        law, copy, n_large=config.large_views, small=small, n_small=config.small_views, compile=config.compiled
    )
