"""Checkpoints of the authors' released code (NeuromorphicComputing/S-TEC, PyTorch Lightning 1.5.9), read as weights.

Its networks, by their names in a state dict, and ours:

    encoder.*                                                     encoder.*, torchvision's names
    projection.model.{hidden, bn_hidden, output, bn_output}       objective.models.identity.projector.*
    binned_prediction_model.model.{linear_i, bn_i, linear_final}  objective.models.manipulation.head.*
    supervised_head.linear_layer                                  probe.linear

`encoder.fc` is left out: that code never uses it, so it has never had a gradient. Values stay as they are, but for the
order of the rows of `linear_final`: that code shapes its output (b, K, 2, 3), bins first, ours is (b, 6, K).
Sizes are read off the weights; what the file says of itself (`hyper_parameters`) is kept beside them and may disagree.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from stec.core.inert import entries, named, plain
from stec.core.torch_files import TorchFile

COMPONENTS = 6  # of the released code's label, a (2, 3) matrix
_LINEAR = ("weight", "bias")
_BATCH_NORM = (*_LINEAR, "running_mean", "running_var", "num_batches_tracked")
_PARTS = {
    "encoder": r"encoder\.(?!fc\.)(.+)",
    "projection": r"projection\.model\.(.+)",
    "binned_prediction_model": r"binned_prediction_model\.model\.(.+)",
    "supervised_head": r"supervised_head\.(.+)",
}


class Sizes(NamedTuple):
    """The architecture that the weights themselves show; None for parts that the file lacks."""

    arch: Literal["resnet18", "resnet50"]
    kernel: int  # pixels of the first convolution: 3 is the CIFAR stem, 7 that of STL-10 or of ImageNet
    width: int  # channels of the first stage
    projection_hidden: int | None
    projection_out: int | None
    manipulation_hidden: tuple[int, ...] | None  # widths of the hidden layers; () is a linear head
    bins: int | None  # K
    classes: int | None


class OfficialCheckpoint(NamedTuple):
    """What a file of the released code holds: weights under our names, and what it says beside them."""

    encoder: dict[str, Tensor]  # as torchvision names them, without fc; values and types unchanged, see `_counted`
    projector: dict[str, Tensor] | None
    manipulation: dict[str, Tensor] | None
    probe: dict[str, Tensor] | None
    sizes: Sizes
    hyper_parameters: dict[str, Any]  # plain values; objects by their names
    step: int
    says: dict[str, Any]  # the other entries of the file: numbers and text, of others their size
    left_out: list[str]  # weights that nothing of ours stands for
    foreign: list[str]  # classes and functions that no ordinary checkpoint names; none of them was run
    sha256: str  # of the file


def read_official(path: str | Path, *, skip_foreign: bool = False, encoder_only: bool = False) -> OfficialCheckpoint:
    """Read a checkpoint of the released code onto the CPU, without running anything in it.

    Raises ValueError where the file is torn, is none of that code's, or names classes or functions that no ordinary
    checkpoint names: to load it with pickle would run them. With `skip_foreign` they are passed over; nothing of them
    runs then either. With `encoder_only` the other parts may be missing or of any form.
    """
    file = TorchFile(path)
    if file.foreign and not skip_foreign:
        raise ValueError(
            f"{path} holds code: to load it with pickle would run {named(file.foreign)}. Nothing was run. "
            "If you know what these are, --skip-foreign reads the weights without them"
        )
    content = entries(file.content)
    if "stec" in content:
        raise ValueError(f"{path} was written by stec already; use it as it is, with recipes.vision.evaluate, say")
    found = entries(content["state_dict"]) if "state_dict" in content else content
    weights = {  # DistributedDataParallel's names have a prefix
        name.removeprefix("module."): value for name, value in found.items() if isinstance(name, str)
    }
    if "encoder.conv1.weight" not in weights:
        there = sorted({name.split(".")[0] for name in weights})[:8]
        raise ValueError(
            f"{path} is no checkpoint of the released code: it has no encoder.conv1.weight; "
            + (f"its parts are {named(there)}" if there else "it holds no weights")
        )
    parts = {
        part: {match[1]: name for name in weights if (match := re.fullmatch(pattern, name))}
        for part, pattern in _PARTS.items()
        if part == "encoder" or not encoder_only
    }
    tensors = file.tensors({name: weights[name] for names in parts.values() for name in names.values()})
    made = {part: _counted({short: tensors[name] for short, name in names.items()}) for part, names in parts.items()}
    try:
        projector = _projector(made.get("projection", {}))
        manipulation = _manipulation(made.get("binned_prediction_model", {}))
        probe = _probe(made.get("supervised_head", {}))
        sizes = _sizes(made["encoder"], projector, manipulation, probe)
    except (ValueError, TypeError, RuntimeError, KeyError) as error:  # the others: of tensors without rows
        raise ValueError(f"{path}: {error}") from error
    step = content.get("global_step")
    besides = {k: v for k, v in content.items() if k not in ("state_dict", "hyper_parameters", *found)}
    with Path(path).open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return OfficialCheckpoint(
        made["encoder"],
        projector or None,
        manipulation or None,
        probe or None,
        sizes,
        hyper_parameters=plain(entries(content.get("hyper_parameters"))),
        step=step if isinstance(step, int) else 0,
        says={str(plain(name)): _glance(value) for name, value in besides.items()},
        left_out=sorted(name for name in weights if not any(re.fullmatch(p, name) for p in _PARTS.values())),
        foreign=file.foreign,
        sha256=sha256,
    )


def _glance(value: Any) -> Any:
    """A number or text, or how much there is of anything else."""
    short, size = plain(value, 0), len(entries(value) or (value if isinstance(value, list | tuple) else ()))
    return f"({size} entries)" if short == "..." else short


def _counted(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with a count of batches, 0, for each BatchNorm without one, as in files of torch before 0.4.1."""
    layers = [name.removesuffix("running_var") for name in weights if name.endswith(".running_var")]
    return {f"{layer}num_batches_tracked": torch.tensor(0) for layer in layers} | weights


def _complete(part: str, weights: Mapping[str, Tensor], expected: Mapping[str, tuple[str, ...]]) -> None:
    """Raises ValueError where the names are not those of the released code."""
    names = {f"{layer}.{name}" for layer, of in expected.items() for name in of}
    if missing := sorted(names - set(weights)):
        raise ValueError(f"{part} lacks {named(missing)}; --encoder-only reads the encoder alone")
    if surplus := sorted(set(weights) - names):
        raise ValueError(
            f"{part} has {named(surplus)}, which the released code does not build; "
            "--encoder-only reads the encoder alone"
        )


def _projector(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    layers = {"hidden": "hidden_0", "bn_hidden": "bn_0", "output": "output", "bn_output": "bn_output"}
    if weights:
        forms = {"hidden": _LINEAR, "bn_hidden": _BATCH_NORM, "output": ("weight",), "bn_output": _BATCH_NORM}
        _complete("projection", weights, forms)
    return _renamed(weights, layers)


def _probe(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if weights:
        _complete("supervised_head", weights, {"linear_layer": _LINEAR})
    return _renamed(weights, {"linear_layer": "linear"})


def _manipulation(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head with its last rows component after component: row d * K + k from row k * 6 + d."""
    if not weights:
        return {}
    hidden = range(sum(bool(re.fullmatch(r"linear_\d+\.weight", name)) for name in weights))
    forms = {form: of for i in hidden for form, of in ((f"linear_{i}", _LINEAR), (f"bn_{i}", _BATCH_NORM))}
    _complete("binned_prediction_model", weights, {**forms, "linear_final": _LINEAR})
    layers = {name: name for name in forms} | {f"linear_{i}": f"hidden_{i}" for i in hidden}
    named = _renamed(weights, {**layers, "linear_final": "output"})
    for name in ("output.weight", "output.bias"):
        rows = len(named[name])
        if rows % COMPONENTS or rows < 2 * COMPONENTS:
            raise ValueError(
                f"linear_final has {rows} rows; the released code's has K for each of {COMPONENTS} components"
            )
        named[name] = named[name].unflatten(0, (-1, COMPONENTS)).transpose(0, 1).flatten(0, 1).contiguous()
    return named


def _renamed(weights: Mapping[str, Tensor], layers: Mapping[str, str]) -> dict[str, Tensor]:
    split = ((name.rpartition("."), value) for name, value in weights.items())
    return {f"{layers[layer]}.{name}": value for (layer, _, name), value in split}


def _sizes(
    encoder: Mapping[str, Tensor],
    projector: Mapping[str, Tensor],
    manipulation: Mapping[str, Tensor],
    probe: Mapping[str, Tensor],
) -> Sizes:
    """The architecture by the shapes of its weights. Raises ValueError for one that stec does not have."""
    convolutions = 3 if "layer1.0.conv3.weight" in encoder else 2
    blocks = tuple(
        len({name.split(".")[1] for name in encoder if name.startswith(f"layer{stage}.")}) for stage in range(1, 5)
    )
    arches: dict[Any, Literal["resnet18", "resnet50"]] = {(2, (2, 2, 2, 2)): "resnet18", (3, (3, 4, 6, 3)): "resnet50"}
    first = tuple(encoder["conv1.weight"].shape)
    if (convolutions, blocks) not in arches or len(first) != 4 or first[1:] not in ((3, 3, 3), (3, 7, 7)):
        raise ValueError(
            f"its encoder has {blocks} blocks of {convolutions} convolutions and a first one of shape {first[:8]}; "
            "stec has ResNet-18 and ResNet-50 on colour images, with a first convolution of 3x3 or 7x7"
        )
    hidden = [value for name, value in manipulation.items() if re.fullmatch(r"hidden_\d+\.weight", name)]
    return Sizes(
        arches[convolutions, blocks],
        kernel=first[3],
        width=first[0],
        projection_hidden=len(projector["hidden_0.weight"]) if projector else None,
        projection_out=len(projector["output.weight"]) if projector else None,
        manipulation_hidden=tuple(len(value) for value in hidden) if manipulation else None,
        bins=len(manipulation["output.weight"]) // COMPONENTS if manipulation else None,
        classes=len(probe["linear.weight"]) if probe else None,
    )
