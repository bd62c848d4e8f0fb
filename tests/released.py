"""The authors' released networks and their checkpoints, written anew from the description in docs and README.

Nothing of stec is used: plain functions of a state dict under that code's names, and the dictionary that PyTorch
Lightning 1.5.9 saves around it. Widths are small, which changes no name.
"""

import argparse
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]
STAGES = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}


class Builder:
    """Random weights, layer by layer, in one state dict; BatchNorm's running statistics included."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.weights: Weights = OrderedDict()

    def draw(self, *shape: int, std: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=self.generator) * std

    def conv(self, name: str, out: int, into: int, kernel: int) -> None:
        fan_in = into * kernel**2
        self.weights[f"{name}.weight"] = self.draw(out, into, kernel, kernel, std=fan_in**-0.5)

    def linear(self, name: str, out: int, into: int, bias: bool = True) -> None:
        self.weights[f"{name}.weight"] = self.draw(out, into, std=into**-0.5)
        if bias:
            self.weights[f"{name}.bias"] = self.draw(out, std=0.1)

    def norm(self, name: str, channels: int) -> None:
        self.weights[f"{name}.weight"] = 1 + self.draw(channels, std=0.1)
        self.weights[f"{name}.bias"] = self.draw(channels, std=0.1)
        self.weights[f"{name}.running_mean"] = self.draw(channels, std=0.1)
        self.weights[f"{name}.running_var"] = 1 + self.draw(channels, std=0.1).abs()
        self.weights[f"{name}.num_batches_tracked"] = torch.tensor(48_000)


def released_weights(
    arch: str = "resnet18",
    *,
    kernel: int = 3,
    width: int = 4,
    hidden: int = 16,
    out: int = 8,
    manipulation: tuple[int, ...] = (12,),
    bins: int = 6,
    classes: int = 10,
    seed: int = 0,
) -> Weights:
    """A state dict as the released code's, encoder.fc included."""
    build = Builder(seed)
    build.conv("encoder.conv1", width, 3, kernel)
    build.norm("encoder.bn1", width)
    into, expansion = width, 4 if arch == "resnet50" else 1
    for stage, count in enumerate(STAGES[arch]):
        planes = width * 2**stage
        for i in range(count):
            name = f"encoder.layer{stage + 1}.{i}"
            shapes = [(planes, into, 3), (planes, planes, 3)]
            if arch == "resnet50":
                shapes = [(planes, into, 1), (planes, planes, 3), (4 * planes, planes, 1)]
            for k, (n_out, n_in, size) in enumerate(shapes):
                build.conv(f"{name}.conv{k + 1}", n_out, n_in, size)
                build.norm(f"{name}.bn{k + 1}", n_out)
            if i == 0 and (stage > 0 or into != planes * expansion):
                build.conv(f"{name}.downsample.0", planes * expansion, into, 1)
                build.norm(f"{name}.downsample.1", planes * expansion)
            into = planes * expansion
    build.linear("encoder.fc", 1000, into)
    build.linear("projection.model.hidden", hidden, into)
    build.norm("projection.model.bn_hidden", hidden)
    build.linear("projection.model.output", out, hidden, bias=False)
    build.norm("projection.model.bn_output", out)
    build.weights["projection.model.bn_output.bias"].zero_()
    last = 2 * into
    for i, n in enumerate(manipulation):
        build.linear(f"binned_prediction_model.model.linear_{i}", n, last)
        build.norm(f"binned_prediction_model.model.bn_{i}", n)
        last = n
    build.linear("binned_prediction_model.model.linear_final", 6 * bins, last)
    build.linear("supervised_head.linear_layer", classes, into)
    return build.weights


def _norm(w: Weights, name: str, x: Tensor) -> Tensor:
    mean, var, scale, shift = (w[f"{name}.{k}"].double() for k in ("running_mean", "running_var", "weight", "bias"))
    shape = (1, -1, *[1] * (x.ndim - 2))
    return (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * scale.view(shape) + shift.view(shape)


def _linear(w: Weights, name: str, x: Tensor) -> Tensor:
    y = x @ w[f"{name}.weight"].double().T
    return y + w[f"{name}.bias"].double() if f"{name}.bias" in w else y


def _conv(w: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    kernel = w[f"{name}.weight"].double()
    return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[2] // 2)


def released_features(w: Weights, images: Tensor, *, pooled: bool) -> Tensor:
    """h (b, f) in float64, in evaluation mode. A 7x7 convolution has stride 2; `pooled`: pooling follows it."""
    x = images.double()
    x = _conv(w, "encoder.conv1", x, stride=2 if w["encoder.conv1.weight"].shape[2] == 7 else 1)
    x = _norm(w, "encoder.bn1", x).relu()
    if pooled:
        x = F.max_pool2d(x, 3, stride=2, padding=1)
    for stage in range(1, 5):
        i = 0
        while f"encoder.layer{stage}.{i}.conv1.weight" in w:
            name, stride = f"encoder.layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            depth = 3 if f"{name}.conv3.weight" in w else 2
            y = x
            for k in range(1, depth + 1):
                strided = k == (2 if depth == 3 else 1)
                y = _norm(w, f"{name}.bn{k}", _conv(w, f"{name}.conv{k}", y, stride if strided else 1))
                y = y.relu() if k < depth else y
            if f"{name}.downsample.0.weight" in w:
                x = _norm(w, f"{name}.downsample.1", _conv(w, f"{name}.downsample.0", x, stride))
            x = (x + y).relu()
            i += 1
    return x.mean(dim=(2, 3))


def released_projection(w: Weights, h: Tensor) -> Tensor:
    """z before it is brought to unit length."""
    y = _norm(w, "projection.model.bn_hidden", _linear(w, "projection.model.hidden", h)).relu()
    return _norm(w, "projection.model.bn_output", _linear(w, "projection.model.output", y))


def released_manipulation(w: Weights, h_i: Tensor, h_j: Tensor) -> Tensor:
    """Logits (b, K, 2, 3)."""
    y, i, name = torch.cat((h_i, h_j), dim=1), 0, "binned_prediction_model.model"
    while f"{name}.linear_{i}.weight" in w:
        y = _norm(w, f"{name}.bn_{i}", _linear(w, f"{name}.linear_{i}", y)).relu()
        i += 1
    return _linear(w, f"{name}.linear_final", y).reshape(len(h_i), -1, 2, 3)


def released_classes(w: Weights, h: Tensor) -> Tensor:
    """Logits (b, classes) of the online head."""
    return _linear(w, "supervised_head.linear_layer", h)


@contextmanager
def only_while_saving(**classes: type) -> Iterator[None]:
    """Puts classes into modules that do not exist here, as `module__Name=class`, for pickle to find."""
    before = set(sys.modules)
    try:
        for full, kind in classes.items():
            module, name = full.replace("_dot_", ".").split("__")
            parts = module.split(".")
            for end in range(1, len(parts) + 1):
                sys.modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
            kind.__module__, kind.__qualname__, kind.__name__ = module, name, name
            setattr(sys.modules[module], name, kind)
        yield
    finally:
        for module in set(sys.modules) - before:
            del sys.modules[module]


CIFAR = {
    "dataset": "cifar10",
    "arch": "resnet18",
    "first_conv": False,
    "maxpool1": False,
    "hidden_mlp": 16,
    "feat_dim": 8,
    "manip_hidden_mlp": "12",
    "n_bins": 6,
    "num_classes": 10,
    "manip_lambda": 1.0,
    "discrimination_lambda": 2.0,
    "temperature": 0.5,
    "learning_rate": 4.0,
    "max_epochs": 1000,
    "warmup_epochs": 10,
    "weight_decay": 1e-6,
    "optimizer": "lars",
    "batch_size": 1024,
    "gpus": 1,
    "num_nodes": 1,
    "data_dir": "/somewhere/data",
    "comment": "[bold]five[/bold] [/runs]",
}


def save_released(
    path: Path, weights: Weights, says: dict[str, Any] | None = None, *, legacy: bool = False, **more: Any
) -> Path:
    """A file as PyTorch Lightning 1.5.9 leaves it, with classes among its keys and values; None leaves an entry out."""

    class AttributeDict(dict):  # type: ignore[type-arg]
        pass

    class LearningRateMonitor:
        pass

    class HybridOptim:
        def __init__(self) -> None:
            self.momentum = 0.9

    hyper_parameters = AttributeDict({**CIFAR, **(says or {})})
    hyper_parameters["temperature"] = np.float64(hyper_parameters["temperature"])
    hyper_parameters["results_path"] = Path("runs") / "one"
    hyper_parameters["flags"] = argparse.Namespace(fp32=False, gpus=[0, 1])
    with only_while_saving(
        pytorch_lightning_dot_utilities_dot_parsing__AttributeDict=AttributeDict,
        pytorch_lightning_dot_callbacks_dot_lr_monitor__LearningRateMonitor=LearningRateMonitor,
        hybrid_optimizer_utils__HybridOptim=HybridOptim,
    ):
        state_dict = OrderedDict(weights)
        state_dict._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
        content = {
            "epoch": 999,
            "global_step": 48_000,
            "pytorch-lightning_version": "1.5.9",
            "state_dict": state_dict,
            "callbacks": {
                LearningRateMonitor: {},
                "ModelCheckpoint{'monitor': 'val/loss'}": {"best_model_score": torch.tensor(1.5), "dirpath": "/runs"},
            },
            "optimizer_states": [
                [
                    {
                        "state": {0: {"momentum_buffer": torch.ones(2, 2)}},
                        "param_groups": [{"lr": 0.1, "params": [0], "betas": (0.9, 0.999)}],
                    },
                    HybridOptim(),
                ]
            ],
            "lr_schedulers": [{"base_lrs": [4.0], "_last_lr": [np.float64(0.0)], "lr_lambdas": [None]}],
            "native_amp_scaling_state": {"scale": 65536.0, "growth_tracker": 7, "_dtypes": {torch.float16, torch.int8}},
            "hparams_name": "kwargs",
            "hyper_parameters": hyper_parameters,
            **more,
        }
        content = {name: value for name, value in content.items() if value is not None}
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path
