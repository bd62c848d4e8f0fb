"""A prepared corpus: all samples of all utterances in one memory-mapped file, and who says what where in it."""

import difflib
import json
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stec.audio.decoding import RATE
from stec.core.inert import named

VERSION = 1  # of the cache's format
INDEX = "index.json"  # names the file of samples and tells what is where in it
# Lists of an index, with an item for each utterance; and all that a whole index has.
COLUMNS = ("utterance", "speaker", "chapter", "file", "size", "mtime_ns", "start", "samples", "crc")
KEYS = {"version", "rate", "samples_file", "samples_total", *COLUMNS, "left_out"}
TEXTS = ("utterance", "speaker", "chapter", "file")  # of the columns; the others are whole numbers
SAMPLES = r"samples-[0-9a-f]{16}\.int16"  # no index of a stranger leads out of its folder
PART, JOURNAL = "samples.part", "journal.jsonl"  # what is there until `prepare` has finished


class Corpus:
    """Utterances at 16 kHz, int16, on the disk; made by `stec.audio.preparing.prepare`, opened by `Corpus.open`.

    `starts` and `lengths` (u,) int64 are in samples of `samples`, (total,) int16, which is mapped and cannot be
    written to. `speaker` and `chapter` (u,) int64 are indices into the sorted names `speakers` and `chapters`; the name
    is "" where the files had none.
    """

    def __init__(
        self,
        path: Path,
        samples: np.memmap,
        *,
        rate: int,
        utterances: Sequence[str],
        starts: Int[Tensor, " u"],
        lengths: Int[Tensor, " u"],
        speaker: Int[Tensor, " u"],
        chapter: Int[Tensor, " u"],
        speakers: Sequence[str],
        chapters: Sequence[str],
    ) -> None:
        self.path = path
        self.samples = samples
        self.rate = rate
        self.utterances = tuple(utterances)
        self.starts = starts
        self.lengths = lengths
        self.speaker = speaker
        self.chapter = chapter
        self.speakers = tuple(speakers)
        self.chapters = tuple(chapters)
        self._place = {name: i for i, name in enumerate(self.utterances)}

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = False) -> "Corpus":
        """The corpus in a folder that `prepare` wrote; with `verify`, every checksum is compared.

        Raises ValueError where the folder is missing, unfinished, of another version or incomplete, where its index
        does not fit its samples, and with `verify` where an utterance's samples have changed since they were written.
        """
        folder = Path(path).expanduser()
        index = _read_index(folder)
        file = folder / index["samples_file"]
        if not file.is_file() or file.stat().st_size != 2 * index["samples_total"]:
            state = f"{file.stat().st_size:,} bytes" if file.is_file() else "missing"
            raise ValueError(
                f"{file} is {state}, its index says {2 * index['samples_total']:,} bytes; copy the folder again, or "
                "delete it and prepare again"
            )
        samples = np.memmap(file, dtype="<i2", mode="r")
        if verify:
            _verify(file, samples, index)
        speakers, speaker = np.unique(index["speaker"], return_inverse=True)
        chapters, chapter = np.unique(index["chapter"], return_inverse=True)
        return cls(
            folder,
            samples,
            rate=index["rate"],
            utterances=index["utterance"],
            starts=torch.tensor(index["start"]),
            lengths=torch.tensor(index["samples"]),
            speaker=torch.from_numpy(speaker),
            chapter=torch.from_numpy(chapter),
            speakers=speakers.tolist(),
            chapters=chapters.tolist(),
        )

    def __len__(self) -> int:
        """Number of utterances."""
        return len(self.utterances)

    @property
    def hours(self) -> float:
        """How much speech there is."""
        return int(self.lengths.sum()) / self.rate / 3600

    def index(self, name: str) -> int:
        """Where an utterance stands in `utterances`; ValueError with the nearest names where it is not there."""
        if name not in self._place:
            near = difflib.get_close_matches(name, self.utterances, n=3)
            there = f"the nearest are {', '.join(near)}" if near else f"its names are like {self.utterances[0]}"
            raise ValueError(f"{self.path} has no utterance {name!r}; {there}")
        return self._place[name]

    def waveform(self, i: int) -> Float[Tensor, " n"]:
        """The samples of utterance `i` in [-1, 1)."""
        if not 0 <= i < len(self):
            raise ValueError(f"utterance {i} of {len(self)} in {self.path}; choose from 0 to {len(self) - 1}")
        start = int(self.starts[i])
        return torch.from_numpy(self.samples[start : start + int(self.lengths[i])].astype(np.float32)) / 32768

    def subset(self, chosen: Sequence[str] | Sequence[int] | Int[Tensor, " m"]) -> "Corpus":
        """The utterances of these names or indices, in this order, on the same samples and with the same `speakers`.

        Raises ValueError where one is not there or comes twice, and where none is chosen.
        """
        indices = [self.index(item) if isinstance(item, str) else int(item) for item in chosen]
        if not indices:
            raise ValueError(f"a subset of no utterance of {self.path}; choose at least one")
        if wrong := [i for i in indices if not 0 <= i < len(self)]:
            raise ValueError(f"utterance {wrong[0]} of {len(self)} in {self.path}; choose from 0 to {len(self) - 1}")
        if double := [i for i, count in Counter(indices).items() if count > 1]:
            raise ValueError(f"{self.utterances[double[0]]} of {self.path} is chosen twice; choose each once")
        at = torch.tensor(indices)
        return Corpus(
            self.path,
            self.samples,
            rate=self.rate,
            utterances=[self.utterances[i] for i in indices],
            starts=self.starts[at],
            lengths=self.lengths[at],
            speaker=self.speaker[at],
            chapter=self.chapter[at],
            speakers=self.speakers,
            chapters=self.chapters,
        )


def _read_index(folder: Path) -> dict[str, Any]:
    """The index of a finished cache of this version; ValueError for anything else."""
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist; make it with python -m recipes.audio.prepare ROOT --out {folder}")
    file = folder / INDEX
    if not file.is_file():
        if (folder / PART).exists() or (folder / JOURNAL).exists():
            raise ValueError(f"{folder} is unfinished; run the command that prepares it again, it goes on")
        raise ValueError(f"{folder} is no prepared corpus (no {INDEX}); name the folder that prepare's --out made")
    try:
        index: dict[str, Any] = json.loads(file.read_bytes())
        version = index["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{file} is torn or not of this package ({str(error)[:200]!r}); delete {folder}, prepare again"
        ) from error
    if version != VERSION:
        raise ValueError(
            f"{folder} is a cache of version {named([str(version)])}, this stec reads {VERSION}; prepare it again"
        )
    if index.get("rate", RATE) != RATE:
        raise ValueError(
            f"{folder} holds audio at {named([str(index['rate'])])} Hz, stec works at {RATE}; prepare it again"
        )
    if wrong := fault(index):
        raise ValueError(f"{file} {wrong}; delete {folder} and prepare again")
    return index


def fault(index: dict[str, Any]) -> str | None:
    """What an index lacks, or which of its utterances cannot be in the file of samples."""
    if missing := sorted(KEYS - index.keys()):
        return f"does not have {', '.join(missing)}"
    total, file = index["samples_total"], index["samples_file"]
    if type(total) is not int or not isinstance(file, str) or not re.fullmatch(SAMPLES, file):
        return f"names no file of samples, but {str(file)[:60]!r} of {str(total)[:20]!r}"
    for name in COLUMNS:
        kind, column = str if name in TEXTS else int, index[name]
        if not isinstance(column, list) or not all(type(item) is kind for item in column):
            return f"holds no list of {'names' if kind is str else 'whole numbers'} under {name}"
        if len(column) != len(index["utterance"]):
            return f"has {len(column)} of {name} and {len(index['utterance'])} of utterance"
    if not index["utterance"] or len(set(index["utterance"])) < len(index["utterance"]):
        return "has no utterance, or one twice"
    left_out = index["left_out"] if isinstance(index["left_out"], list) else [None]
    if not all(isinstance(item, dict) and item.keys() >= {*COLUMNS[:6], "reason"} for item in left_out):
        return "does not tell, under left_out, which files it leaves out"
    for name, start, length in zip(index["utterance"], index["start"], index["samples"]):
        if start < 0 or length < 1 or start + length > total:
            span = f"{str(start)[:20]}, {str(length)[:20]} long"
            return f"has {named([name])} from sample {span}, of {str(total)[:20]}"
    return None


def _verify(file: Path, samples: np.memmap, index: dict[str, Any]) -> None:
    for name, start, length, crc in zip(index["utterance"], index["start"], index["samples"], index["crc"]):
        if zlib.crc32(samples[start : start + length].data) != crc:
            raise ValueError(
                f"{file} is damaged in utterance {named([name])}; copy it again, or delete it and prepare again"
            )
