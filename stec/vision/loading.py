"""Image files into memory, once and in parallel, where they fit; else a check of what is to be streamed."""

import dataclasses
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from stec.core.inert import named
from stec.vision.data import ImageSet
from stec.vision.decoding import centre, check, decode_rgb
from stec.vision.folder import ImageFiles

Progress = Callable[[int, int], None]  # files done, of how many
Broken = tuple[Path, str]  # and the reason
SEVERAL_SIZES = "the images are of several sizes"
NAMED = 3  # broken files, in one line


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """What `load` made of a folder: `resident` is None where the files are to be streamed, for the reason given."""

    files: ImageFiles  # without the broken ones
    resident: ImageSet | None
    broken: tuple[Broken, ...]  # skipped, each with its reason
    why_streamed: str

    @property
    def left_out(self) -> str:
        """How many files were skipped, and the names below the root of the first; empty where none was."""
        if not self.broken:
            return ""
        names = named([str(path.relative_to(self.files.root)) for path, _ in self.broken[:NAMED]])
        return f"{len(self.broken):,} unreadable left out: {names}{_further(len(self.broken))}"


def load(
    files: ImageFiles,
    *,
    size: int | None,
    memory_budget: int,
    skip_broken: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Loaded:
    """Decode all files into memory once, if they have one size and fit `memory_budget` bytes; else check them.

    With `size` every image's shorter side is resized to it (bilinear, antialiased) and the centre is cut out. `threads`
    defaults to the cores, at most 16; `progress` is called with the files done and their number. Files to be streamed
    are decoded once to find torn ones, at low resolution where that is cheaper; `stec.vision.held` can hold them in
    their own shapes. Raises ValueError naming the first few broken files unless `skip_broken`; where none is left,
    always.
    """
    height, width = (size, size) if size else _first_size(files)
    needed = len(files) * 3 * height * width
    pool = _Pool(files, threads or min(os.cpu_count() or 1, 16), progress)  # more only queue for Python's lock
    if needed > memory_budget:
        why = f"{len(files)} images of {height}x{width} need {needed:,} bytes, the budget is {memory_budget:,}"
        return _to_stream(files, pool, skip_broken, why)

    images = torch.empty(len(files), 3, height, width, dtype=torch.uint8)
    other_size = threading.Event()

    def decode_chunk(chunk: range) -> Iterable[Broken | None]:
        pixels = np.zeros((len(chunk), height, width, 3), dtype=np.uint8)
        outcome: list[Broken | None] = []
        for row, i in enumerate(chunk):
            if other_size.is_set():
                return []
            path = files.path(i)
            try:
                image = decode_rgb(path)
            except ValueError as error:
                outcome.append((Path(path), str(error)))
                continue
            image = centre(image, resize=size, crop=size) if size else image
            if image.size != (width, height):
                other_size.set()
                return []
            pixels[row] = np.asarray(image)
            outcome.append(None)
        images[chunk.start : chunk.stop] = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        return outcome

    broken = pool.run(decode_chunk)
    if other_size.is_set():
        return _to_stream(files, pool, skip_broken, SEVERAL_SIZES)
    if broken:
        good = _good(files, broken, skip_broken)
        files, images = files.select(good), images[good]
    return Loaded(files, ImageSet(images, files.labels, files.classes), tuple(broken.values()), "")


def _to_stream(files: ImageFiles, pool: "_Pool", skip_broken: bool, why: str) -> Loaded:
    """Every file is decoded once, at low resolution where its format allows: a torn one is found before training."""

    def check_chunk(chunk: range) -> Iterable[Broken | None]:
        for path in map(files.path, chunk):
            try:
                check(path, pixels=True)
                yield None
            except ValueError as error:
                yield Path(path), str(error)

    broken = pool.run(check_chunk)
    if broken:
        files = files.select(_good(files, broken, skip_broken))
    return Loaded(files, None, tuple(broken.values()), why)


class _Pool:
    """Runs work over chunks of the files in threads; Pillow decodes outside Python's lock."""

    def __init__(self, files: ImageFiles, threads: int, progress: Progress | None) -> None:
        self.total = len(files)
        self.threads = threads
        self.progress = progress

    def run(self, work: Callable[[range], Iterable[Broken | None]]) -> dict[int, Broken]:
        """The broken files by index; `work` gives, for each file of a chunk in order, None or what is wrong."""
        chunks = [range(start, min(start + 32, self.total)) for start in range(0, self.total, 32)]
        broken: dict[int, Broken] = {}
        with ThreadPoolExecutor(self.threads) as threads:
            for chunk, outcomes in zip(chunks, threads.map(lambda chunk: list(work(chunk)), chunks)):
                broken.update({i: outcome for i, outcome in zip(chunk, outcomes) if outcome is not None})
                if self.progress is not None:
                    self.progress(chunk.stop, self.total)
        return broken


def _good(files: ImageFiles, broken: dict[int, Broken], skip_broken: bool) -> Int[Tensor, " m"]:
    reasons = "; ".join(reason for _, reason in list(broken.values())[:NAMED])
    reasons += "," * (len(broken) > NAMED) + _further(len(broken))
    if len(broken) == len(files):
        raise ValueError(f"none of {len(files)} files in {files.root} can be decoded: {reasons}")
    if not skip_broken:
        raise ValueError(
            f"{len(broken)} of {len(files)} files in {files.root} cannot be decoded: {reasons}. "
            "Restore or remove them, or pass skip_broken=True (--skip-broken) to go on without them"
        )
    return torch.tensor([i for i in range(len(files)) if i not in broken])


def _further(broken: int) -> str:
    return f" and {broken - NAMED:,} more" if broken > NAMED else ""


def _first_size(files: ImageFiles) -> tuple[int, int]:
    """Height and width of the first image that can be decoded; (1, 1) where none can, which decoding then reports."""
    for i in range(len(files)):
        try:
            width, height = decode_rgb(files.path(i)).size
        except ValueError:
            continue
        return height, width
    return 1, 1
