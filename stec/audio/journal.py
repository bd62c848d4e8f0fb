"""What an unfinished cache of speech holds, and how much of it an interrupted run can go on from.

While it grows, a cache is two files: `samples.part` (int16, one utterance after the other) and `journal.jsonl` (a line
for each utterance that is wholly written, with the checksum of its samples).
"""

import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stec.audio.corpus import JOURNAL, PART


@dataclasses.dataclass(frozen=True)
class Source:
    """An audio file as index and journal know it, to tell whether it is still the same; `file` is relative."""

    utterance: str
    speaker: str
    chapter: str
    file: str
    size: int
    mtime_ns: int


@dataclasses.dataclass(frozen=True)
class Entry(Source):
    """An utterance in the cache: where its samples begin, how many there are, and their CRC-32."""

    start: int
    samples: int
    crc: int


def samples_name(entries: Sequence[Entry]) -> str:
    """The name of a finished file of samples: a function of what is in it."""
    content = json.dumps([[entry.utterance, entry.start, entry.samples, entry.crc] for entry in entries])
    return f"samples-{hashlib.sha256(content.encode()).hexdigest()[:16]}.int16"


def resume(cache: Path, wanted: set[Source], *, keep: str | None) -> list[Entry]:
    """The utterances of an interrupted run that are whole and still wanted; cuts samples and journal to them."""
    part, journal = cache / PART, cache / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True) if journal.is_file() else []
    found = [entry for entry in map(entry_of, lines) if entry]
    renamed = samples_name(found)
    if not part.exists() and renamed != keep and (cache / renamed).exists():
        os.replace(cache / renamed, part)  # interrupted between the last two steps of `_finish`
    empty = not part.exists() or not part.stat().st_size  # which cannot be mapped
    samples = np.zeros(0, np.uint8) if empty else np.memmap(part, dtype=np.uint8, mode="r")
    entries: list[Entry] = []
    end = written = 0
    for line in lines:
        entry = entry_of(line)
        if entry is None or entry.start != end or source_of(entry) not in wanted:
            break
        there = samples[2 * end : 2 * (end + entry.samples)]
        if len(there) < 2 * entry.samples or zlib.crc32(there.data) != entry.crc:
            break
        entries.append(entry)
        end += entry.samples
        written += len(line)
    for path, size in ((part, 2 * end), (journal, written)):
        with path.open("ab") as file:
            file.truncate(size)
    return entries


def entry_of(line: bytes) -> Entry | None:
    """A line of the journal; None where it is torn."""
    try:
        entry = Entry(**json.loads(line)) if line.endswith(b"\n") else None
        kinds = [field.type for field in dataclasses.fields(Entry)]
        whole = entry and all(type(value) is kind for value, kind in zip(dataclasses.astuple(entry), kinds))
        return entry if entry and whole and entry.start >= 0 and entry.samples > 0 else None
    except (ValueError, TypeError, RecursionError):
        return None


def source_of(entry: Entry) -> Source:
    return Source(*(getattr(entry, field.name) for field in dataclasses.fields(Source)))
