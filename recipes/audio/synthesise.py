"""Synthesise a phone-labelled corpus in the shape of LibriSpeech; it needs `pip install -e ".[synthesis]"`.

python -m recipes.audio.synthesise --speakers 20 --minutes 60 --out DIR
"""

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from recipes.terminal import CONSOLE, command
from stec.audio.synthetic_corpus import Summary, write_corpus


@dataclass(frozen=True)
class Arguments:
    out: Path
    """A new folder; LibriSpeech, labels.txt, train_split.txt and test_split.txt will lie in it."""
    speakers: int = 20
    """A fifth of them, at least 2, are for testing."""
    minutes: float = 60
    """Of all speakers together."""
    seed: int = 0
    """The same seed, the same corpus."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes; they change nothing but the time."""


def main(argv: list[str]) -> Summary:
    arguments = tyro.cli(Arguments, args=argv, prog="python -m recipes.audio.synthesise", description=__doc__)
    start = time.monotonic()
    with Progress(
        TextColumn("speaking"),
        BarColumn(),
        TextColumn("{task.completed:.1f} of {task.total:.1f} minutes"),
        TimeRemainingColumn(),
        console=CONSOLE,
        disable=not CONSOLE.is_terminal,
    ) as bars:
        task = bars.add_task("", total=arguments.minutes)
        corpus = write_corpus(
            arguments.out,
            speakers=arguments.speakers,
            minutes=arguments.minutes,
            seed=arguments.seed,
            workers=arguments.workers,
            progress=lambda done: bars.update(task, completed=done.minutes),
        )
    seconds = time.monotonic() - start
    frames = sum(corpus.frames.values())
    rows = [
        ("speakers", f"{corpus.speakers} ({corpus.test_speakers} for testing)"),
        ("utterances", f"{corpus.utterances}"),
        ("minutes", f"{corpus.minutes:.1f}"),
        ("seconds an utterance", f"{60 * corpus.minutes / corpus.utterances:.1f}"),
        ("phones", f"{sum(count > 0 for count in corpus.frames.values())} of {len(corpus.frames)}"),
        ("silence", f"{corpus.frames['sil'] / frames:.1%} of the frames"),
        ("took", f"{seconds:.1f} s, {60 * corpus.minutes / seconds:,.0f} times as fast as speech"),
    ]
    for name, value in rows:
        CONSOLE.print(f"{name:<22}{value}", highlight=False, soft_wrap=True)
    CONSOLE.print(
        f"Now: python -m recipes.audio.prepare {arguments.out / 'LibriSpeech'} --out CACHE",
        highlight=False,
        soft_wrap=True,
    )
    return corpus


if __name__ == "__main__":
    command(
        lambda: main(sys.argv[1:]),
        RuntimeError,
        interrupted="interrupted; the same command goes on after the last finished speaker",
    )
