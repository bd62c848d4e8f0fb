"""Speed of CPC on speech as ratios, each measured side by side in this run: python -m recipes.bench.audio.

  python -m recipes.bench.audio --folder data/LibriSpeech --out speed.json
  python -m recipes.bench.audio --parts step --rounds 8

Windows: cached ones against reading each out of its file, on one thread. Step: the CPC training step against a bare
forward and backward pass of its encoder, the default settings against float32, and a plain loop of Greedy InfoMax.
Memory: what the loss adds to the peak. Probe: 20 epochs on features extracted once against decoding and encoding an
utterance for every step. Prepare: files to cache against bare decoding. Without --folder, files are made of noise.

Nothing else should run meanwhile: the last line says how much processor time other programs took.
"""

import dataclasses
import os
import tempfile
import time
from pathlib import Path
from typing import Literal

import tyro

from recipes import records
from recipes.bench import speech_files, speech_step
from recipes.bench.turns import OTHERS
from recipes.run_folder import check_writable
from recipes.terminal import command, say, table

Part = Literal["windows", "step", "memory", "probe", "prepare"]
QUIET = 0.15  # cores that others may take: with more, timings of two threads were off by up to 2.5 times


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    folder: Path | None = None  # of 16 kHz mono files, or LibriSpeech; noise without
    parts: tuple[Part, ...] = ("windows", "step", "memory", "probe", "prepare")
    rounds: int = 4  # samples of each, in turn
    utterances: int = 60  # files of noise, where there is no folder
    utterance_seconds: float = 12.0
    window: int = 20_480  # samples
    window_batches: tuple[int, ...] = (8, 64)
    windows: int = 512  # that one sample of per-window reads takes; cached ones, 40 times as many
    channels: int = 512  # of the encoder
    batch: int = 8  # of the step
    compiled: bool = True  # compile the default settings' encoder, as pretraining does
    memory_batch: int = 64  # sequences of 128 frames, in groups of 8
    probe_utterances: int = 20
    workers: int = os.cpu_count() or 1  # threads that decode
    out: Path | None = None  # a file of records


def measure(arguments: Arguments) -> tuple[list[records.Result], str]:
    """All parts that are asked for, and what they were measured on. ValueError where there is nothing to measure."""
    for name in ("rounds", "workers", "utterances", "windows", "probe_utterances"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name} is {getattr(arguments, name)}; need at least 1")
    channels, rounds = arguments.channels, arguments.rounds
    results = []
    if "step" in arguments.parts:
        results += speech_step.step(
            batch=arguments.batch,
            window=arguments.window,
            channels=channels,
            compiled=arguments.compiled,
            rounds=rounds,
        )
    if "memory" in arguments.parts:
        results += speech_step.memory(batch=arguments.memory_batch, channels=channels)
    name = "random waveforms and features"
    if {"windows", "probe", "prepare"} & set(arguments.parts):
        with tempfile.TemporaryDirectory(prefix="stec-bench-") as scratch:
            found, name = measure_files(arguments, Path(scratch))
            results += found
    return [dataclasses.replace(r, value=round(r.value, 3)) for r in results], name


def measure_files(arguments: Arguments, scratch: Path) -> tuple[list[records.Result], str]:
    """The parts that need files, and which files these were."""
    folder, workers, rounds = arguments.folder, arguments.workers, arguments.rounds
    if folder is None:
        folder, name = scratch / "noise", f"noise, {arguments.utterance_seconds:g} s each"
        speech_files.write_noise(folder, utterances=arguments.utterances, seconds=arguments.utterance_seconds)
    else:
        name = folder.name
    speech = speech_files.speech(folder, scratch, name=name, workers=workers)
    results = []
    if "windows" in arguments.parts:
        results += speech_files.windows(
            speech, batches=arguments.window_batches, window=arguments.window, count=arguments.windows, rounds=rounds
        )
    if "probe" in arguments.parts:
        results += speech_files.probe(
            speech, utterances=arguments.probe_utterances, channels=arguments.channels, rounds=rounds
        )
    if "prepare" in arguments.parts:
        results += speech_files.preparing(speech, workers=workers, rounds=rounds)
    return results, speech.name


def show(results: list[records.Result], others: float | None) -> None:
    """The table for the terminal, and whether to believe it."""
    rows = []
    for r in results:
        rest = ", ".join(f"{key} {value}" for key, value in r.details.items() if key != "wanted")
        rows.append([r.metric, f"{r.value:.2f}", str(r.details.get("wanted", "")), rest])
    table(["", "ratio, MB", "wanted", "measured"], rows, title="speed")
    if others is None:  # nothing was timed
        return
    say(f"other programs used up to {others:.2f} of a core meanwhile")
    if others > QUIET:
        say(f"that is more than {QUIET}: these times are not to be believed, measure again when nothing else runs")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    arguments = tyro.cli(Arguments, args=argv, prog="python -m recipes.bench.audio", description=__doc__)
    if arguments.out:
        check_writable(arguments.out.parent)
    start = time.perf_counter()
    results, data = measure(arguments)
    others = max((float(str(r.details[OTHERS])) for r in results if OTHERS in r.details), default=None)
    show(results, others)
    if arguments.out:
        record = records.record(
            method="speed",
            preset="cpc",
            data=data,
            seed=0,
            seconds=time.perf_counter() - start,
            results=results,
            settings={OTHERS: others},
            stage="bench",
        )
        records.write([record], arguments.out)


if __name__ == "__main__":
    command(main, RuntimeError)
