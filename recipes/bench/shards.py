"""Images and speech from shards against single files, for each second of one core: python -m recipes.bench.shards.

  python -m recipes.bench.shards --root ImageNet/val --out speed.json
  python -m recipes.bench.shards --root tiny-imagenet/train --size 64 --libraries
  python -m recipes.bench.shards --corpus data/LibriSpeech

The images below --root are written as shards (checked and hashed, as recipes.shards does it), then read in turn in the
same run: bytes alone and, as pretraining does, decoded and cropped twice; from their files and from the shards.
With --libraries, bytes also come from webdataset's own pipeline over the same shards and from litdata's chunks of the
same images, both shuffled their own way, and litdata's loader is resumed in the middle of an epoch; they must be
installed. The utterances below --corpus (16 kHz, mono) are prepared and written as shards and as WAV files; their
windows then come in turn from the files as they were, from WAV files, from the prepared corpus and from the shards.

A core is a second of processor time of this process, which reads without workers; the kernel's part of reading counts.
Files lie in the system's cache after the first pass, so this measures what reading costs a processor, not a disk: on a
disk that seeks, or over a network, single files cost more.

Nothing else should run meanwhile: the last line says how much processor time other programs took.
"""

import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import tyro
from rich.progress import Progress

from recipes import records
from recipes.bench import shards_peers as peers
from recipes.bench import shards_speech, speech_files
from recipes.bench.turns import in_turn
from recipes.others import Others
from recipes.run_folder import check_writable
from recipes.terminal import CONSOLE, command, say, table
from stec.audio.shards import SpeechShards, speech_sources
from stec.core.batches import EpochBatches
from stec.core.shards import ShardBatches
from stec.core.shards.writing import Sources, write_shards
from stec.vision.folder import ImageFiles, image_folder
from stec.vision.shards import ShardedImages, image_sources
from stec.vision.streaming import CroppedPairs, streaming_loader
from stec.vision.views import SIMCLR_IMAGENET

FILES, SHARDS, WEBDATASET, LITDATA = "files", "shards", "webdataset", "litdata"
AUDIO, WAV, CORPUS = "single files", "single WAV files", "prepared corpus"
VIEWS = ", two crops"
BATCH = 32


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    root: Path | None = None  # a folder of images, at any depth
    corpus: Path | None = None  # a folder of 16 kHz mono files, or LibriSpeech
    limit: int = 2048  # image files at most, the first by name
    size: int = 224  # pixels of the views
    window: int = 20_480  # samples of the windows
    shard_mb: float = 8.0  # of a shard, about: small, so that there are several
    rounds: int = 5  # samples of each, in turn
    libraries: bool = False  # also webdataset's and litdata's own reading
    out: Path | None = None  # a file of records


class Found(NamedTuple):
    """What was measured on images, or on windows of speech."""

    unit: str
    data: str
    core: dict[str, float]  # of each arm, for each second of processor time
    writing: dict[str, tuple[float, int]]  # seconds of processor time, and bytes, of each way of writing
    resumed: dict[str, str]  # what litdata's loader did
    others: float  # cores that other programs took meanwhile


def write(sources: Sources, folder: Path, arguments: Arguments) -> tuple[float, int]:
    """Write shards: seconds of processor time, and bytes."""
    begin = time.process_time()
    write_shards(sources, folder, shard_bytes=int(arguments.shard_mb * 1e6))
    return time.process_time() - begin, peers.size_of(folder)


def rates(work: dict[str, Callable[[], int]], rounds: int) -> tuple[dict[str, float], float]:
    """What each reads for each second of processor time, the median of samples in turn; and others' cores."""
    found: dict[str, list[float]] = {name: [] for name in work}
    with Progress(console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal) as progress:
        task = progress.add_task("reading", total=(rounds + 1) * len(work))

        def read(name: str) -> None:
            begin = time.process_time()
            count = work[name]()
            found[name].append(count / (time.process_time() - begin))
            progress.advance(task)

        others = Others()
        in_turn({name: lambda name=name: read(name) for name in work}, rounds)  # type: ignore[misc]
        cores = others.cores()
    return {name: statistics.median(each[1:]) for name, each in found.items()}, cores  # the first warms up


def images(arguments: Arguments, root: Path, scratch: Path) -> Found:
    """All passes through the same images. ValueError where there are too few."""
    files = image_folder(root.expanduser(), labelled=False)
    if len(files) < BATCH:
        raise ValueError(f"{root} has {len(files)} images; need at least {BATCH}")
    files = files.select(torch.arange(min(arguments.limit, len(files))))
    writing = {SHARDS: write(image_sources(files), scratch / SHARDS, arguments)}
    shards = ShardedImages.open(scratch / SHARDS)
    arms = {FILES: peers.from_files(files), SHARDS: peers.from_shards(shards)}
    resumed: dict[str, str] = {}
    if arguments.libraries:
        arms[WEBDATASET] = peers.from_webdataset(shards)
        begin = time.process_time()
        arms[LITDATA] = peers.from_litdata(files, scratch / LITDATA, int(arguments.shard_mb * 1e6))
        writing[LITDATA] = time.process_time() - begin, peers.size_of(scratch / LITDATA)
        for after in (1, 2):
            outcome = peers.litdata_resumes(scratch / LITDATA, workers=1, workers_after=after, at=3)
            resumed[f"litdata, stopped with 1 worker, resumed with {after}"] = outcome
    work = {name: samples(arm) for name, arm in arms.items()}
    for name, source in ((FILES, files), (SHARDS, shards)):
        work[name + VIEWS] = cropped(source, arguments.size)
    core, others = rates(work, arguments.rounds)
    return Found("images", f"{len(files)} images of {root.name}", core, writing, resumed, others)


def samples(arm: peers.Arm) -> Callable[[], int]:
    """An epoch of bytes; returns the images."""
    return lambda: sum(1 for _ in arm(0))


def windows(arm: shards_speech.Arm) -> Callable[[], int]:
    """An epoch of batches; returns the windows."""
    return lambda: sum(len(batch) for batch in arm())


def cropped(source: ImageFiles | ShardedImages, size: int) -> Callable[[], int]:
    """An epoch of pairs of crops as pretraining reads them; returns the images."""
    law = SIMCLR_IMAGENET
    pairs = CroppedPairs(source, size, scale=law.scale, ratio=law.ratio, p_flip=law.p_flip)
    order = EpochBatches(len(source), batch_size=BATCH, seed=0)
    if isinstance(source, ShardedImages):
        order = ShardBatches(source.shard, batch_size=BATCH, seed=0)
    loader = streaming_loader(pairs, order, workers=0, pin_memory=False)
    return lambda: sum(len(batch.x) for batch in loader)


def speech(arguments: Arguments, folder: Path, scratch: Path) -> Found:
    """All passes through the same windows. ValueError where files are not at 16 kHz and mono."""
    folder = folder.expanduser()
    found = speech_files.speech(folder, scratch, name=folder.name, workers=os.cpu_count() or 1)
    writing = {SHARDS: write(speech_sources(found.corpus), scratch / "speech-shards", arguments)}
    paths, window = [file.path for file in found.files], arguments.window
    shards = SpeechShards.open(scratch / "speech-shards")
    kind = ", ".join(sorted({path.suffix.lstrip(".").upper() for path in paths}))
    arms = {
        f"{AUDIO} ({kind})": shards_speech.from_audio(paths, found.corpus, window),
        WAV: shards_speech.from_audio(shards_speech.write_wav(paths, scratch / "wav"), found.corpus, window),
        CORPUS: shards_speech.from_corpus(found.corpus, window),
        SHARDS: shards_speech.from_corpus(shards, window),
    }
    work = {name: windows(arm) for name, arm in arms.items()}
    core, others = rates(work, arguments.rounds)
    return Found("windows", found.name, core, writing, {}, others)


def of_shards(found: Found, arm: str) -> float:
    """The rate of shards that an arm's is held against."""
    return found.core[SHARDS + VIEWS if arm.endswith(VIEWS) else SHARDS]


def results(found: Found) -> list[records.Result]:
    """The ratios of shards over everything else, with the rates."""
    rows = []
    for name, rate in found.core.items():
        if not name.startswith(SHARDS):
            details: dict[str, object] = {
                f"shards, {found.unit}/s of one core": round(of_shards(found, name)),
                f"{name}, {found.unit}/s of one core": round(rate),
                "data": found.data,
                "other programs, cores": round(found.others, 2),
            }
            ratio = round(of_shards(found, name) / rate, 3)
            rows.append(records.Result(f"{found.unit}: shards over {name}", ratio, "cpu", details))
    return rows


def show(found: Found) -> None:
    """The rates, the ratios, what writing took, and what resuming did."""
    say(found.data)
    lines = [[arm, f"{rate:,.0f}", f"{of_shards(found, arm) / rate:.2f}"] for arm, rate in found.core.items()]
    table(["read", f"{found.unit}/s", "shards over it"], lines, title=f"{found.unit}/s of one core")
    written = [[arm, f"{seconds:.2f}", f"{size / 1e6:.1f}"] for arm, (seconds, size) in found.writing.items()]
    table(["written", "s of one core", "MB"], written, title="writing")
    for what, outcome in found.resumed.items():
        say(f"{what}: {outcome}")
    say(f"other programs used {found.others:.2f} of a core meanwhile")


def main(argv: list[str] | None = None) -> None:
    """The command line; ValueError for a user's mistake."""
    arguments = tyro.cli(Arguments, args=argv, prog="python -m recipes.bench.shards", description=__doc__)
    if arguments.root is None and arguments.corpus is None:
        raise ValueError(
            "what is to be read? give --root, a folder of images, or --corpus, one of audio files, or both"
        )
    if arguments.rounds < 1 or arguments.size < 1 or arguments.limit < BATCH:
        raise ValueError(f"rounds and size must be at least 1, limit at least {BATCH}")
    if arguments.out:
        check_writable(arguments.out.parent)
    start = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    found: list[Found] = []
    try:
        with tempfile.TemporaryDirectory(prefix="stec-shards-") as scratch:
            if arguments.root is not None:
                found.append(images(arguments, arguments.root, Path(scratch)))
            if arguments.corpus is not None:
                found.append(speech(arguments, arguments.corpus, Path(scratch)))
    finally:
        torch.set_num_threads(threads)
    for each in found:
        show(each)
    if arguments.out:
        record = records.record(
            method="speed",
            preset="imagenet-resnet50-stec" if arguments.root else "cpc",
            data="; ".join(each.data for each in found),
            seed=0,
            seconds=time.perf_counter() - start,
            results=[row for each in found for row in results(each)],
            settings={name: getattr(arguments, name) for name in ("size", "window", "shard_mb", "rounds")},
            stage="bench",
        )
        records.write([record], arguments.out)


if __name__ == "__main__":
    command(main)
    if "litdata" in sys.modules:  # 0.2.76 leaves something behind that keeps the interpreter from ending
        sys.stdout.flush()
        os._exit(0)
