"""Entry points of torch.hub: encoders, bare or with the weights that recipes.vision.export or import_official wrote.

torch.hub.load("path/to/this/checkout", "encoder", source="local", weights="path/to/the/exported/folder")
torch.hub.load("path/to/this/checkout", "resnet18", source="local", stem="cifar")
"""

from pathlib import Path as _Path
from typing import Any as _Any

from safetensors import SafetensorError as _SafetensorError
from safetensors import safe_open as _safe_open

from stec.vision.encoders import ResNet as _ResNet
from stec.vision.encoders import Stem as _Stem
from stec.vision.encoders import load_torchvision as _load_torchvision
from stec.vision.encoders import resnet18 as _resnet18
from stec.vision.encoders import resnet50 as _resnet50

dependencies = ["jaxtyping", "safetensors", "torch", "torchvision"]


def resnet18(stem: _Stem, width: int = 64) -> _ResNet:
    """A ResNet-18 without weights; stem "cifar", "stl" or "imagenet". Images (b, 3, h, w) to (b, 8 * width)."""
    return _resnet18(stem, width=width)


def resnet50(stem: _Stem, width: int = 64) -> _ResNet:
    """A ResNet-50 without weights; stem "cifar", "stl" or "imagenet". Images (b, 3, h, w) to (b, 32 * width)."""
    return _resnet50(stem, width=width)


def encoder(weights: str) -> _ResNet:
    """An exported encoder with its weights, in evaluation mode: images in [0, 1] to features.

    `weights` is the folder that recipes.vision.export or recipes.vision.import_official wrote, or encoder.safetensors
    in it. Raises ValueError where it is none.
    """
    path = _Path(weights).expanduser()
    path = path / "encoder.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"there is no file {path}; recipes.vision.export and recipes.vision.import_official write one")
    try:
        with _safe_open(path, framework="pt") as file:
            built: dict[str, _Any] = file.metadata() or {}
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no dictionary)
    except _SafetensorError as error:
        raise ValueError(f"{path} is torn or is no safetensors file ({str(error)[:200]!r})") from error
    builders = {"resnet18": _resnet18, "resnet50": _resnet50}
    if not {"arch", "stem", "width"} <= set(built) or built["arch"] not in builders:
        raise ValueError(f"{path} does not say what it is of: export it with recipes.vision.export")
    first = values.get("conv1.weight")
    if first is None or first.ndim != 4 or built["width"] != str(len(first)):  # before any width is believed
        raise ValueError(f"{path} says width {built['width'][:20]!r}, of which it holds no first convolution")
    try:
        network = builders[built["arch"]](built["stem"], width=len(first))
        _load_torchvision(network, values)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"{path} does not hold the weights that it names: {str(error)[:300]!r}") from error
    return network.eval()
