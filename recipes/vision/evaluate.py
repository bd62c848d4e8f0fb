"""Probe a checkpoint: python -m recipes.vision.evaluate --checkpoint RUN/checkpoints/FILE.ckpt.

Three protocols on frozen features of labelled images, each image as it is: a linear layer by the optimiser and schedule
of the released code's linear fit (with --augmented on new crops and flips each epoch, as there), logistic regression
(L-BFGS), weighted k nearest neighbours. A fourth, online, fits nothing: it is the accuracy of the linear head that was
trained along with the encoder, where the checkpoint has one and the test set is of the run's own data and classes
(--protocols online reads test images alone). And how well the manipulation model reads actions off held-out views. The
data are those of pretraining unless --root (and --data) name others. With --baselines, raw pixels and the untrained
encoder too. The numbers go into the run's results.json, beside those of pretraining.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import lightning
import tyro

from recipes import records
from recipes.run_folder import check_writable
from recipes.terminal import command, say, table
from recipes.vision import inputs, networks
from recipes.vision.measure import (
    PROTOCOLS,
    Offline,
    Pixels,
    Protocol,
    augmented,
    features,
    frozen,
    online,
    probe,
    read_actions,
)
from recipes.vision.presets import Config, Data
from recipes.vision.run import load_learner, read_config, record_of
from recipes.vision.splits import read_split
from stec.core.probe import OnlineProbe
from stec.vision.data import ImageSet
from stec.vision.held import HeldImages

ALL: tuple[Protocol, ...] = (*PROTOCOLS, "online")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to probe, on which images, how."""

    checkpoint: Path  # a file of a run's checkpoints folder
    root: Path | None = None  # where the labelled data lie; the run's own by default
    data: Data | None = None  # which data; the run's own by default
    limit: int | None = None  # training images for the probes; the run's own by default, on its own data
    protocols: tuple[Protocol, ...] = ALL
    augmented: bool = False  # linear: new crops and flips each epoch, as in the released code; encodes all 100 times
    actions: bool | None = None  # read actions off held-out views; by default, unless online is the only protocol
    skip_broken: bool = False  # leave unreadable images out, and say which, also where the run did not
    baselines: bool = False  # also probe raw pixels and the untrained encoder
    out: Path | None = None  # where to write; results.json in the run's folder by default


def data_of(arguments: Arguments, config: Config) -> Config:
    """The configuration with the data that the arguments name, and unreadable files as they say."""
    root = arguments.root
    folder = arguments.checkpoint.parent.parent
    if root is None and (folder / "config.json").is_file():
        root = read_config(folder).root
    own = arguments.data in (None, config.data)  # the run's limit is of its own data
    limit = arguments.limit or (config.limit if own else None)
    skip = arguments.skip_broken or config.skip_broken
    return dataclasses.replace(config, root=root, data=arguments.data or config.data, limit=limit, skip_broken=skip)


def baselines(
    config: Config, train: inputs.Inputs, test: inputs.Inputs, protocols: Sequence[Offline]
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
    learner, own, origin = load_learner(arguments.checkpoint)
    config = data_of(arguments, own)
    offline = [protocol for protocol in arguments.protocols if protocol != "online"]
    # Nothing is fitted on training images for the online head: one of them stands for all.
    train, test = inputs.labelled_images(config if offline else dataclasses.replace(config, limit=1))
    for part, source in (("training", train), ("test", test)):
        if source.left_out:
            say(f"{part} images: {source.left_out}")
    head = None
    if "online" in arguments.protocols:
        reason = foreign(learner.probe, test, own.data, config.data, origin.get("class_names"))
        head = online_head(learner.probe, reason, asked=arguments.protocols != ALL)
    if arguments.baselines and not offline:
        raise ValueError("--baselines have no online head: give --protocols another one beside it")
    done = baselines(config, train, test, offline) if arguments.baselines else []
    results: list[records.Result] = []
    if offline:
        views = None
        if arguments.augmented:
            if not isinstance(train.images, ImageSet):
                raise ValueError("--augmented needs training images in memory, all of one size")
            views = augmented(learner.encoder, train.images, config)
        both = frozen(learner.encoder, train, test, config)
        results += probe(both, offline, seed=config.seed, views=views)
        tested = both.test, both.test_labels
    elif head is not None:
        tested = features(learner.encoder, test, config)
    if head is not None:
        results.append(online(head, *tested))
    actions = bool(offline) if arguments.actions is None else arguments.actions
    if "manipulation" in learner.objective.names and actions:
        assert not isinstance(test.images, HeldImages)  # for training alone
        results += read_actions(learner, config, test.images)
    record = record_of(config, results, seconds=seconds)
    if config.data == "folder" and config.root is not None and config.root.is_file():
        split = read_split(config.root)
        held = {"holdout": split.holdout, "holdout_seed": split.seed}
        record = dataclasses.replace(record, settings={**record.settings, **held})
    if "imported" in origin:
        record = dataclasses.replace(record, settings={**record.settings, "imported": origin["imported"]["sha256"]})
    done.append(record)
    return done


def foreign(
    head: OnlineProbe | None, test: inputs.Inputs, own: Data, data: Data, names: Sequence[str] | None
) -> str | None:
    """Why the online head, trained on `own` with classes of these names, does not fit a test set of `data`.

    None where it does. A folder may hold images of any set, such as CIFAR-10 as files: there the names decide, and
    without names (imported checkpoints, and those of before names were kept) the number of classes, in their order.
    """
    classes = test.images.classes
    if head is None or head.linear.out_features != len(classes):
        knows = "no online head" if head is None else f"an online head of {head.linear.out_features} classes"
        return f"the checkpoint has {knows}, the test set {len(classes)} classes"
    if own != data and "folder" not in (own, data):
        return f"the checkpoint has an online head for the classes of {own}, the test set is {data}"
    for i, (known, there) in enumerate(zip(names or (), classes)):
        if known != there:
            return f"class {i} of the checkpoint's online head is {known!r}, of the test set {there!r}"
    return None


def online_head(head: OnlineProbe | None, reason: str | None, *, asked: bool) -> OnlineProbe | None:
    """The online head, unless there is a reason against it: ValueError, or a line and None if nobody asked by name."""
    if reason is None:
        return head
    if asked:
        raise ValueError(f"{reason}: leave online out of --protocols, or name other data with --root and --data")
    say(f"{reason}: no online accuracy")
    return None


def accuracies(record: records.Record, protocols: Sequence[Protocol]) -> list[str]:
    """A row of the table: the method, and its accuracy by each protocol, empty where it has none."""
    found = {x.protocol: f"{100 * x.value:.1f}" for x in record.results if x.metric == "accuracy"}
    return [record.method, *(found.get(protocol, "") for protocol in protocols)]


def main() -> None:
    """The command line."""
    arguments = tyro.cli(Arguments, prog="python -m recipes.vision.evaluate", description=__doc__)
    out = arguments.out or arguments.checkpoint.parent.parent / "results.json"
    check_writable(out.parent)
    done = evaluate(arguments)
    records.merge(done, out)
    table(["", *arguments.protocols], [accuracies(r, arguments.protocols) for r in done], title="accuracy, %")
    for result in done[-1].results:
        if result.metric.startswith("manipulation"):
            say(f"{result.metric}: {result.value:+.3f} nats on held-out views")
    say(f"written to {out}")


if __name__ == "__main__":
    command(main)
