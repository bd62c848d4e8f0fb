"""Probe an encoder on another data set: python -m recipes.vision.transfer --checkpoint FILE --to DATA --root FOLDER.

Linear layer, logistic regression and nearest neighbours on frozen features of the other set's images, beside raw pixels
and the untrained encoder. Images are brought to the size that the encoder was trained on, or to --size: one of another
size has its shorter side resized to 256/224 of that, and the central square cut out. All labelled training images of
the other set serve, unless there is a --limit. `recipes.vision.evaluate` probes on the data of pretraining.
"""

import dataclasses
from pathlib import Path

import lightning
import tyro
from torch import nn

from recipes import records
from recipes.run_folder import check_writable
from recipes.terminal import command, say, table
from recipes.vision import inputs, networks
from recipes.vision.config import Data, method
from recipes.vision.evaluate import accuracies
from recipes.vision.measure import PROTOCOLS, Offline, Pixels, frozen, probe
from recipes.vision.run import load_learner, to_plain


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to probe, on which other images, at which size."""

    checkpoint: Path  # a file of a run's checkpoints folder
    to: Data  # the other data set
    root: Path | None = None  # where it lies
    size: int | None = None  # pixels of a side; as in pretraining by default, 64 is Tiny-ImageNet's own
    limit: int | None = None  # its training images, classes balanced; all by default
    protocols: tuple[Offline, ...] = PROTOCOLS
    baselines: bool = True  # also probe raw pixels and the untrained encoder
    memory_gb: float = 8.0  # its images are held in memory up to this size, streamed above it
    skip_broken: bool = False  # leave unreadable image files out, and count them
    download: bool = False  # fetch CIFAR or STL-10 into root where they are missing
    out: Path | None = None  # transfer-TO.json in the run's folder by default


def transfer(arguments: Arguments) -> list[records.Record]:
    """A record for each encoder. ValueError where the set is not there, or does not fit."""
    learner, config, record = load_learner(arguments.checkpoint)
    there = dataclasses.replace(
        inputs.at_size(config, record["image_size"], arguments.size),
        data=arguments.to,
        root=arguments.root,
        limit=arguments.limit,
        memory_gb=arguments.memory_gb,
        skip_broken=arguments.skip_broken,
        download=arguments.download,
    )
    train, test = inputs.labelled_images(there)
    encoders: dict[str, nn.Module] = {}
    if arguments.baselines:
        lightning.seed_everything(config.seed, verbose=False)
        encoders = {"raw pixels": Pixels(), "untrained encoder": networks.encoder(config)}
    encoders[method(config)] = learner.encoder
    settings = {**to_plain(config), "to": {"size": there.augmentation.size, "limit": arguments.limit}}
    return [
        records.record(
            method=name,
            preset=config.preset,
            data=arguments.to,
            seed=config.seed,
            seconds=None,
            results=probe(frozen(encoder, train, test, there), arguments.protocols, seed=config.seed),
            settings=settings,
            stage="transfer",
        )
        for name, encoder in encoders.items()
    ]


def main() -> None:
    """The command line."""
    arguments = tyro.cli(Arguments, prog="python -m recipes.vision.transfer", description=__doc__)
    out = arguments.out or arguments.checkpoint.parent.parent / f"transfer-{arguments.to}.json"
    check_writable(out.parent)
    found = transfer(arguments)
    records.write(found, out)
    size, details = found[-1].settings["to"]["size"], found[-1].results[0].details  # type: ignore[index]
    pixels = f"{size} pixels" if size else "its own size"
    say(f"{arguments.to} at {pixels}, {details['train']:,} training and {details['test']:,} test images")
    table(["", *arguments.protocols], [accuracies(r, arguments.protocols) for r in found], title="accuracy, %")
    say(f"written to {out}")


if __name__ == "__main__":
    command(main)
