"""The settings of a checkpoint of the released code: what its weights show, and what it says of itself."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from recipes.vision.config import Config, Data
from recipes.vision.presets import PRESETS, preset
from stec.vision.official import OfficialCheckpoint, Sizes

Stem = Literal["cifar", "stl", "imagenet"]
STEMS: dict[Data, Stem] = {"cifar10": "cifar", "cifar100": "cifar", "stl10": "stl", "imagenet": "imagenet"}
CLASSES: dict[Data, int] = {"cifar10": 10, "cifar100": 100, "stl10": 10, "imagenet": 1000}
PIXELS: dict[Stem, int] = {"cifar": 32, "stl": 96, "imagenet": 224}


def stem_of(sizes: Sizes, says: Mapping[str, Any], given: Stem | None) -> Stem:
    """The stem. ValueError where neither the weights nor what the file says decide it."""
    if given is not None and (given == "cifar") != (sizes.kernel == 3):
        raise ValueError(f"--stem {given}, but the first convolution in the file is {sizes.kernel}x{sizes.kernel}")
    if sizes.kernel == 3:
        return "cifar"
    if given is not None:
        return given
    pooled, data = _flag(says, "maxpool1"), _data(says)
    hints = {STEMS[data]} if data in ("stl10", "imagenet") else set()
    if pooled is not None:
        hints.add("imagenet" if pooled else "stl")
    if len(hints) != 1:
        raise ValueError(
            "the first convolution is 7x7, which stands before pooling (imagenet) or without it (stl), and the file "
            f"does not decide which: maxpool1 is {pooled}, dataset {says.get('dataset')}; give --stem"
        )
    return hints.pop()


def data_of(sizes: Sizes, stem: Stem, says: Mapping[str, Any]) -> Data:
    """What it was trained on: as the file says where that fits the weights, else by stem and classes, else "folder"."""
    said = _data(says)
    for name in [said, *CLASSES] if said else CLASSES:
        if STEMS[name] == stem and sizes.classes in (None, CLASSES[name]):
            return name
    return "folder"


def config_of(official: OfficialCheckpoint, stem: Stem, data: Data) -> Config:
    """The settings of the nearest preset, with the sizes of the weights and the numbers that the file says."""
    sizes, says = official.sizes, official.hyper_parameters
    weight = _number(says, "manip_lambda")
    manipulates = sizes.bins is not None and weight != 0
    row = data if data in STEMS else next(name for name, of in STEMS.items() if of == stem)
    name = f"{row}-{sizes.arch}-{'stec-official' if manipulates else 'simclr'}"
    base = preset(name if name in PRESETS else name.replace("resnet18", "resnet50"))
    changes: dict[str, Any] = {"data": data, "arch": sizes.arch, "stem": stem, "width": sizes.width}
    changes |= {"action": "official", "adapt": "name", "initialisation": "official"}
    if sizes.projection_hidden is not None:
        changes |= {"projection_hidden": sizes.projection_hidden, "projection_out": sizes.projection_out}
    if manipulates and sizes.manipulation_hidden is not None:
        hidden = sizes.manipulation_hidden
        changes |= {"bins": sizes.bins, "manipulation_hidden": hidden[0] if len(hidden) == 1 else hidden}
        changes["lambda_manip"] = base.lambda_manip if weight is None else weight
    fields = {"learning_rate": "lr", "discrimination_lambda": "lambda_id", "weight_decay": "weight_decay"}
    changes |= {field: value for key, field in fields.items() if (value := _number(says, key)) is not None}
    if temperature := _number(says, "temperature"):  # a divisor
        changes["temperature"] = temperature
    epochs, warmup = _number(says, "max_epochs"), _number(says, "warmup_epochs")
    warmup = base.warmup_epochs if warmup is None else warmup
    if epochs and warmup < epochs:
        changes |= {"epochs": int(epochs), "warmup_epochs": int(warmup)}
    if batch := _batch(says):
        changes["batch_size"] = batch
    if says.get("optimizer") in ("lars", "sgd"):
        changes["optimizer"] = says["optimizer"]
    return dataclasses.replace(base, **changes)


class Claim(NamedTuple):
    """One property: the value that is used, and the one under `key` of hyper_parameters; None where there is none."""

    what: str
    key: str
    used: object
    said: object

    @property
    def differs(self) -> bool:
        if self.used is None or self.said is None:
            return False
        return self.used != self.said and str(self.used) != str(self.said)


def claims(official: OfficialCheckpoint, config: Config) -> list[Claim]:
    """What is used beside what the file says: of sizes what the weights show, of settings what could be taken over."""
    sizes, says = official.sizes, official.hyper_parameters
    hidden, first = sizes.manipulation_hidden, _flag(says, "first_conv")
    return [
        Claim("architecture", "arch", sizes.arch, says.get("arch")),
        Claim("first convolution 7x7", "first_conv", sizes.kernel == 7, first),
        Claim("projection, hidden", "hidden_mlp", sizes.projection_hidden, says.get("hidden_mlp")),
        Claim("projection, output", "feat_dim", sizes.projection_out, says.get("feat_dim")),
        Claim(
            "manipulation, hidden",
            "manip_hidden_mlp",
            None if hidden is None else ",".join(map(str, hidden)) or "0",
            says.get("manip_hidden_mlp"),
        ),
        Claim("bins", "n_bins", sizes.bins, says.get("n_bins")),
        Claim("classes", "num_classes", sizes.classes, says.get("num_classes")),
        # Pooling has no weights, and data leave none: what is used was concluded from the rest, or given.
        Claim("pooling", "maxpool1", config.stem == "imagenet", _flag(says, "maxpool1")),
        Claim("data", "dataset", config.data, _data(says) or says.get("dataset")),
        Claim("optimizer", "optimizer", config.optimizer, says.get("optimizer")),
        Claim("batch, all processes", "batch_size", config.batch_size, _batch(says) or says.get("batch_size")),
        *(Claim(what, key, used, _said(says, key)) for what, key, used in _numbers(config)),
    ]


def _numbers(config: Config) -> list[tuple[str, str, float]]:
    """The settings that are numbers, with their keys in hyper_parameters."""
    return [
        ("weight of the manipulation", "manip_lambda", config.lambda_manip),
        ("weight of the identity", "discrimination_lambda", config.lambda_id),
        ("temperature", "temperature", config.temperature),
        ("learning rate", "learning_rate", config.lr),
        ("weight decay", "weight_decay", config.weight_decay),
        ("epochs", "max_epochs", config.epochs),
        ("warmup, epochs", "warmup_epochs", config.warmup_epochs),
    ]


def _number(says: Mapping[str, Any], key: str) -> float | None:
    """A finite number of at least 0, also one written as text, or None."""
    value = says.get(key)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    return value if usable else None


def _said(says: Mapping[str, Any], key: str) -> object:
    """The number under a key, or what else is there."""
    number = _number(says, key)
    return says.get(key) if number is None else number


def _batch(says: Mapping[str, Any]) -> int | None:
    """Images of a batch over all processes; the file says those of one process. None where it says nothing usable."""
    batch = _number(says, "batch_size")
    return int(batch * (_number(says, "gpus") or 1) * (_number(says, "num_nodes") or 1)) if batch else None


def _flag(says: Mapping[str, Any], key: str) -> bool | None:
    value = says.get(key)
    return bool(value) if isinstance(value, bool | int) else None


def _data(says: Mapping[str, Any]) -> Data | None:
    """The data set that the file names, by our name; None for one that the released code does not know."""
    said = str(says.get("dataset"))
    return next((name for name in STEMS if said == name or (name == "imagenet" and said.startswith(name))), None)
