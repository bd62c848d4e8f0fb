"""The rows of the paper's Tables 1 to 3."""

import dataclasses

from recipes.vision.arms import METHODS, arms_of, named
from recipes.vision.config import Arch, Config, Data
from stec.vision.views import SIMCLR_CIFAR, SIMCLR_IMAGENET, SIMCLR_STL


def cifar(data: Data, arch: Arch) -> Config:
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
        # An epoch is to take a GPU two seconds: a read costs it tens of milliseconds, a checkpoint tenths of a second.
        check_every=50,
        checkpoint_every=10,
    )


def stl(arch: Arch) -> Config:
    """Table 1's rows of STL-10: README commands, code defaults."""
    return dataclasses.replace(
        cifar("stl10", arch),
        augmentation=SIMCLR_STL,
        stem="stl",
        temperature=0.2,
        lr=1.2,
        lambda_manip=0.3,
        projection_hidden=512 if arch == "resnet18" else 2048,
        projection_out=128,
    )


def imagenet() -> Config:
    """Table 3's rows: README's command."""
    return dataclasses.replace(
        cifar("imagenet", "resnet50"),
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
        checkpoint_every=1,
    )


def _as_released(config: Config) -> Config:
    """Rows called official also have the released code's initialisation and its choice of tensors for LARS."""
    if config.action != "official" or config.optimizer != "lars":
        return config
    return dataclasses.replace(config, adapt="name", initialisation="official")


def tables() -> dict[str, Config]:
    """Tables 1 to 3 of the paper."""
    rows: dict[str, Config] = {}
    arches: list[Arch] = ["resnet18", "resnet50"]
    for arch in arches:
        for base in (cifar("cifar10", arch), cifar("cifar100", arch), stl(arch)):
            # ResNet-50 has no rows of the others in the paper.
            for identity in METHODS if arch == "resnet18" else ("simclr", "relic"):
                settings = dataclasses.replace(base, **METHODS[identity])
                if settings.small_views and base.augmentation is SIMCLR_STL:
                    settings = dataclasses.replace(settings, small_size=48)  # half of the 96 pixels
                rows |= named(f"{base.data}-{arch}", arms_of(settings, identity))
    for identity in ("simclr", "relic"):
        arms = arms_of(dataclasses.replace(imagenet(), **METHODS[identity]), identity)
        rows |= named("imagenet-resnet50", arms)
        long = {end: dataclasses.replace(arm, epochs=300) for end, arm in arms.items()}
        rows |= named("imagenet-resnet50-300ep", long)
    rows |= _table_2()
    return {name: _as_released(row) for name, row in rows.items()}


def _table_2() -> dict[str, Config]:
    """STL-10 for 200 and 1,000 epochs, beside SimSiam with AugSelf's auxiliary task (Lee et al. 2021, their script)."""
    simsiam = dataclasses.replace(
        stl("resnet18"),
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
    rows |= arms_of(stl("resnet18"), "simclr")
    table: dict[str, Config] = {}
    for epochs in (200, 1000):
        of = {f"{end}-{epochs}ep": dataclasses.replace(row, epochs=epochs) for end, row in rows.items()}
        table |= named("table2-stl10", of)
    return table
