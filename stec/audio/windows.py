"""Windows of equal length out of a corpus: which ones make a batch, as a function of (seed, step), and their samples.

A window never crosses the end of an utterance. Its start is any sample: the released code of Greedy InfoMax (Löwe et
al. 2019) starts at multiples of 160, which ties a frame's content to the grid of the labels for no gain.
"""

import functools
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Int16, Int64
from torch import Tensor

from stec.audio.corpus import Corpus
from stec.audio.shards import ShardSamples, SpeechShards
from stec.core import distributed
from stec.core.actions import step_seed
from stec.core.devices import to_device
from stec.core.shards import LANES, MIXED, in_lanes, shard_order


class WindowIndex(NamedTuple):
    """The windows of a batch: an utterance's index in the corpus, and where in it the window starts, in samples."""

    utterance: Int64[Tensor, " b"]
    start: Int64[Tensor, " b"]
    start_prime: Int64[Tensor, " b"] | None  # of a second window of the same utterance


class Windows(NamedTuple):
    """What a loader yields; waveforms are these samples / 32768."""

    x: Int16[Tensor, "b n"]
    x_prime: Int16[Tensor, "b n"] | None
    utterance: Int64[Tensor, " b"]
    chapter: Int64[Tensor, " b"]
    speaker: Int64[Tensor, " b"]
    start: Int64[Tensor, " b"]  # of x within its utterance, in samples


class WindowBatches:
    """Batches of windows: every epoch new windows in a new order, the incomplete last batch dropped.

    `sampling` "random" takes one random window of each utterance an epoch; "all" takes all `length // window` windows
    of each, one after the other from a random offset of the utterance. `together` "speaker" or "utterance" makes every
    `group` consecutive rows of a batch come from one; `left_out` windows an epoch, other ones each time, fill no group.
    With "utterance" and "random", a group is `group` random windows of one utterance. `pairs` draws a second window of
    the same utterance for each, independent of the first. `too_short` utterances have no window.

    Of `SpeechShards` the order is that of `stec.core.shards.ShardBatches`: `MIXED` shards are shuffled together, and
    parts of a batch come from shards far apart. A group whose windows lie in several blocks comes with the last of it.

    With W processes each takes its own `batch_size / W` of every batch, in whole groups. `steps_done` tells how many
    steps a resumed run has behind it; iteration begins there, also within an epoch.

    Raises ValueError where no batch can be filled, where batches do not divide into groups or, in iteration, among the
    processes, and where speakers are to come together in a corpus that does not know them.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        batch_size: int,
        seed: int,
        window: int = 20_480,
        sampling: Literal["random", "all"],
        together: Literal["uniform", "speaker", "utterance"],
        group: int = 8,
        pairs: bool = False,
    ) -> None:
        if batch_size < 1 or window < 1 or group < 1:
            raise ValueError(f"batch size {batch_size}, window {window}, group {group}; each must be at least 1")
        if together != "uniform" and batch_size % group:
            raise ValueError(f"batch size {batch_size} is no multiple of the group of {group}; choose one that is")
        if together == "speaker" and "" in {corpus.speakers[i] for i in corpus.speaker.unique().tolist()}:
            raise ValueError(
                f"{corpus.path} does not know who speaks in all its utterances; prepare it with --speaker folder from "
                "a folder for each speaker, or choose together='uniform' or 'utterance'"
            )
        self.batch_size = batch_size
        self.seed = seed
        self.window = window
        self.sampling = sampling
        self.together = together
        self.group = group if together != "uniform" else 1
        self.pairs = pairs
        self.steps_done: Callable[[], int] = lambda: 0
        names = zlib.crc32("\n".join(corpus.utterances).encode())
        self._corpus = {"utterances": len(corpus), "samples": int(corpus.lengths.sum()), "names": names}
        self._lengths = corpus.lengths
        long_enough = (corpus.lengths >= window).nonzero().flatten()
        self.too_short = len(corpus) - len(long_enough)
        if not len(long_enough):
            longest = int(corpus.lengths.max())
            raise ValueError(
                f"no utterance of {corpus.path} has a window of {window} samples, the longest has {longest}; "
                f"choose a window of at most {longest}"
            )
        counts = {
            ("all", False): corpus.lengths[long_enough] // window,
            ("random", False): torch.ones_like(long_enough),
            ("random", True): torch.full_like(long_enough, group),
            ("all", True): corpus.lengths[long_enough] // window,
        }[sampling, together == "utterance"]
        self._rows = long_enough.repeat_interleave(counts)  # the utterance of each window of an epoch
        self._nth = torch.arange(len(self._rows)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        key = {"uniform": torch.arange(len(self._rows)), "speaker": corpus.speaker[self._rows], "utterance": self._rows}
        self._key = key[together]
        self._shard = corpus.shard[self._rows] if isinstance(corpus, SpeechShards) else None
        if self._shard is not None:
            self._corpus["shards"] = zlib.crc32(self._shard.numpy().tobytes())
        self._usable = int((self._key.unique(return_counts=True)[1] // self.group).sum()) * self.group
        self.left_out = len(self._rows) - self._usable
        if self._usable < batch_size:
            smaller = "--batch-size or --batch-group" if self.group > 1 else "--batch-size"
            shorter = "a shorter --window, or --sampling all" if sampling == "random" else "or a shorter --window"
            raise ValueError(
                f"an epoch of {corpus.path} has {self._usable} windows ({self.too_short} utterances are too short, "
                f"{self.left_out} windows fill no group), less than a batch of {batch_size}; choose a smaller "
                f"{smaller}, {shorter}"
            )

    def __len__(self) -> int:
        """Steps in an epoch."""
        return self._usable // self.batch_size

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to."""
        return self.steps_done() // len(self)

    def __iter__(self) -> Iterator[WindowIndex]:
        world = distributed.world_size()
        if self.batch_size % (world * self.group):
            raise ValueError(
                f"batch size {self.batch_size} does not divide among {world} processes in groups of {self.group}; "
                f"choose a multiple of {world * self.group}"
            )
        epoch, position = divmod(self.steps_done(), len(self))
        utterance, start, start_prime = self._epoch(epoch)
        share = self.batch_size // world
        for step in range(position, len(self)):
            first = step * self.batch_size + distributed.rank() * share
            mine = slice(first, first + share)
            yield WindowIndex(utterance[mine], start[mine], None if start_prime is None else start_prime[mine])

    def _epoch(self, epoch: int) -> WindowIndex:
        """All windows of an epoch in their order. Starts are drawn for all rows, whether they fill a group or not."""
        generator = torch.Generator().manual_seed(step_seed(self.seed, epoch, stream=1))
        if self._shard is None:
            order = self._groups(torch.randperm(len(self._rows), generator=generator), generator)
        else:
            order = self._groups(shard_order(self._shard, mixed=MIXED, generator=generator), None)
            lanes = math.gcd(self.batch_size // self.group, LANES)  # whole groups in each
            order = in_lanes(order, batch_size=self.batch_size, lanes=lanes)
        slack = self._lengths - self.window  # the last possible start in each utterance
        if self.sampling == "all":
            offset = _below(self._lengths % self.window + 1, generator)
            start = offset[self._rows] + self._nth * self.window
        else:
            start = _below(slack[self._rows] + 1, generator)
        start_prime = _below(slack[self._rows] + 1, generator)[order] if self.pairs else None
        return WindowIndex(self._rows[order], start[order], start_prime)

    def _groups(self, order: Int64[Tensor, " m"], generator: torch.Generator | None) -> Int64[Tensor, " k"]:
        """A random order's rows as a random order of whole groups; what fills none is the last of its key.

        Without a generator, groups come in the order of their last rows.
        """
        if self.group == 1:
            return order
        by_key = order[self._key[order].argsort(stable=True)]
        _, which, sizes = self._key[by_key].unique_consecutive(return_inverse=True, return_counts=True)
        rank = torch.arange(len(by_key)) - (sizes.cumsum(0) - sizes)[which]
        groups = by_key[rank < (sizes // self.group * self.group)[which]].view(-1, self.group)
        if generator is not None:
            return groups[torch.randperm(len(groups), generator=generator)].flatten()
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        return groups[place[groups].amax(dim=1).argsort()].flatten()

    def state_dict(self) -> dict[str, Any]:
        """What must be the same when a run goes on."""
        names = ("batch_size", "seed", "window", "sampling", "together", "group", "pairs")
        return {**self._corpus, **{name: getattr(self, name) for name in names}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that a checkpoint was made on this order of the data; ValueError where it was not."""
        mine = self.state_dict()
        if state != mine:
            names = [name for name in {**mine, **state} if state.get(name) != mine.get(name)]
            other = ", ".join(f"{name} {state.get(name)} there, {mine.get(name)} here" for name in names)
            raise ValueError(f"the checkpoint was made with other data or batches: {other}; use the same")


def _below(limits: Int64[Tensor, " n"], generator: torch.Generator) -> Int64[Tensor, " n"]:
    """For each limit a uniform number from 0 to limit - 1; without a limit above 0 there is none, and it is unused."""
    return (torch.rand(len(limits), generator=generator, dtype=torch.float64) * limits).long()


def gather(samples: np.ndarray | ShardSamples, starts: np.ndarray, window: int) -> Int16[Tensor, "b n"]:
    """The windows that begin at `starts` (b,) of int16 samples (n,), copied one by one; pinned where there is CUDA.

    Slices are copied at three times the rate of one fancy index, which builds an index of b x window numbers first.
    Raises ValueError where a window leaves the samples.

    >>> gather(np.arange(9, dtype=np.int16), np.array([0, 6]), 3).tolist()
    [[0, 1, 2], [6, 7, 8]]
    """
    places = starts.tolist()  # numpy would take as long for their extremes as for copying a window
    if places and not 0 <= min(places) <= max(places) <= len(samples) - window:
        raise ValueError(f"windows of {window} from {min(places)} to {max(places)} leave {len(samples)} samples")
    # Slices of a memmap cost more than copying them.
    plain = samples if isinstance(samples, ShardSamples) else np.asarray(samples)
    batch = torch.empty((len(starts), window), dtype=torch.int16, pin_memory=_pinned())
    rows = batch.numpy()
    for row, start in zip(rows, places):
        row[:] = plain[start : start + window]
    return batch


@functools.cache
def _pinned() -> bool:
    """Whether there is a GPU to copy to; asking takes as long as gathering a batch."""
    return torch.cuda.is_available()


@runtime_checkable
class IndexBatches(Protocol):
    """Batches of windows by index, such as `WindowBatches`."""

    @property
    def window(self) -> int: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[WindowIndex]: ...


class WindowLoader(Iterable[Windows], Sized):
    """Batches of samples: gathered on the host from the memory map, or on a device that holds the whole corpus.

    Without `device` the samples stay on the disk and in the system's page cache. With one, the corpus's utterances are
    copied there once (2 bytes a sample: 11.6 GB for the 100 hours of train-clean-100), and batches are there too.
    Raises ValueError where the device is too small for that.
    """

    def __init__(self, corpus: Corpus, batches: IndexBatches, *, device: torch.device | str | None = None) -> None:
        self.corpus = corpus
        self.batches = batches
        self.device = None if device is None else torch.device(device)
        starts = corpus.starts
        if self.device is not None:
            starts = corpus.lengths.cumsum(0) - corpus.lengths
            self._resident = _resident(corpus, self.device)
        # Of each utterance a row: one look-up for a batch, since each costs as much as copying a window.
        self._table = torch.stack((starts, corpus.chapter, corpus.speaker), dim=1)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Windows]:
        return (windows for _, windows in self.indexed())

    def indexed(self) -> Iterator[tuple[WindowIndex, Windows]]:
        """Every batch, with where it was cut, on the host wherever the batch lies."""
        for index in self.batches:
            utterance, start, start_prime = index
            begin, chapter, speaker = self._table[utterance].unbind(dim=1)
            x = self._windows(begin + start)
            x_prime = None if start_prime is None else self._windows(begin + start_prime)
            labels = (utterance, chapter, speaker, start)
            yield index, Windows(x, x_prime, *(self.place(label) for label in labels))

    def _windows(self, starts: Int64[Tensor, " b"]) -> Int16[Tensor, "b n"]:
        if self.device is None:
            return gather(self.corpus.samples, starts.numpy(), self.batches.window)
        return self._resident.unfold(0, self.batches.window, 1)[self.place(starts)]

    def place(self, values: Int[Tensor, "b ..."]) -> Int[Tensor, "b ..."]:
        """Host values where the batches lie."""
        return values if self.device is None else to_device(values, self.device)


def _resident(corpus: Corpus, device: torch.device) -> Int16[Tensor, " n"]:
    """The corpus's utterances, one after the other, on a device."""
    total = int(corpus.lengths.sum())
    try:
        resident = torch.empty(total, dtype=torch.int16, device=device)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"{corpus.path} needs {2 * total / 1e9:.1f} GB on {device}, which has less; leave the samples on the host"
        ) from error
    end = 0
    for start, length in zip(corpus.starts.tolist(), corpus.lengths.tolist()):
        # np.array: torch warns of arrays that cannot be written to, as the map is.
        resident[end : end + length] = torch.from_numpy(np.array(corpus.samples[start : start + length]))
        end += length
    return resident
