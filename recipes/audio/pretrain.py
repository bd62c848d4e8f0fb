"""Pretrain an encoder on speech: python -m recipes.audio.pretrain PRESET --corpus CACHE [--batch-size 64 ...].

  python -m recipes.audio.pretrain --list                    every preset, a line each
  python -m recipes.audio.pretrain small-cpc --help          what can be overridden, with the preset's values
  python -m recipes.audio.pretrain cpc --corpus CACHE --split train_split.txt --out runs/cpc
  python -m recipes.audio.pretrain --resume runs/cpc         go on after an interruption; settings are in the folder

With --go-on, one command starts a run and goes on with it (docs/long-runs.md).

CACHE is what `python -m recipes.audio.prepare` wrote. A run folder holds config.json, logs/ (metrics.csv, TensorBoard),
checkpoints/ and, at the end, results.json.
"""

import dataclasses
import sys
from pathlib import Path

import tyro

from recipes.audio.presets import PRESETS, Config, method, preset
from recipes.audio.run import pretrain, read_config, record_of
from recipes.command import Modality, pretrain_command
from recipes.run import Outcome
from recipes.saving import MINUTES
from recipes.terminal import command


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What `pretrain PRESET` takes."""

    config: tyro.conf.OmitArgPrefixes[Config]
    out: Path | None = None  # the run's folder; runs/PRESET-seedN by default
    go_on: bool = False  # go on with the run in that folder where there is one: one command, however often it is run
    checkpoint_minutes: float = MINUTES  # a checkpoint also within an epoch, where it takes longer than this


def line(config: Config) -> str:
    """What distinguishes a preset."""
    return f"{method(config):32s}{config.channels} channels, {config.recurrence.upper()} {config.context_dim}"


SPEECH = Modality(
    module="recipes.audio.pretrain",
    doc=__doc__ or "",
    arguments=Arguments,
    presets=PRESETS,
    line=line,
    preset=preset,
    method=method,
    read_config=read_config,
    pretrain=pretrain,
    record_of=record_of,
    sources="Oord: Oord et al. 2018; GIM: Greedy InfoMax; CPC_audio: Riviere et al. 2020; chosen: ours",
    then="python -m recipes.audio.phones (or speakers) --checkpoint",
)


def main(argv: list[str]) -> Outcome | None:
    """Run the command line; ValueError for a user's mistake."""
    return pretrain_command(argv, SPEECH)


if __name__ == "__main__":
    command(lambda: main(sys.argv[1:]), RuntimeError, interrupted="interrupted before the first step")
