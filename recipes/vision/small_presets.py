"""Presets that two cores carry in minutes: the quickstart, two scales of real CIFAR-10, and one's own images."""

import dataclasses
from typing import Any

from recipes.vision.arms import arms_of, named
from recipes.vision.config import Config, Identity
from recipes.vision.tables import cifar
from stec.vision.views import SIMCLR_CIFAR


def quickstart() -> dict[str, Config]:
    """Two cores, minutes: a narrow network, and AdamW, which needs no large batch; by trial on rendered images."""
    config = Config(
        preset="quickstart",
        data="rendered",
        augmentation=dataclasses.replace(SIMCLR_CIFAR, scale=(0.2, 1.0)),
        arch="resnet18",
        stem="stl",
        width=16,
        epochs=8,
        warmup_epochs=1,
        batch_size=128,
        temperature=0.2,
        optimizer="adamw",
        lr=2e-3,
        weight_decay=1e-4,
        lambda_manip=2.0,
        action="exact",
        limit=10_000,
        projection_hidden=256,
        projection_out=64,
        manipulation_hidden=256,
        precision="bf16-mixed",
    )
    return {"quickstart": config}


def small() -> dict[str, Config]:
    """A scale that two cores carry on real CIFAR-10: networks and views of the paper's row, narrower and shorter."""
    base = dataclasses.replace(
        cifar("cifar10", "resnet18"),
        data="folder",  # train/<class>/ and test/<class>/, as a set of JPEG files has it
        width=16,
        limit=10_000,
        epochs=12,
        warmup_epochs=1,
        batch_size=128,  # many steps an epoch
        lr=4.0,  # a 3-epoch trial preferred it to 1.0
        precision="bf16-mixed",
        projection_hidden=256,
        check_every=13,
    )
    return named("small", arms_of(base, "simclr"))


# What the identity models need at the scale below.
TINY: dict[Identity, dict[str, Any]] = {
    "simclr": {"lambda_manip": 3.0},  # at this temperature the paper's weight moves little
    "relic": {"momentum": 0.99},
    "relicv2": {"momentum": 0.99, "small_views": 2, "small_size": 16},
    # Without negatives few steps teach little: SGD as peers have it for CIFAR, and a predictor that learns fast,
    # without which SimSiam stays below the untrained encoder at this scale.
    "byol": {
        "lambda_id": 1.0,
        "momentum": 0.9,
        "optimizer": "sgd",
        "lr": 0.06,
        "weight_decay": 5e-4,
        "projection_hidden": 512,
        "projection_out": 512,
        "predictor_hidden": 128,
        "predictor_rate": 10.0,
    },
    "simsiam": {
        "lambda_id": 1.0,
        "optimizer": "sgd",
        "lr": 0.04,
        "weight_decay": 2e-3,
        "projection_hidden": 512,
        "projection_out": 512,
        "predictor_hidden": 128,
        "predictor_rate": 10.0,
    },
    "vicreg": {"lambda_id": 25.0, "projection_hidden": 512, "projection_out": 512},  # decorrelation wants dimensions
    "moco": {"momentum": 0.99, "lambda_id": 1.0, "queue": 4096},
    "barlow": {"lambda_id": 0.1, "projection_hidden": 512, "projection_out": 512},
}


def tiny() -> dict[str, Config]:
    """Every identity model with and without actions on real CIFAR-10 in minutes a run: the smallest scale that tells.

    The stem of STL-10 halves the images first, which is what makes it cheap; AdamW and the rest chosen by trial, the
    same for all where the method does not say otherwise.
    """
    base = dataclasses.replace(
        small()["small-stec"],
        augmentation=dataclasses.replace(SIMCLR_CIFAR, scale=(0.2, 1.0)),
        stem="stl",
        epochs=25,
        batch_size=64,
        temperature=0.2,
        optimizer="adamw",
        lr=2e-3,
        weight_decay=1e-4,
        lambda_manip=1.0,
        projection_out=64,
        predictor_hidden=256,
        manipulation_hidden=256,
    )
    rows: dict[str, Config] = {}
    for identity, settings in TINY.items():
        rows |= named("tiny", arms_of(dataclasses.replace(base, **settings), identity))
    return rows


def folder_small() -> dict[str, Config]:
    """One's own images on a laptop: a few hundred to some ten thousand of any size, with and without actions.

    The network, optimiser and weights of tiny-stec, which were chosen by trial; views of 48 pixels, as photographs show
    more than CIFAR's. Batches of 32 give a few hundred images some ten steps an epoch. float32, since many a laptop's
    processor computes bfloat16 more slowly. Photographs of more than 2 GB, decoded, are held shrunk.
    """
    there = tiny()
    rows = {"folder-small": there["tiny-stec"], "folder-small-simclr": there["tiny-simclr"]}
    return {
        name: dataclasses.replace(
            config,
            preset=name,
            augmentation=dataclasses.replace(config.augmentation, size=48),
            limit=None,
            epochs=60,
            warmup_epochs=3,
            batch_size=32,
            precision="32-true",
            memory_gb=2.0,
            checkpoint_every=5,
        )
        for name, config in rows.items()
    }
