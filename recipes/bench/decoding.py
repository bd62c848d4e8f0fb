"""Large images from files, in pairs of views per second of one core: python -m recipes.bench.decoding.

  python -m recipes.bench.decoding --root ImageNet/val --out speed.json
  python -m recipes.bench.decoding --root ImageNet/val --consumption 2500

Workers decode each file once and cut two views from it, as pretraining on streamed images does. Beside that, in turn in
the same run: the plain way of torchvision (PIL decodes, RandomResizedCrop and a flip twice), and decoding alone, the
bound of both. A core is a second of processor time, of the workers and of the process that they feed, so that other
programs disturb the rate through caches and memory alone. From it follows how many cores feed an accelerator that
takes --consumption pairs/s (its steps/s times the batch size). Without --root, files of noise are made, as large as
ImageNet's are on average.

Nothing else should run meanwhile: the last line says how much processor time other programs took.
"""

import dataclasses
import gc
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
import tyro
from PIL import Image
from rich.progress import Progress
from torch.utils.data import DataLoader, Dataset

from recipes import records
from recipes.bench.decoding_peers import Decoded, PlainPairs, keep_freed_memory, write_noise
from recipes.bench.turns import OTHERS, in_turn
from recipes.others import Others
from recipes.run_folder import check_writable
from recipes.terminal import CONSOLE, command, say, table
from stec.core.batches import EpochBatches
from stec.vision.folder import ImageFiles, image_folder
from stec.vision.streaming import CroppedPairs, streaming_loader
from stec.vision.views import SIMCLR_IMAGENET

OURS, PLAIN, DECODE = "ours", "torchvision", "decoding"
CORES = "decoding and two crops: cores for"
CONSUMPTIONS = (1_000.0, 2_500.0, 5_000.0)  # pairs/s, where none is given


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    root: Path | None = None  # a folder of images, at any depth; JPEG files of noise without
    limit: int = 512  # files at most, the first by name; each is read once in a sample
    size: int = 224  # pixels of the views
    workers: tuple[int, ...] = (1, os.cpu_count() or 1)  # processes that decode; 0 is this one
    batch: int = 32
    rounds: int = 5  # samples of each, in turn
    consumption: float | None = None  # pairs/s that the accelerator takes; a table for some rates without
    out: Path | None = None  # a file of records


class Rates(NamedTuple):
    """What one number of workers reached, each rate in pairs of views (images, for decoding alone)."""

    workers: int
    core: dict[str, float]  # for each second of processor time
    wall: dict[str, float]  # per second
    others: float  # cores that other programs took meanwhile


def processor_time() -> float:
    """Seconds of processor time of this process and of its living children, such as workers; Linux only."""
    spent = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent


def measure(files: ImageFiles, arguments: Arguments, workers: int, advance: Callable[[], None]) -> Rates:
    """Median rates over passes through the same files, one after the other in turn; calls `advance` after each pass."""
    batches = EpochBatches(len(files), batch_size=arguments.batch, seed=0)
    law = SIMCLR_IMAGENET
    ours = CroppedPairs(files, arguments.size, scale=law.scale, ratio=law.ratio, p_flip=law.p_flip)
    loaders: dict[str, Iterable[object]] = {OURS: streaming_loader(ours, batches, workers=workers, pin_memory=False)}
    peers: dict[str, Dataset] = {PLAIN: PlainPairs(files, arguments.size), DECODE: Decoded(files)}
    same = [indices.tolist() for indices in batches]
    for name, dataset in peers.items():
        loaders[name] = DataLoader(
            dataset,
            batch_sampler=same,
            num_workers=workers,
            worker_init_fn=keep_freed_memory,
            persistent_workers=workers > 0,
        )
    spent: dict[str, list[float]] = {name: [] for name in loaders}

    def read(name: str) -> None:
        before = processor_time()
        for _ in loaders[name]:
            pass
        spent[name].append(processor_time() - before)
        advance()

    others = Others()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        seconds = in_turn({name: lambda name=name: read(name) for name in loaders}, arguments.rounds)  # type: ignore[misc]
    finally:
        torch.set_num_threads(threads)
        loaders.clear()
        gc.collect()  # ends the workers: only then their time counts as this program's
    cores = others.cores()
    pairs = len(batches) * arguments.batch
    core = {name: pairs / statistics.median(found[1:]) for name, found in spent.items()}  # the first pass warms up
    return Rates(workers, core, {name: pairs / value for name, value in seconds.items()}, cores)


def describe(files: ImageFiles, name: str) -> str:
    """How many files of which size: what the cost of decoding depends on."""
    sizes, pixels = [], []
    for i in range(len(files)):
        sizes.append(os.path.getsize(files.path(i)))
        with Image.open(files.path(i)) as image:
            pixels.append(image.width * image.height)
    megapixels, kilobytes = statistics.mean(pixels) / 1e6, statistics.mean(sizes) / 1e3
    return f"{len(files)} files of {name}, on average {megapixels:.2f} megapixels and {kilobytes:.0f} kB"


def cores(consumption: float, rate: float) -> float:
    """Cores that feed `consumption` pairs/s, at `rate` pairs per second of one.

    >>> cores(2_500, 400)
    6.25
    """
    return consumption / rate


def results(found: list[Rates], arguments: Arguments) -> list[records.Result]:
    """The ratio for every number of workers, with its rates; and the cores needed at the rate of the last."""
    rows = []
    for rates in found:
        details: dict[str, object] = {f"{arm}, pairs/s of one core": round(rate) for arm, rate in rates.core.items()}
        details |= {f"{arm}, pairs/s": round(rate) for arm, rate in rates.wall.items()}
        details |= {OTHERS: round(rates.others, 2)}
        metric = f"decoding and two crops, {rates.workers} workers: times plain torchvision"
        rows.append(records.Result(metric, rates.core[OURS] / rates.core[PLAIN], "cpu", details))
    rate = found[-1].core[OURS]
    for consumption in CONSUMPTIONS if arguments.consumption is None else (arguments.consumption,):
        metric = f"{CORES} {consumption:,g} pairs/s"
        rows.append(records.Result(metric, cores(consumption, rate), "cpu", {"pairs/s of one core": round(rate)}))
    return [dataclasses.replace(row, value=round(row.value, 3)) for row in rows]


def show(found: list[Rates], rows: list[records.Result], data: str, size: int) -> None:
    """The rates, and how many cores they mean."""
    say(f"{data}; two views of {size} pixels of each")
    lines = []
    for rates in found:
        each = [f"{rates.core[arm]:.0f}" for arm in (OURS, PLAIN, DECODE)]
        lines.append([f"{rates.workers}", *each, f"{rates.core[OURS] / rates.core[PLAIN]:.2f}"])
    table(["workers", OURS, PLAIN, f"{DECODE} alone", "ratio"], lines, title="pairs/s of one core")
    needed = [[row.metric.removeprefix(CORES), f"{row.value:.1f}"] for row in rows if row.metric.startswith(CORES)]
    table(["consumption", "cores"], needed, title="cores that feed it")
    say(f"other programs used up to {max(rates.others for rates in found):.2f} of a core meanwhile")


def check(arguments: Arguments) -> None:
    """ValueError for numbers that measure nothing."""
    for name, value, least in (
        ("rounds", arguments.rounds, 1),
        ("size", arguments.size, 1),
        ("limit", arguments.limit, 2),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; need at least {least}")
    if not arguments.workers or min(arguments.workers) < 0:
        raise ValueError(f"workers are {arguments.workers}; give one number or more, 0 for no process beside this")
    if arguments.consumption is not None and not arguments.consumption > 0:
        raise ValueError(f"consumption is {arguments.consumption}; give the pairs/s that the accelerator takes")
    if not Path("/proc/self/stat").is_file():
        raise ValueError("processor time of workers is read from /proc, which this system lacks: measure on Linux")


def run(arguments: Arguments, folder: Path) -> None:
    """Measure on the images of the folder."""
    files = image_folder(folder, labelled=False)
    files = files.select(torch.arange(min(arguments.limit, len(files))))
    data = describe(files, folder.name if arguments.root else "noise")
    workers = list(dict.fromkeys(arguments.workers))
    start = time.perf_counter()
    with Progress(console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal) as progress:
        task = progress.add_task("reading files", total=len(workers) * (arguments.rounds + 1) * 3)
        found = [measure(files, arguments, number, lambda: progress.advance(task)) for number in workers]
    rows = results(found, arguments)
    show(found, rows, data, arguments.size)
    if arguments.out:
        record = records.record(
            method="speed",
            preset="imagenet-resnet50-stec",
            data=data,
            seed=0,
            seconds=time.perf_counter() - start,
            results=rows,
            settings={"size": arguments.size, "batch": arguments.batch, "rounds": arguments.rounds},
            stage="bench",
        )
        records.write([record], arguments.out)


def main(argv: list[str] | None = None) -> None:
    """The command line; ValueError for a user's mistake."""
    arguments = tyro.cli(Arguments, args=argv, prog="python -m recipes.bench.decoding", description=__doc__)
    check(arguments)
    if arguments.out:
        check_writable(arguments.out.parent)
    if arguments.root is not None:
        run(arguments, arguments.root.expanduser())
        return
    with tempfile.TemporaryDirectory(prefix="stec-decoding-") as scratch:
        write_noise(Path(scratch), min(arguments.limit, 128))
        run(arguments, Path(scratch))


if __name__ == "__main__":
    command(main)
