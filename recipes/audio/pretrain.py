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
import shlex
import sys
from pathlib import Path

import tyro

from recipes.audio.presets import PRESETS, Config, method, preset
from recipes.audio.run import pretrain, read_config, record_of
from recipes.command import Modality, pretrain_command
from recipes.run import Outcome
from recipes.saving import MINUTES
from recipes.terminal import command
from stec.audio.shards import SpeechShards, open_speech


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


def how_to_probe(config: Config, checkpoint: Path) -> str:
    """The commands that read phones and speakers off this checkpoint; words in capitals stand for files to be named.

    Speakers are left out where the corpus does not know two. Probes read no shards: of these the cache is to be named.
    """
    assert config.corpus is not None  # a run has ended on it
    corpus = open_speech(config.corpus)
    cache = "CACHE" if isinstance(corpus, SpeechShards) else shlex.quote(str(config.corpus))
    given = f"--checkpoint {shlex.quote(str(checkpoint))} --corpus {cache}"
    # The supervised run has learnt from these: heads must, too, since the others are what it is tested on.
    labels, split = (config.labels, config.split) if config.supervised else (None, None)
    task = f"--labels {shlex.quote(str(labels)) if labels else 'LABELS'}"
    task += f" --train-split {shlex.quote(str(split)) if split else 'TRAIN_SPLIT'} --test-split TEST_SPLIT"
    lines = [f"  python -m recipes.audio.phones {given} {task}"]
    if len(set(corpus.speakers) - {""}) > 1:
        lines.append(f"  python -m recipes.audio.speakers {given}")
    return "\n".join(["Now, with files of yours for words in capitals:", *lines])


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
    next_step=how_to_probe,
)


def main(argv: list[str]) -> Outcome | None:
    """Run the command line; ValueError for a user's mistake."""
    return pretrain_command(argv, SPEECH)


if __name__ == "__main__":
    command(lambda: main(sys.argv[1:]), RuntimeError, interrupted="interrupted before the first step")
