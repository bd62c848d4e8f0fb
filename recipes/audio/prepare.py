"""Make a corpus of audio files: python -m recipes.audio.prepare ROOT --out CACHE.

  python -m recipes.audio.prepare data/LibriSpeech --out cache/libri --subsets train-clean-100
  python -m recipes.audio.prepare recordings --out cache/mine --speaker folder
  python -m recipes.audio.prepare data --download train-clean-100 --out cache/libri      (needs a network)

ROOT is LibriSpeech in its original layout, or any folder of FLAC, WAV, OGG and MP3 files of any rate. What is
interrupted goes on with the same command; on unchanged files nothing is done.
"""

import dataclasses
import os
import time
from pathlib import Path
from typing import Literal

import tyro

from recipes.counting import Counting
from recipes.terminal import command, say
from stec.audio.corpus import Corpus
from stec.audio.preparing import Prepared, prepare
from stec.audio.sources import AudioFile, download_librispeech, find_audio

WINDOW = 20_480  # samples, of the published CPC; what is shorter is counted


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to prepare, and where to."""

    root: tyro.conf.Positional[Path]  # LibriSpeech, a subset of it, or any folder of audio
    out: Path  # the folder of the cache
    speaker: Literal["folder", "none"] = "folder"  # who speaks: the first folder below ROOT (LibriSpeech: as laid out)
    subsets: tuple[str, ...] = ()  # of LibriSpeech; all that are there by default
    workers: int = os.cpu_count() or 1  # threads that decode
    skip_broken: bool = False  # leave broken files out; otherwise they are listed and nothing is finished
    replace: bool = False  # also where utterances of the cache in --out would vanish or change their speaker or chapter
    download: str | None = None  # a subset of LibriSpeech to fetch into ROOT first


def find(arguments: Arguments) -> list[AudioFile]:
    """The files that the arguments name, fetched first if need be."""
    root, subsets = arguments.root, arguments.subsets
    if arguments.download:
        download_librispeech(root, arguments.download)
        subsets = subsets or (arguments.download,)
    return find_audio(root, speaker=arguments.speaker, subsets=subsets or None)


def summary(done: Prepared, corpus: Corpus, *, seconds: float) -> list[str]:
    """What a person wants to know of a finished cache, a line each."""
    short = int((corpus.lengths < WINDOW).sum())
    speakers = [name for name in corpus.speakers if name]
    spoken = f"{len(speakers)} speakers" if speakers else "no speakers known"
    lines = [
        f"{done.cache}: {len(corpus)} utterances, {corpus.hours:.2f} hours, {spoken}, {2 * done.samples / 1e6:.1f} MB"
    ]
    if done.fresh:
        lines.append("nothing was to do: the files are those of the cache")
    else:
        new = len(corpus) - done.resumed
        kept = f", {done.resumed} were there from an earlier run" if done.resumed else ""
        speed = f", {corpus.hours * 3600 / seconds:,.0f} times real time" if not done.resumed else ""
        lines.append(f"{new} decoded in {seconds:.1f} s{speed}{kept}")
    if short:
        lines.append(f"{short} are shorter than a window of {WINDOW} samples ({WINDOW / corpus.rate:.2f} s)")
    if done.left_out:
        lines.append(f"{len(done.left_out)} broken files left out, such as {done.left_out[0]}")
    return lines


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    arguments = tyro.cli(Arguments, args=argv, prog="python -m recipes.audio.prepare", description=__doc__)
    files = find(arguments)
    start = time.monotonic()
    try:
        with Counting("decoding files") as progress:
            done = prepare(
                files,
                arguments.out,
                workers=arguments.workers,
                skip_broken=arguments.skip_broken,
                replace=arguments.replace,
                progress=progress,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on where it stopped") from None
    seconds = time.monotonic() - start
    for line in summary(done, Corpus.open(arguments.out), seconds=seconds):
        say(line)


if __name__ == "__main__":
    command(main)
