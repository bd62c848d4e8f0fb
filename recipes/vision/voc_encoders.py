"""The encoders that transfer begins from: of checkpoints, of exported weights, untrained ones."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from recipes.vision import networks
from recipes.vision.config import method
from recipes.vision.run import from_plain, to_plain
from stec.core.checkpoints import load_checkpoint, load_weights
from stec.vision.encoders import load_torchvision, resnet18, resnet50


@dataclasses.dataclass(frozen=True)
class Encoders:
    """Which encoders to begin from; all of them are trained with the same budget."""

    checkpoint: tuple[Path, ...] = ()  # files of pretraining runs' checkpoints folders
    weights: tuple[
        Path, ...
    ] = ()  # safetensors with torchvision's keys: of their header's architecture, else the one below
    random: bool = False  # an untrained encoder too: of the first checkpoint's architecture, or of the one below
    arch: Literal["resnet18", "resnet50"] = "resnet50"
    stem: Literal["cifar", "stl", "imagenet"] = "imagenet"
    width: int = 64


class Source(NamedTuple):
    """An encoder to begin from: the name of its run folders, that of its records, and a new one for each seed."""

    name: str
    method: str
    settings: dict[str, Any]
    build: Callable[[int], nn.Module]


def sources(encoders: Encoders) -> list[Source]:
    """The encoders that were asked for, their files read. ValueError where there is none, or a file does not fit."""
    found = [_from_checkpoint(path) for path in encoders.checkpoint]
    shape = {"arch": encoders.arch, "stem": encoders.stem, "width": encoders.width}
    found += [_from_weights(path, shape) for path in encoders.weights]
    if encoders.random:
        plain = _named(shape, lambda seed: _plain_encoder(shape, seed))
        found.append(_untrained(encoders.checkpoint[0]) if encoders.checkpoint else plain)
    if not found:
        raise ValueError("no encoder to begin from; give --checkpoint FILE, --weights FILE or --random")
    names = [source.name for source in found]
    if len(set(names)) < len(names):
        raise ValueError(
            f"two encoders have one name ({', '.join(names)}); rename the folder of one, or run them apart"
        )
    return found


def _plain_encoder(shape: Mapping[str, Any], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return {"resnet18": resnet18, "resnet50": resnet50}[shape["arch"]](shape["stem"], width=int(shape["width"]))


def _from_weights(path: Path, shape: Mapping[str, Any]) -> Source:
    """An encoder of a safetensors file: of the architecture that its header names, as exports do, else of `shape`."""
    try:
        values, header = _read_safetensors(path)
        known = {key: header.get(key, value) for key, value in shape.items()}
        if known["arch"] not in ("resnet18", "resnet50") or known["stem"] not in ("cifar", "stl", "imagenet"):
            raise ValueError(f"its header names the architecture {str(known)[:200]}, which is not known here")
        if header.get("width", str(len(values["conv1.weight"]))) != str(len(values["conv1.weight"])):
            raise ValueError(f"its header names width {header['width'][:20]!r}, which its first convolution has not")
        encoder = _plain_encoder(known, 0)
        load_torchvision(encoder, values)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path}: {error}") from error
    name = path.resolve().parent.name if path.stem == "encoder" else path.stem  # every export has that name
    settings = {**known, "width": int(known["width"]), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return Source(name, name, settings, lambda seed: encoder)


def _named(settings: dict[str, Any], build: Callable[[int], nn.Module]) -> Source:
    return Source("untrained", "untrained encoder", settings, build)


def _read_checkpoint(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """A run's configuration and its encoder's weights; nothing in the file is run."""
    checkpoint = load_checkpoint(path)
    if "image_size" not in checkpoint.record:
        raise ValueError(f"{path} is no checkpoint of images; give one of recipes.vision.pretrain")
    return from_plain(checkpoint.record.get("config"), None, source=path), checkpoint.part("encoder")


def _from_checkpoint(path: Path) -> Source:
    config, weights = _read_checkpoint(path)
    encoder = networks.encoder(config)
    load_weights(encoder, weights, source=path)
    run = path.resolve().parent.parent.name
    digest = hashlib.sha256(path.read_bytes()).hexdigest()  # tells files of one name, and epochs of one run, apart
    settings = {**_shape(config), "sha256": digest, "pretraining": to_plain(config)}
    return Source(run, method(config), settings, lambda seed: encoder)


def _untrained(path: Path) -> Source:
    """An encoder as pretraining began with: of the same architecture and initialisation."""
    config, _ = _read_checkpoint(path)

    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return networks.encoder(config)

    return _named({**_shape(config), "initialisation": config.initialisation}, build)


def _shape(config: Any) -> dict[str, Any]:
    return {"arch": config.arch, "stem": config.stem, "width": config.width}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights of a file, and what its header says of them."""
    if not path.is_file():
        raise ValueError("there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # SafetensorError, or whatever a damaged header gives
        raise ValueError(
            f"it is no safetensors file ({error}); stec.core.checkpoints.export_weights writes them"
        ) from error
