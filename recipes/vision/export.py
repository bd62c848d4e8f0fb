"""Export an encoder: python -m recipes.vision.export --checkpoint RUN/checkpoints/FILE.ckpt --out DIR.

DIR gets encoder.safetensors and encoder.pt, both a torchvision ResNet's state dict without the classifier; README.md, a
model card with the preset, the data, the results and the licence; and config.json, with the settings for programs. The
card's lines load the encoder with stec, or with torchvision alone where its width is torchvision's; hubconf.py loads it
from a checkout.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
import tyro

from recipes import records
from recipes.run_folder import check_writable, plain
from recipes.terminal import command, say
from recipes.vision.config import Config, method
from recipes.vision.run import load_learner, to_plain
from stec.core.checkpoints import export_weights
from stec.vision.encoders import feature_dim, torchvision_state_dict

CODE = "Apache-2.0"  # of this package

# What the makers of the data say of their use.
DATA_TERMS = {
    "rendered": "rendered by this package: no rights of others",
    "cifar10": "CIFAR-10 (Krizhevsky 2009), published without a licence, for research with citation",
    "cifar100": "CIFAR-100 (Krizhevsky 2009), published without a licence, for research with citation",
    "stl10": "STL-10 (Coates et al. 2011), images from ImageNet, whose terms are for non-commercial research",
    "imagenet": "ImageNet (Russakovsky et al. 2015), whose terms of access are for non-commercial research",
    "tiny-imagenet": "Tiny ImageNet, images from ImageNet, whose terms are for non-commercial research",
    "folder": "images of whoever trained it; their licence is not recorded",
}
UNSTATED = "not stated by whoever exported them: ask before you use them"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to export, where to, and what the run does not know."""

    checkpoint: Path  # a file of a run's checkpoints folder
    out: Path  # a folder
    licence: str | None = None  # of the weights, such as Apache-2.0 or CC-BY-NC-4.0
    results: Path | None = None  # a file of records; results.json in the run's folder by default


def loading(config: Config, file: str = "encoder.safetensors") -> list[str] | None:
    """The lines of Python that load the weights with torchvision; None for a width that torchvision does not build.

    Two with the ImageNet stem. The others have a first convolution or a missing pooling that torchvision's constructor
    cannot be told.
    """
    if config.width != 64:
        return None
    stem = {
        "imagenet": [],
        "stl": ["net.maxpool = torch.nn.Identity()"],
        "cifar": ["net.conv1, net.maxpool = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()"],
    }
    return [
        f"net = torchvision.models.{config.arch}()",
        *stem[config.stem],
        f'net.load_state_dict(safetensors.torch.load_file("{file}"), strict=False)  # only fc is missing',
    ]


def stec_loading(config: Config) -> list[str]:
    """The lines of Python that load the weights with stec: of any width and stem, features for output."""
    width = "" if config.width == 64 else f", width={config.width}"
    return [
        "import safetensors.torch",
        f"from stec.vision.encoders import {config.arch}",
        "",
        f'encoder = {config.arch}("{config.stem}"{width})',
        'encoder.load_state_dict(safetensors.torch.load_file("encoder.safetensors"))',
        "features = encoder.eval()(images)  # (b, 3, h, w) in [0, 1]",
    ]


def card(config: Config, found: list[records.Record], *, licence: str | None, imported: dict[str, Any] | None) -> str:
    """The model card, in Markdown under the header that model hubs read."""
    lines, size = loading(config), config.augmentation.size
    tested = "as they are" if size is None else f"resized to {round(size * 256 / 224)} pixels and cut to {size}"
    length = f"{config.epochs} epochs at batch {config.batch_size}, seed {config.seed}"
    origin = f"Pretrained by `recipes.vision.pretrain {config.preset}` of stec: {length} (settings in config.json)."
    if imported:
        origin = (
            f"Pretrained by the authors' released code and imported from {imported['file']} (SHA-256 "
            f"{imported['sha256']}); the nearest preset of stec is {config.preset}."
        )
    return "\n".join(
        [
            "---",
            f"license: {json.dumps(licence.lower() if licence else 'other')}",
            "pipeline_tag: image-feature-extraction",
            f"tags: [self-supervised-learning, efference-copy, {config.arch}]",
            "---",
            "",
            f"# {config.arch} by {method(config)} on {config.data}",
            "",
            f"{origin} An encoder of colour images (b, 3, h, w) in [0, 1], not normalised by mean and deviation, whose "
            f"first stage has {config.width} channels; "
            f"probed on images {tested}.",
            "",
            "## Loading",
            "",
            *(
                _torchvision(config, lines)
                if lines
                else [f"Of width {config.width}, which torchvision does not build."]
            ),
            "",
            "With stec, and features for output:",
            "",
            "```python",
            *stec_loading(config),
            "```",
            "",
            "With a checkout of stec that is not installed:",
            "",
            "```python",
            "import torch",
            "",
            'encoder = torch.hub.load("path/to/stec", "encoder", source="local", weights="path/to/this/folder")',
            "```",
            "",
            "## Results",
            "",
            *_results(found),
            "",
            "## Licence",
            "",
            f"The weights: {licence or UNSTATED}. The data: {DATA_TERMS.get(config.data, 'terms not recorded')}. "
            f"The code: {CODE}.",
            "",
            "Method: F. Scherr, Q. Guo, T. Moraitis, *Self-supervised learning through efference copies*, NeurIPS 35, "
            "2022.",
            "",
        ]
    )


def _torchvision(config: Config, lines: list[str]) -> list[str]:
    differs = {
        "imagenet": "The architecture is torchvision's own",
        "stl": "It differs from torchvision's in the missing pooling after the first convolution",
        "cifar": "It differs from torchvision's in the first convolution, 3x3 with stride 1, and the missing pooling "
        "after it",
    }
    return [
        "```python",
        "import safetensors.torch, torch, torchvision",
        "",
        *lines,
        "```",
        "",
        f"{differs[config.stem]}. The weights have no classifier: `net.fc = torch.nn.Identity()` makes "
        'features the output. Without safetensors: `torch.load("encoder.pt", weights_only=True)`.',
    ]


def _results(found: list[records.Record]) -> list[str]:
    """A table of every number, and where each comes from."""
    if not found:
        return ["None recorded; `python -m recipes.vision.evaluate` makes them."]
    rows = [
        f"| {r.method} | {x.metric} | {x.value:.4f} | {x.protocol} | {r.stage} | {r.data} | {r.seed} |"
        for r in found
        for x in r.results
    ]
    origins = dict.fromkeys(f"- `{r.command}`, commit {r.commit}, {r.hardware}, {r.date}" for r in found)
    return [
        "Accuracies are shares of test images (in stage pretrain, of augmented training images), losses are in nats.",
        "",
        "| method | metric | value | protocol | stage | data | seed |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        *origins,
    ]


def export(arguments: Arguments) -> Config:
    """Write the folder; the settings of what it holds. ValueError for a file that is no checkpoint of images."""
    learner, config, record = load_learner(arguments.checkpoint)
    results = arguments.results or arguments.checkpoint.parent.parent / "results.json"
    if arguments.results and not results.is_file():
        raise ValueError(f"there is no file {results}; leave --results out to export without results")
    found = records.read(results) if results.is_file() else []
    out, imported = arguments.out, record.get("imported")
    if (out / "checkpoints").exists() or (out / "encoder.safetensors").exists():
        raise ValueError(f"{out} holds a run or an encoder already; choose another --out")
    check_writable(out)
    weights = torchvision_state_dict(learner.encoder)
    built = {"arch": config.arch, "stem": config.stem, "width": config.width}
    export_weights(weights, out / "encoder.safetensors", metadata={key: str(value) for key, value in built.items()})
    torch.save(weights, out / "encoder.pt")
    facts = {
        **built,
        "feature_dim": feature_dim(learner.encoder),
        "pixels": "RGB in [0, 1], not normalised",
        "method": method(config),
        "preset": config.preset,
        "data": config.data,
        "licence": arguments.licence,
        "imported": imported,
        "settings": to_plain(config),
    }
    (out / "config.json").write_text(json.dumps(plain(facts), indent=1) + "\n")
    (out / "README.md").write_text(card(config, found, licence=arguments.licence, imported=imported))
    return config


def main() -> None:
    """The command line."""
    arguments = tyro.cli(Arguments, prog="python -m recipes.vision.export", description=__doc__)
    config = export(arguments)
    say(f"written: encoder.safetensors, encoder.pt, config.json and the model card README.md in {arguments.out}")
    say(f"in {arguments.out} it loads with:")
    for line in stec_loading(config):
        say(f"    {line}")
    if arguments.licence is None:
        say("the card states no licence for the weights: give --licence to state one")


if __name__ == "__main__":
    command(main)
