"""Pretrain an encoder on images: python -m recipes.vision.pretrain PRESET [--batch-size 512 --root FOLDER ...].

  python -m recipes.vision.pretrain --list                      every preset, a line each
  python -m recipes.vision.pretrain quickstart --help           what can be overridden, with the preset's values
  python -m recipes.vision.pretrain cifar10-resnet18-stec --root data --out runs/c10
  python -m recipes.vision.pretrain --resume runs/c10           go on after an interruption; settings are in the folder

Your own images, on a laptop or on a GPU; they may lie in train/<class>/ and test/<class>/, in <class>/, or anywhere:

  python -m recipes.vision.pretrain folder-small --root MY_IMAGES --holdout 0.2
  python -m recipes.vision.pretrain folder --root MY_IMAGES

--holdout keeps a share of each class apart for probes; split.json in the run's folder says which, and --root of any
command takes this file. Images of one size that fit --memory-gb lie in memory as they are; those of several sizes each
in its own shape, nothing cut off, shrunk to a shorter side of four times the views', which is what the actions are of.

With --go-on, one command starts a run and goes on with it (docs/long-runs.md).

A run folder holds config.json, logs/ (metrics.csv, TensorBoard), checkpoints/ and, at the end, results.json.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from recipes.command import Modality, pretrain_command
from recipes.ranks import is_first
from recipes.run import Outcome
from recipes.run_folder import check_output
from recipes.saving import MINUTES
from recipes.terminal import command, say
from recipes.vision import networks
from recipes.vision.own_images import forget, hold_out, how_to_probe, settled
from recipes.vision.presets import PRESETS, Config, method, preset
from recipes.vision.run import from_plain, pretrain, read_config, record_of
from stec.core.manipulation import BinnedActions

ABOVE = 1.1  # of the chance level of manipulation, from which on a run is said to have learned nothing of it


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What `pretrain PRESET` takes."""

    config: tyro.conf.OmitArgPrefixes[Config]
    out: Path | None = None  # the run's folder; runs/PRESET-seedN by default
    go_on: bool = False  # go on with the run in that folder where there is one: one command, however often it is run
    holdout: float | None = None  # of class folders, leave this share of each class out of training, for probes
    checkpoint_minutes: float = MINUTES  # a checkpoint also within an epoch, where it takes longer than this


def line(config: Config) -> str:
    """What distinguishes a preset."""
    where = "no download" if config.data == "rendered" else f"{config.data}, --root"
    return f"{method(config):22s} {config.arch} x{config.width} ({where})"


def settle(arguments: Arguments, folder: Path, *, going_on: bool, typed: Sequence[str]) -> Config:
    """The settings as the images let them be, each change said."""
    forget()  # what an earlier command of this process has found
    config, lines = arguments.config, []
    if arguments.holdout is not None:
        if not going_on and is_first():
            check_output(folder)
        config, line = hold_out(config, arguments.holdout, folder)
        lines.append(line)
    config, more = settled(config, typed=typed)
    if is_first():
        for line in (*lines, *more):
            say(line)
    return config


VISION = Modality(
    module="recipes.vision.pretrain",
    doc=__doc__ or "",
    arguments=Arguments,
    presets=PRESETS,
    line=line,
    preset=preset,
    method=method,
    read_config=read_config,
    pretrain=pretrain,
    record_of=record_of,
    sources="code: what the authors' released code fixes",
    settle=settle,
    next_step=how_to_probe,
)


def unread(outcome: Outcome) -> str:
    """A line where the actions were read far worse at the end than by a model blind to the views; else none."""
    learner = outcome.learner
    ended = learner.last.get("manipulation")
    if ended is None or not isinstance(learner.objective.models["manipulation"], BinnedActions):
        return ""
    config = from_plain(learner.record["config"], None, source=outcome.checkpoint)
    height, width = learner.record["image_size"]
    bins = networks.action_bins(config, (height, width))
    chance = float(networks.chance(config, bins, (height, width)).nll.mean())
    if ended <= ABOVE * chance:
        return ""
    return (
        f"manipulation ended at {ended:,.3f} nats, above the {chance:.3f} of a model blind to the views: it reads no "
        "actions off them; try a lower --lr, or more epochs"
    )


def main(argv: list[str]) -> Outcome | None:
    """Run the command line; ValueError for a user's mistake."""
    outcome = pretrain_command(argv, VISION)
    if outcome is not None and is_first() and (warning := unread(outcome)):
        say(warning)
    return outcome


if __name__ == "__main__":
    command(lambda: main(sys.argv[1:]), RuntimeError, interrupted="interrupted before the first step")
