"""Probe a checkpoint: python -m recipes.vision.evaluate --checkpoint RUN/checkpoints/FILE.ckpt.

Three protocols on frozen features of labelled images, each image as it is: a linear layer by the optimiser and schedule
of the released code's linear fit (with --augmented on new crops and flips each epoch, as there), logistic regression
(L-BFGS), weighted k nearest neighbours; and how well the manipulation model reads actions off held-out views. The
data are those of pretraining unless --root (and --data) name others. With --baselines, raw pixels and the untrained
encoder too. The numbers go into the run's results.json, beside those of pretraining.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import lightning
import tyro

from recipes import records
from recipes.run import check_writable
from recipes.terminal import say, table
from recipes.vision import inputs, networks
from recipes.vision.measure import PROTOCOLS, Pixels, Protocol, augmented, frozen, probe, read_actions
from recipes.vision.presets import Config, Data
from recipes.vision.run import load_learner, read_config, record_of
from stec.vision.data import ImageSet


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to probe, on which images, how."""

    checkpoint: Path  # a file of a run's checkpoints folder
    root: Path | None = None  # where the labelled data lie; the run's own by default
    data: Data | None = None  # which data; the run's own by default
    limit: int | None = None  # training images for the probes; the run's own by default
    protocols: tuple[Protocol, ...] = PROTOCOLS
    augmented: bool = False  # linear: new crops and flips each epoch, as in the released code; encodes all 100 times
    baselines: bool = False  # also probe raw pixels and the untrained encoder
    out: Path | None = None  # where to write; results.json in the run's folder by default


def data_of(arguments: Arguments, config: Config) -> Config:
    """The configuration with the data that the arguments name."""
    root = arguments.root
    folder = arguments.checkpoint.parent.parent
    if root is None and (folder / "config.json").is_file():
        root = read_config(folder).root
    return dataclasses.replace(
        config, root=root, data=arguments.data or config.data, limit=arguments.limit or config.limit
    )


def baselines(
    config: Config, train: inputs.Inputs, test: inputs.Inputs, protocols: Sequence[Protocol]
) -> list[records.Record]:
    """What raw pixels and the untrained encoder of this seed give."""
    lightning.seed_everything(config.seed, verbose=False)
    networks_ = {"raw pixels": Pixels(), "untrained encoder": networks.encoder(config)}
    return [
        record_of(
            config, probe(frozen(network, train, test, config), protocols, seed=config.seed), seconds=None, name=name
        )
        for name, network in networks_.items()
    ]


def evaluate(arguments: Arguments, *, seconds: float | None = None) -> list[records.Record]:
    """Everything the arguments ask for, as records; `seconds` is how long pretraining took, where that is known."""
    learner, config, _ = load_learner(arguments.checkpoint)
    config = data_of(arguments, config)
    train, test = inputs.labelled_images(config)
    done = baselines(config, train, test, arguments.protocols) if arguments.baselines else []
    views = None
    if arguments.augmented:
        if not isinstance(train.images, ImageSet):
            raise ValueError("--augmented needs training images in memory, all of one size")
        views = augmented(learner.encoder, train.images, config)
    features = frozen(learner.encoder, train, test, config)
    results = probe(features, arguments.protocols, seed=config.seed, views=views)
    if "manipulation" in learner.objective.names and isinstance(test.images, ImageSet):
        results += read_actions(learner, config, test.images)
    elif "manipulation" in learner.objective.names:
        say("actions are not read off streamed test images: this needs them in memory, all of one size")
    done.append(record_of(config, results, seconds=seconds))
    return done


def main() -> None:
    """The command line."""
    arguments = tyro.cli(Arguments, prog="python -m recipes.vision.evaluate", description=__doc__)
    out = arguments.out or arguments.checkpoint.parent.parent / "results.json"
    check_writable(out.parent)
    done = evaluate(arguments)
    records.update(done, out)
    table(
        ["", *arguments.protocols],
        [
            [r.method, *(f"{100 * x.value:.1f}" for p in arguments.protocols for x in r.results if x.protocol == p)]
            for r in done
        ],
        title="accuracy, %",
    )
    for result in done[-1].results:
        if result.metric.startswith("manipulation"):
            say(f"{result.metric}: {result.value:+.3f} nats on held-out views")
    say(f"written to {out}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as mistake:
        sys.exit(f"error: {mistake}")
