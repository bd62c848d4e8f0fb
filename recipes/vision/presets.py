"""The settings of a run, typed, and the presets: a function of a few words each, variants by replacing fields.

Sources of the numbers. README: the commands of the authors' repository (NeuromorphicComputing/S-TEC). Code: what that
code fixes, or does by default. Chosen: this project's own choice where the record is silent.
"""

import dataclasses
import difflib
from pathlib import Path
from typing import Literal

from stec.vision.views import CROP_FLIP, SIMCLR_CIFAR, SIMCLR_IMAGENET, SIMCLR_STL, Augmentation

Data = Literal["rendered", "cifar10", "cifar100", "stl10", "imagenet", "folder"]
Identity = Literal["simclr", "relic", "relicv2", "byol", "simsiam", "vicreg", "moco", "barlow"]
Action = Literal["exact", "official", "allocentric", "augself"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that a pretraining run depends on."""

    preset: str  # the preset these settings began as
    data: Data
    augmentation: Augmentation  # the law of the views; an image's own size where its size is None
    arch: Literal["resnet18", "resnet50"]
    stem: Literal["cifar", "stl", "imagenet"]
    epochs: int
    temperature: float  # tau of Eq. 4
    lr: float  # peak, for the whole batch
    lambda_manip: float  # weight of the manipulation term; 0 leaves the model out, which is SimCLR
    action: Action  # the label: the efference copy's exact quotient, the released code's, or an ablation's
    identity: Identity = "simclr"  # the identity-related inverse model
    manipulation: Literal["binned", "regressed"] = "binned"  # Eq. 3, or the L2 ablation of Fig. 3A
    root: Path | None = None  # where the data lie; "rendered" needs none
    limit: int | None = None  # this many training images, classes balanced; all by default
    lambda_id: float = 2.0  # code: discrimination_lambda
    width: int = 64  # channels of the first stage
    projection_hidden: int = 512  # code: hidden_mlp
    projection_out: int = 128  # code: feat_dim
    projection_layers: int = 2  # linear layers of the projector
    predictor_hidden: int = 512  # of BYOL's, SimSiam's and ReLIC's predictor
    momentum: float | None = None  # of the momentum encoder at the start, rising to 1; none: the online network itself
    alpha: float = 1.0  # ReLIC: weight of the KL divergence
    queue: int = 4096  # MoCo: keys kept as negatives
    lambda_reg: float = 1.0  # VICReg: weight of L_reg = variance_weight * variance + covariance
    variance_weight: float = 25.0  # VICReg: mu
    redundancy: float = 0.0051  # Barlow Twins: weight of the off-diagonal terms
    large_views: int = 2  # ReLICv2: whole views, each pair of which is compared
    small_views: int = 0  # ReLICv2: small crops, compared with each large view
    small_size: int | None = None  # their pixels; half of the large views' by default
    small_scale: tuple[float, float] = (0.05, 0.14)  # their area over the image's
    manipulation_hidden: int = 512  # code: manip_hidden_mlp
    bins: int = 6  # K of Eq. 3 (code)
    batch_size: int = 1024  # code, over all processes
    warmup_epochs: int = 10  # code
    optimizer: Literal["lars", "sgd", "adamw"] = "lars"
    adapt: Literal["kind", "name"] = "kind"  # which tensors LARS adapts: by kind, or by the released code's names
    initialisation: Literal["torchvision", "official"] = "torchvision"
    weight_decay: float = 1e-6  # code
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    compiled: bool = False  # torch.compile for the encoder and the photometric chain
    workers: int = 8  # decoding processes, where images are streamed
    memory_gb: float = 8.0  # images are held in memory up to this size, streamed above it
    devices: int = 1
    check_every: int = 10  # steps between two reads of the losses: reading waits for the device
    checkpoint_every: int = 1  # epochs
    download: bool = False  # fetch CIFAR or STL-10 into root where they are missing
    skip_broken: bool = False  # leave unreadable image files out, and count them
    seed: int = 0


def _paper(name: str, data: Data, arch: Literal["resnet18", "resnet50"], action: Action, lambda_manip: float) -> Config:
    """Table 1's rows: README commands, code defaults."""
    # Exact labels have four live components, the released ones six of which two are void, and both losses are means:
    # 4/6 gives each live component the same weight.
    manip = round(lambda_manip * 4 / 6, 6) if action == "exact" else lambda_manip
    official = action == "official"
    cifar = Config(
        preset=name,
        data=data,
        augmentation=SIMCLR_CIFAR,
        arch=arch,
        stem="cifar",
        epochs=1000,
        temperature=0.5,
        lr=4.0,
        lambda_manip=manip,
        action=action,
        projection_hidden=512 if arch == "resnet18" else 1024,
        projection_out=64,
        adapt="name" if official else "kind",
        initialisation="official" if official else "torchvision",
    )
    if data == "stl10":
        return dataclasses.replace(
            cifar,
            augmentation=SIMCLR_STL,
            stem="stl",
            temperature=0.2,
            lr=1.2,
            projection_hidden=512 if arch == "resnet18" else 2048,
            projection_out=128,
        )
    return cifar


def _presets() -> dict[str, Config]:
    presets: dict[str, Config] = {}
    arms: list[tuple[str, Action, bool]] = [
        ("simclr", "exact", False),
        ("stec", "exact", True),
        ("stec-official", "official", True),
    ]
    arches: list[Literal["resnet18", "resnet50"]] = ["resnet18", "resnet50"]
    sets: list[tuple[Data, float]] = [("cifar10", 1.0), ("cifar100", 1.0), ("stl10", 0.3)]
    for data, weight in sets:
        for arch in arches:
            for arm, action, manip in arms:
                name = f"{data}-{arch}-{arm}"
                presets[name] = _paper(name, data, arch, action, weight if manip else 0.0)
    for arm, action, manip in arms:
        name = f"imagenet-resnet50-{arm}"
        presets[name] = dataclasses.replace(
            _paper(name, "imagenet", "resnet50", action, 0.6 if manip else 0.0),
            augmentation=SIMCLR_IMAGENET,
            stem="imagenet",
            epochs=100,
            temperature=0.1,
            lr=1.97,  # README: 0.3 * 1680 / 256
            batch_size=1680,
            projection_hidden=2048,
            projection_out=128,
            precision="bf16-mixed",  # chosen; the released code used float16 with gradient scaling
        )
    presets["folder"] = dataclasses.replace(
        presets["cifar10-resnet18-stec"],
        preset="folder",
        data="folder",
        augmentation=dataclasses.replace(SIMCLR_IMAGENET, size=96),
        stem="stl",
        temperature=0.2,
        epochs=200,
        batch_size=256,
        lr=1.2 * 256 / 1024,
        lambda_manip=0.2,  # 0.3 * 4 / 6, as for STL-10
        projection_out=128,
    )
    # Two cores, minutes: a narrow network and AdamW, which needs no large batch. Chosen by trial on rendered images.
    presets["quickstart"] = Config(
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
    # A scale that two cores carry on real CIFAR-10: the networks and views of the paper's row, narrower and shorter.
    small = dataclasses.replace(
        presets["cifar10-resnet18-stec"],
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
    for arm, action, manip in arms:
        name = f"small-{arm}"
        weight = 0.0 if not manip else 1.0 if action == "official" else 4 / 6
        presets[name] = dataclasses.replace(small, preset=name, action=action, lambda_manip=weight)
    return presets


PRESETS = _presets()


def preset(name: str) -> Config:
    """The preset of this name. ValueError names the nearest ones where there is none."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=4, cutoff=0.3) or sorted(PRESETS)
        raise ValueError(f"no preset {name!r}; the nearest are {', '.join(near)}")
    return PRESETS[name]


def method(config: Config) -> str:
    """What the tables call a configuration."""
    if config.lambda_manip == 0:
        return "SimCLR"
    return f"S-TEC {config.action}" + ("" if config.manipulation == "binned" else ", regressed")


__all__ = ["CROP_FLIP", "PRESETS", "Config", "method", "preset"]
