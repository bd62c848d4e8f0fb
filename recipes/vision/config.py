"""The settings of a pretraining run on images, typed."""

import dataclasses
from pathlib import Path
from typing import Literal

from stec.vision.views import Augmentation

Data = Literal["rendered", "cifar10", "cifar100", "stl10", "imagenet", "tiny-imagenet", "folder"]
Identity = Literal["simclr", "relic", "relicv2", "byol", "simsiam", "vicreg", "moco", "barlow"]
Action = Literal["exact", "official", "allocentric", "augself", "augself-colour"]
Arch = Literal["resnet18", "resnet50"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that a pretraining run depends on."""

    preset: str  # the preset these settings began as
    data: Data  # which images; "folder" is your own, below --root
    augmentation: Augmentation  # the law of the views; an image's own size where its size is None
    arch: Arch  # the encoder
    stem: Literal[
        "cifar", "stl", "imagenet"
    ]  # its first layers: cifar keeps 32 pixels, the others shrink by 2 and by 4
    epochs: int  # passes over the training images
    temperature: float  # how sharply views are told from those of other images: lower is sharper (tau of Eq. 4)
    lr: float  # the highest learning rate, after the warm-up, for the whole batch
    lambda_manip: float  # weight of the manipulation term; 0 leaves the model out, which is SimCLR
    action: Action  # the label: the efference copy's exact quotient, the released code's, or an ablation's
    identity: Identity = "simclr"  # the identity-related inverse model: which method it is without actions
    manipulation: Literal["binned", "regressed"] = "binned"  # Eq. 3, or the L2 ablation of Fig. 3A
    root: Path | None = None  # where the data lie; "rendered" needs none
    limit: int | None = None  # this many training images, classes balanced; all by default
    lambda_id: float = 2.0  # weight of the identity term (code: discrimination_lambda)
    width: int = 64  # channels of the encoder's first stage; 64 is the usual ResNet
    projection_hidden: int = (
        512  # units in the hidden layer of the projector, which training alone uses (code: hidden_mlp)
    )
    projection_out: int = 128  # dimensions that views are compared in, the projector's last (code: feat_dim)
    projection_layers: int = 2  # linear layers of the projector
    predictor_hidden: int = 512  # units in the hidden layer of BYOL's, SimSiam's and ReLIC's predictor
    predictor_rate: float = 1.0  # the predictor's learning rate over lr
    stop_gradient: bool = True  # SimSiam, BYOL without momentum; False lets them collapse
    momentum: float | None = None  # of the momentum encoder at the start, rising to 1; none: the online network itself
    alpha: float = 1.0  # ReLIC: weight of the KL divergence
    queue: int = 4096  # MoCo: keys kept as negatives
    lambda_reg: float = 1.0  # VICReg: weight of L_reg = variance_weight * variance + covariance
    variance_weight: float = 25.0  # VICReg: mu
    redundancy: float = 0.0051  # Barlow Twins: weight of the off-diagonal terms
    large_views: int = 2  # ReLICv2: whole views, each pair of which is compared
    small_views: int = 0  # ReLICv2: small crops, compared with each large view
    small_size: int | None = None  # their pixels
    small_scale: tuple[float, float] = (0.05, 0.14)  # their area over the image's
    manipulation_hidden: int | tuple[int, ...] = 512  # units in the head that reads actions (code: manip_hidden_mlp)
    bins: int = 6  # classes that each component of an action is cut into (K of Eq. 3; 6 in the code)
    batch_size: int = 1024  # images a step, over all processes (1024 in the code)
    micro_batch: int | None = None  # views whose activations are kept at a time; all by default
    statistics: Literal["micro", "frozen"] = "micro"  # of BatchNorm where there are micro-batches
    warmup_epochs: int = 10  # epochs in which the learning rate rises (10 in the code)
    optimizer: Literal["lars", "sgd", "adamw"] = "lars"  # lars for large batches, adamw for small networks
    adapt: Literal["kind", "name"] = "kind"  # which tensors LARS adapts: by kind, or by the released code's names
    initialisation: Literal["torchvision", "official"] = "torchvision"  # of the encoder; official is the code's
    weight_decay: float = 1e-6  # pull of the weights towards 0 (1e-6 in the code)
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"  # of the arithmetic; bf16-mixed on recent GPUs
    compiled: bool = False  # torch.compile for the encoder and the photometric chain
    workers: int = 8  # decoding processes, where images are streamed
    memory_gb: float = 8.0  # images are held in memory up to this size, streamed above it
    devices: int = 1  # GPUs of this machine, or processes
    check_every: int = 10  # steps between two reads of the losses: reading waits for the device
    checkpoint_every: int = 1  # epochs
    download: bool = False  # fetch CIFAR or STL-10 into root where they are missing
    skip_broken: bool = False  # leave unreadable image files out, and count them
    seed: int = 0  # of the start, the order of the images and their views


NAMES: dict[Identity, str] = {
    "simclr": "SimCLR",
    "relic": "ReLIC",
    "relicv2": "ReLICv2",
    "byol": "BYOL",
    "simsiam": "SimSiam",
    "vicreg": "VICReg",
    "moco": "MoCo v2",
    "barlow": "Barlow Twins",
}


def method(config: Config) -> str:
    """What the tables call a configuration: S-TEC is SimCLR with actions, S-TEC* is ReLIC with actions."""
    name = NAMES[config.identity]
    if config.identity in ("byol", "relic", "relicv2") and config.momentum is None:
        name += " without momentum"
    if config.identity in ("byol", "simsiam") and not config.stop_gradient:
        name += " without stop-gradient"
    if config.lambda_manip == 0:
        return name + (", as released" if config.initialisation == "official" else "")
    if config.identity == "simsiam" and config.action.startswith("augself") and config.manipulation == "regressed":
        return "AugSelf"  # Lee et al. (2021)
    regressed = "" if config.manipulation == "binned" else ", regressed"
    stec = {"SimCLR": "S-TEC", "ReLIC": "S-TEC*"}.get(name, f"{name} +")
    return f"{stec} {config.action}{regressed}"
