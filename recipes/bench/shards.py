"""Images from shards against single files, in images per second of one core: python -m recipes.bench.shards.

  python -m recipes.bench.shards --root ImageNet/val --out speed.json
  python -m recipes.bench.shards --root tiny-imagenet/train --size 64 --libraries

The images below --root are written as shards (checked and hashed, as recipes.shards does it), then read in turn in the
same run: bytes alone and, as pretraining does, decoded and cropped twice; from their files and from the shards.
With --libraries, bytes also come from webdataset's own pipeline over the same shards and from litdata's chunks of the
same images, both shuffled their own way, and litdata's loader is resumed in the middle of an epoch; they must be
installed. A core is a second of processor time of this process, which reads without workers; the kernel's part of
reading counts. Files lie in the system's cache after the first pass, so this measures what reading costs a processor,
not a disk: on a disk that seeks, or over a network, single files cost more.

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
from recipes.bench.turns import in_turn, processor_seconds
from recipes.run import check_writable
from recipes.terminal import CONSOLE, say, table
from stec.core.batches import EpochBatches
from stec.core.shards import ShardBatches
from stec.core.shards.writing import write_shards
from stec.vision.folder import ImageFiles, image_folder
from stec.vision.shards import ShardedImages, image_sources
from stec.vision.streaming import CroppedPairs, streaming_loader
from stec.vision.views import SIMCLR_IMAGENET

FILES, SHARDS, WEBDATASET, LITDATA = "files", "shards", "webdataset", "litdata"
VIEWS = ", two crops"
BATCH = 32


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    root: Path  # a folder of images, at any depth
    limit: int = 2048  # files at most, the first by name
    size: int = 224  # pixels of the views
    shard_mb: float = 8.0  # of a shard, about: small, so that there are several
    rounds: int = 5  # samples of each, in turn
    libraries: bool = False  # also webdataset's and litdata's own reading
    out: Path | None = None  # a file of records


class Found(NamedTuple):
    """What was measured."""

    core: dict[str, float]  # images for each second of processor time, of each arm
    writing: dict[str, tuple[float, int]]  # seconds of processor time, and bytes, of each way of writing
    resumed: dict[str, str]  # what litdata's loader did
    others: float  # cores that other programs took meanwhile


def measure(files: ImageFiles, folder: Path, arguments: Arguments, advance: Callable[[], None]) -> Found:
    """Median rates over passes through the same images, one arm after the other in turn."""
    writing: dict[str, tuple[float, int]] = {}
    shard_bytes = int(arguments.shard_mb * 1e6)
    begin = time.process_time()
    write_shards(image_sources(files), folder / SHARDS, shard_bytes=shard_bytes)
    writing[SHARDS] = time.process_time() - begin, peers.size_of(folder / SHARDS)
    shards = ShardedImages.open(folder / SHARDS)
    arms = {FILES: peers.from_files(files), SHARDS: peers.from_shards(shards)}
    resumed: dict[str, str] = {}
    if arguments.libraries:
        arms[WEBDATASET] = peers.from_webdataset(shards)
        begin = time.process_time()
        arms[LITDATA] = peers.from_litdata(files, folder / LITDATA, shard_bytes)
        writing[LITDATA] = time.process_time() - begin, peers.size_of(folder / LITDATA)
        for after in (1, 2):
            outcome = peers.litdata_resumes(folder / LITDATA, workers=1, workers_after=after, at=3)
            resumed[f"litdata, stopped with 1 worker, resumed with {after}"] = outcome
    work = {name: lambda arm=arm: [sum(len(content) for content, _ in arm(0))] for name, arm in arms.items()}
    law = SIMCLR_IMAGENET
    for name, images in ((FILES, files), (SHARDS, shards)):
        pairs = CroppedPairs(images, arguments.size, scale=law.scale, ratio=law.ratio, p_flip=law.p_flip)
        order = EpochBatches(len(files), batch_size=BATCH, seed=0)
        if isinstance(images, ShardedImages):
            order = ShardBatches(images.shard, batch_size=BATCH, seed=0)
        loader = streaming_loader(pairs, order, workers=0, pin_memory=False)
        work[name + VIEWS] = lambda loader=loader: [len(batch.x) for batch in loader]
    spent: dict[str, list[float]] = {name: [] for name in work}

    def read(name: str) -> None:
        begin = time.process_time()
        work[name]()
        spent[name].append(time.process_time() - begin)
        advance()

    start, before = time.perf_counter(), processor_seconds()
    in_turn({name: lambda name=name: read(name) for name in work}, arguments.rounds)  # type: ignore[misc]
    elapsed, after_all = time.perf_counter() - start, processor_seconds()
    others = ((after_all[0] - before[0]) - (after_all[1] - before[1])) / elapsed
    whole = len(files) // BATCH * BATCH
    counts = {name: len(files) if name in (WEBDATASET, LITDATA) else whole for name in work}
    core = {name: counts[name] / statistics.median(found[1:]) for name, found in spent.items()}  # the first warms up
    return Found(core, writing, resumed, max(0.0, others))


def results(found: Found) -> list[records.Result]:
    """The ratios of shards over everything else, with the rates."""
    rows = []
    for name, rate in found.core.items():
        ours = SHARDS + VIEWS if name.endswith(VIEWS) else SHARDS
        if name != ours:
            details: dict[str, object] = {
                "shards, images/s of one core": round(found.core[ours]),
                f"{name}, images/s of one core": round(rate),
                "other programs, cores": round(found.others, 2),
            }
            rows.append(records.Result(f"shards over {name}", round(found.core[ours] / rate, 3), "cpu", details))
    return rows


def show(found: Found, count: int, name: str) -> None:
    """The rates, the ratios, what writing took, and what resuming did."""
    say(f"{count} images of {name}")
    lines = []
    for arm, rate in found.core.items():
        ours = found.core[SHARDS + VIEWS if arm.endswith(VIEWS) else SHARDS]
        lines.append([arm, f"{rate:,.0f}", f"{ours / rate:.2f}"])
    table(["read", "images/s", "shards over it"], lines, title="images/s of one core")
    written = [[arm, f"{seconds:.2f}", f"{size / 1e6:.1f}"] for arm, (seconds, size) in found.writing.items()]
    table(["written", "s of one core", "MB"], written, title="writing")
    for what, outcome in found.resumed.items():
        say(f"{what}: {outcome}")
    say(f"other programs used {found.others:.2f} of a core meanwhile")


def main(argv: list[str] | None = None) -> None:
    """The command line; ValueError for a user's mistake."""
    arguments = tyro.cli(Arguments, args=argv, prog="python -m recipes.bench.shards", description=__doc__)
    if arguments.rounds < 1 or arguments.size < 1 or arguments.limit < BATCH:
        raise ValueError(f"rounds and size must be at least 1, limit at least {BATCH}")
    if arguments.out:
        check_writable(arguments.out.parent)
    files = image_folder(arguments.root.expanduser(), labelled=False)
    if len(files) < BATCH:
        raise ValueError(f"{arguments.root} has {len(files)} images; need at least {BATCH}")
    files = files.select(torch.arange(min(arguments.limit, len(files))))
    start = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        with (
            tempfile.TemporaryDirectory(prefix="stec-shards-") as scratch,
            Progress(console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal) as progress,
        ):
            task = progress.add_task("reading", total=(arguments.rounds + 1) * (6 if arguments.libraries else 4))
            found = measure(files, Path(scratch), arguments, lambda: progress.advance(task))
    finally:
        torch.set_num_threads(threads)
    show(found, len(files), arguments.root.name)
    if arguments.out:
        record = records.record(
            method="speed",
            preset="imagenet-resnet50-stec",
            data=f"{len(files)} images of {arguments.root.name}",
            seed=0,
            seconds=time.perf_counter() - start,
            results=results(found),
            settings={"size": arguments.size, "shard_mb": arguments.shard_mb, "rounds": arguments.rounds},
            stage="bench",
        )
        records.write([record], arguments.out)


if __name__ == "__main__":
    try:
        main()
    except ValueError as mistake:
        sys.exit(f"error: {mistake}")
    if "litdata" in sys.modules:  # 0.2.76 leaves something behind that keeps the interpreter from ending
        sys.stdout.flush()
        os._exit(0)
