"""The arms of a comparison: every identity model alone, and with the manipulation-related inverse model beside it."""

import dataclasses
from typing import Any

from recipes.vision.config import Config, Identity

# How each identity model differs from SimCLR's row, at the paper's batch of 1,024. The weight of the manipulation term
# goes with the size of the other terms (`MANIPULATION`).
METHODS: dict[Identity, dict[str, Any]] = {
    "simclr": {},
    # Chosen: S-TEC's settings, its learning rate too, a predictor, alpha 1; momentum 0.99 as peers' CIFAR runs have it.
    "relic": {"momentum": 0.99, "alpha": 1.0},
    # Tomasev et al. (2022) have 4 large and 2 small views of ImageNet; chosen: 2 and 2 for small images.
    "relicv2": {"momentum": 0.99, "alpha": 1.0, "small_views": 2, "small_size": 16},
    # Grill et al. (2020): 4096-256 heads; 0.2 for each 256 and decay 1.5e-6 are theirs for 1,000 epochs. Chosen:
    # momentum 0.99 as peers' CIFAR runs have it (theirs is 0.996).
    "byol": {
        "lambda_id": 1.0,
        "lr": 0.2 * 1024 / 256,
        "weight_decay": 1.5e-6,
        "momentum": 0.99,
        "projection_hidden": 4096,
        "projection_out": 256,
        "predictor_hidden": 4096,
    },
    # Chen & He (2021), appendix D: SGD 0.03 for each 256, decay 5e-4, two layers for CIFAR.
    "simsiam": {
        "lambda_id": 1.0,
        "optimizer": "sgd",
        "lr": 0.03 * 1024 / 256,
        "weight_decay": 5e-4,
        "projection_hidden": 2048,
        "projection_out": 2048,
    },
    # Bardes et al. (2022): 25, 25, 1, and 0.2 for each 256; chosen: 2,048 dimensions in place of 8,192, as peers have
    # for CIFAR.
    "vicreg": {
        "lr": 0.2 * 1024 / 256,
        "lambda_id": 25.0,
        "lambda_reg": 1.0,
        "variance_weight": 25.0,
        "projection_layers": 3,
        "projection_hidden": 2048,
        "projection_out": 2048,
    },
    # He et al. (2020), Chen et al. (2020): SGD 0.03 for each 256, decay 1e-4, tau 0.2, 128 dimensions; chosen: queue
    # and momentum of peers' CIFAR runs, which here rises to 1 as BYOL's does, and S-TEC's head, which has BatchNorm
    # where theirs has none.
    "moco": {
        "optimizer": "sgd",
        "lr": 0.03 * 1024 / 256,
        "weight_decay": 1e-4,
        "temperature": 0.2,
        "queue": 32_768,
        "momentum": 0.99,
        "lambda_id": 1.0,
        "projection_out": 128,
    },
    # Zbontar et al. (2021): three layers, 0.0051, 0.2 for each 256; chosen: 2,048 dimensions, a tenth of the loss, one
    # rate for all (their code gives biases and BatchNorm 0.0048).
    "barlow": {
        "lr": 0.2 * 1024 / 256,
        "lambda_id": 0.1,
        "redundancy": 0.0051,
        "projection_layers": 3,
        "projection_hidden": 2048,
        "projection_out": 2048,
    },
}


# Weight of the manipulation term with exact labels over that of the released label. SimCLR, ReLIC: 4/6, since exact
# labels have four live components, the released ones six of which two are void, and both losses are means. The others,
# chosen: its gradient at the features is about a fifth of the identity term's, as in S-TEC* (first 80 steps of tiny-*).
MANIPULATION: dict[Identity, float] = {
    "simclr": 4 / 6,
    "relic": 4 / 6,
    "relicv2": 4 / 6,
    "byol": 1 / 3,
    "simsiam": 0.1,
    "vicreg": 1.5,
    "moco": 2 / 3,
    "barlow": 5.0,
}

# What a row is called: SimCLR with actions is S-TEC, ReLIC with actions S-TEC*.
STEC: dict[Identity, str] = {"simclr": "stec", "relic": "stec-star"}


def arms_of(base: Config, identity: Identity) -> dict[str, Config]:
    """The identity model alone and with exact actions, under the end of their names; SimCLR also as released.

    `base` is S-TEC's row of SimCLR: its `lambda_manip` is what README gives the released label.
    """
    alone = dataclasses.replace(base, identity=identity, lambda_manip=0.0)
    weight = round(MANIPULATION[identity] * base.lambda_manip, 6)
    arms = {
        identity: alone,
        STEC.get(identity, f"{identity}-stec"): dataclasses.replace(alone, lambda_manip=weight),
    }
    if identity in STEC:
        official = dataclasses.replace(alone, action="official", lambda_manip=base.lambda_manip)
        arms[f"{STEC[identity]}-official"] = official
    if identity == "simclr":
        arms["simclr-official"] = dataclasses.replace(alone, action="official")
    return arms


def named(prefix: str, arms: dict[str, Config]) -> dict[str, Config]:
    return {f"{prefix}-{end}": dataclasses.replace(arm, preset=f"{prefix}-{end}") for end, arm in arms.items()}
