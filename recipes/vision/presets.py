"""The presets: a function of a few words each, variants by replacing fields.

Sources of the numbers. README: the commands of the authors' repository (NeuromorphicComputing/S-TEC). Code: what that
code fixes, or does by default. Chosen: this project's own choice where the record is silent: the paper's appendix with
the settings of ReLIC, MoCo v2 and BYOL is not public, so what is there follows each method's own publication.
"""

import dataclasses
import difflib
from typing import Any

from recipes.vision.config import Action, Arch, Config, Data, Identity, method
from stec.vision.views import CROP_FLIP, SIMCLR_CIFAR, SIMCLR_IMAGENET, SIMCLR_STL

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
    # and momentum of peers' CIFAR runs, and S-TEC's head, which has BatchNorm where theirs has none.
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
    # Zbontar et al. (2021): three layers, 0.0051, 0.2 for each 256; chosen: 2,048 dimensions, a tenth of the loss.
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


def _arms(base: Config, identity: Identity) -> dict[str, Config]:
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


def _named(prefix: str, arms: dict[str, Config]) -> dict[str, Config]:
    return {f"{prefix}-{end}": dataclasses.replace(arm, preset=f"{prefix}-{end}") for end, arm in arms.items()}


def _cifar(data: Data, arch: Arch) -> Config:
    """Table 1's rows of CIFAR: README commands, code defaults."""
    return Config(
        preset="",
        data=data,
        augmentation=SIMCLR_CIFAR,
        arch=arch,
        stem="cifar",
        epochs=1000,
        temperature=0.5,
        lr=4.0,
        lambda_manip=1.0,
        action="exact",
        projection_hidden=512 if arch == "resnet18" else 1024,
        projection_out=64,
    )


def _stl(arch: Arch) -> Config:
    """Table 1's rows of STL-10: README commands, code defaults."""
    return dataclasses.replace(
        _cifar("stl10", arch),
        augmentation=SIMCLR_STL,
        stem="stl",
        temperature=0.2,
        lr=1.2,
        lambda_manip=0.3,
        projection_hidden=512 if arch == "resnet18" else 2048,
        projection_out=128,
    )


def _imagenet() -> Config:
    """Table 3's rows: README's command."""
    return dataclasses.replace(
        _cifar("imagenet", "resnet50"),
        augmentation=SIMCLR_IMAGENET,
        stem="imagenet",
        epochs=100,
        temperature=0.1,
        lr=1.97,  # README: 0.3 * 1680 / 256
        lambda_manip=0.6,
        batch_size=1680,
        projection_hidden=2048,
        projection_out=128,
        precision="bf16-mixed",  # chosen; the released code used float16 with gradient scaling
    )


def _as_released(config: Config) -> Config:
    """Rows called official also have the released code's initialisation and its choice of tensors for LARS."""
    if config.action != "official" or config.optimizer != "lars":
        return config
    return dataclasses.replace(config, adapt="name", initialisation="official")


def _tables() -> dict[str, Config]:
    """Tables 1 to 3 of the paper."""
    rows: dict[str, Config] = {}
    arches: list[Arch] = ["resnet18", "resnet50"]
    for arch in arches:
        for base in (_cifar("cifar10", arch), _cifar("cifar100", arch), _stl(arch)):
            # ResNet-50 has no rows of the others in the paper.
            for identity in METHODS if arch == "resnet18" else ("simclr", "relic"):
                settings = dataclasses.replace(base, **METHODS[identity])
                if settings.small_views and base.augmentation is SIMCLR_STL:
                    settings = dataclasses.replace(settings, small_size=48)  # half of the 96 pixels
                rows |= _named(f"{base.data}-{arch}", _arms(settings, identity))
    for identity in ("simclr", "relic"):
        arms = _arms(dataclasses.replace(_imagenet(), **METHODS[identity]), identity)
        rows |= _named("imagenet-resnet50", arms)
        long = {end: dataclasses.replace(arm, epochs=300) for end, arm in arms.items()}
        rows |= _named("imagenet-resnet50-300ep", long)
    rows |= _table_2()
    return {name: _as_released(row) for name, row in rows.items()}


def _table_2() -> dict[str, Config]:
    """STL-10 for 200 and 1,000 epochs, beside SimSiam with AugSelf's auxiliary task (Lee et al. 2021, their script)."""
    simsiam = dataclasses.replace(
        _stl("resnet18"),
        **METHODS["simsiam"],
        identity="simsiam",
        lambda_manip=0.0,
        batch_size=256,
        warmup_epochs=0,
    )
    law = dataclasses.replace(SIMCLR_STL, scale=(0.2, 1.0), strength=0.5, p_solarise=0.0)
    simsiam = dataclasses.replace(simsiam, lr=0.03, augmentation=law)
    augself = dataclasses.replace(
        simsiam, action="augself-colour", manipulation="regressed", lambda_manip=1.0, manipulation_hidden=(512, 512)
    )
    rows = {"simsiam": simsiam, "augself": augself}
    rows |= _arms(_stl("resnet18"), "simclr")
    table: dict[str, Config] = {}
    for epochs in (200, 1000):
        of = {f"{end}-{epochs}ep": dataclasses.replace(row, epochs=epochs) for end, row in rows.items()}
        table |= _named("table2-stl10", of)
    return table


def _folder() -> dict[str, Config]:
    """One's own images of any size: S-TEC in views of 96 pixels."""
    base = dataclasses.replace(
        _stl("resnet18"),
        data="folder",
        augmentation=dataclasses.replace(SIMCLR_IMAGENET, size=96),
        epochs=200,
        batch_size=256,
        lr=1.2 * 256 / 1024,
    )
    return {"folder": dataclasses.replace(_arms(base, "simclr")["stec"], preset="folder")}


def _quickstart() -> dict[str, Config]:
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


def _small() -> dict[str, Config]:
    """A scale that two cores carry on real CIFAR-10: networks and views of the paper's row, narrower and shorter."""
    base = dataclasses.replace(
        _cifar("cifar10", "resnet18"),
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
    return _named("small", _arms(base, "simclr"))


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
        "lr": 0.03,
        "weight_decay": 5e-4,
        "projection_hidden": 512,
        "projection_out": 512,
        "predictor_hidden": 128,
        "predictor_rate": 10.0,
    },
    "simsiam": {
        "lambda_id": 1.0,
        "optimizer": "sgd",
        "lr": 0.06,
        "weight_decay": 5e-4,
        "projection_hidden": 512,
        "projection_out": 512,
        "predictor_hidden": 128,
        "predictor_rate": 10.0,
    },
    "vicreg": {"lambda_id": 25.0, "projection_hidden": 512, "projection_out": 512},  # decorrelation wants dimensions
    "moco": {"momentum": 0.99, "lambda_id": 1.0, "queue": 4096},
    "barlow": {"lambda_id": 0.1, "projection_hidden": 512, "projection_out": 512},
}


def _tiny() -> dict[str, Config]:
    """Every identity model with and without actions on real CIFAR-10 in minutes a run: the smallest scale that tells.

    The stem of STL-10 halves the images first, which is what makes it cheap; AdamW and the rest chosen by trial, the
    same for all where the method does not say otherwise.
    """
    base = dataclasses.replace(
        _small()["small-stec"],
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
        rows |= _named("tiny", _arms(dataclasses.replace(base, **settings), identity))
    return rows


PRESETS = _tables() | _folder() | _quickstart() | _small() | _tiny()


def preset(name: str) -> Config:
    """The preset of this name. ValueError names the nearest ones where there is none."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=4, cutoff=0.3) or sorted(PRESETS)
        raise ValueError(f"no preset {name!r}; the nearest are {', '.join(near)}")
    return PRESETS[name]


__all__ = ["CROP_FLIP", "PRESETS", "Action", "Config", "Data", "Identity", "method", "preset"]
