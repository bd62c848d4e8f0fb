"""From audio files to a cache that `stec.audio.corpus.Corpus` opens: one pass that can be interrupted at any moment.

While it grows, a cache is samples and a journal (`stec.audio.journal`). The next run checks the journal against the
samples, cuts off what does not fit and goes on from there. At the end the samples are synced and renamed after their
content, and `index.json` is put in place last and at once. So an index always speaks of whole samples, and an older
cache in the same folder stays valid until that moment.
"""

import dataclasses
import json
import os
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import soundfile

from stec.audio.corpus import INDEX, JOURNAL, PART, VERSION, fault
from stec.audio.decoding import RATE, UNKNOWN, read_audio
from stec.audio.journal import Entry, Source, resume, samples_name, source_of
from stec.audio.sources import AudioFile
from stec.core.files import full_disk, only_writer, put, sweep, whole

BROKEN = "broken.txt"


class Prepared(NamedTuple):
    """What `prepare` did. `resumed` utterances were found whole from an earlier run; `fresh`: nothing was to do."""

    cache: Path
    utterances: int
    samples: int
    left_out: tuple[str, ...]  # one line for each broken file
    resumed: int
    fresh: bool


def prepare(
    files: Sequence[AudioFile],
    cache: Path,
    *,
    workers: int,
    skip_broken: bool = False,
    replace: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Decode `files` in `workers` threads into a cache at 16 kHz, going on where an earlier run was interrupted.

    Does nothing where the cache is of these very files (by relative path, size and time of change). `progress` is
    called with the files done and their number. Raises ValueError where files are broken, after trying all (they are
    listed in `broken.txt`; the others need not be decoded again), unless `skip_broken`; where an utterance of the cache
    would vanish or change its speaker or chapter, unless `replace`; where the disk is too small; and where another run
    is writing to the folder.
    """
    if not files:
        raise ValueError("there is no audio file to prepare; name a folder that holds some")
    if workers < 1:
        raise ValueError(f"workers is {workers}; need at least 1")
    if len({file.utterance for file in files}) < len(files):
        raise ValueError("two of the files have the same utterance name; give each a name of its own")
    above = Path(os.path.commonpath([file.path.absolute().parent for file in files]))
    paths = {_look(file, above): file.path for file in files}
    with full_disk(cache), only_writer(cache, doing="preparing"):
        old = _old_index(cache)
        if old and _is_fresh(old, set(paths), skip_broken):
            _remove(cache, keep=(old["samples_file"],))
            left_out = tuple(item["reason"] for item in old["left_out"])
            return Prepared(cache, len(old["utterance"]), old["samples_total"], left_out, len(old["utterance"]), True)
        if old and not replace:
            _check_kept(cache, old, paths)
        entries = resume(cache, set(paths), keep=old["samples_file"] if old else None)
        _check_space(cache, [paths[source] for source in paths], done=sum(entry.samples for entry in entries))
        resumed = len(entries)
        broken = _decode(paths, cache, entries, workers=workers, progress=progress)
        if broken:
            _report(cache, above, broken, skip_broken)
            if old and not replace:
                _check_kept(cache, old, entries)
        _finish(cache, list(paths), entries, broken)
    total = sum(entry.samples for entry in entries)
    return Prepared(cache, len(entries), total, tuple(broken.values()), resumed, False)


# --- growing


def _decode(
    paths: dict[Source, Path],
    cache: Path,
    entries: list[Entry],
    *,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> dict[Source, str]:
    """Append what `entries` lacks to samples and journal, in order; returns the broken files with what is wrong."""
    have = {source_of(entry) for entry in entries}
    todo = iter([source for source in paths if source not in have])
    done = len(have)
    end = sum(entry.samples for entry in entries)
    broken: dict[Source, str] = {}
    waiting: deque[tuple[Source, Future[tuple[np.ndarray, int]]]] = deque()
    if progress:
        progress(done, len(paths))
    pool = ThreadPoolExecutor(workers)
    try:
        with (cache / PART).open("ab", buffering=0) as samples, (cache / JOURNAL).open("ab", buffering=0) as journal:
            while True:
                # A few more than workers, so that none waits while the oldest is written; not all, for memory's sake.
                while len(waiting) < 2 * workers and (source := next(todo, None)):
                    waiting.append((source, pool.submit(_read, paths[source])))
                if not waiting:
                    break
                source, future = waiting.popleft()
                try:
                    waveform, crc = future.result()
                except (ValueError, OSError) as error:  # the second: of a disk or network that cannot be read
                    broken[source] = str(error).replace(str(paths[source]), source.file)
                else:
                    entry = Entry(**dataclasses.asdict(source), start=end, samples=len(waveform), crc=crc)
                    _write(samples, waveform.view(np.uint8).data)
                    _write(journal, memoryview(json.dumps(dataclasses.asdict(entry)).encode() + b"\n"))
                    entries.append(entry)
                    end += len(waveform)
                done += 1
                if progress:
                    progress(done, len(paths))
    finally:
        pool.shutdown(cancel_futures=True)
    return broken


def _read(path: Path) -> tuple[np.ndarray, int]:
    waveform = read_audio(path).astype("<i2", copy=False)
    return waveform, zlib.crc32(waveform.data)


def _write(file: BinaryIO, data: memoryview) -> None:
    """All of `data`: on a disk that fills up, a write ends early before one fails."""
    while data:
        data = data[file.write(data) :]


# --- finishing


def _finish(cache: Path, order: Sequence[Source], entries: list[Entry], broken: dict[Source, str]) -> None:
    """Put the samples under their name and the index, whose utterances are in the order of the files, in place."""
    if not entries:
        raise ValueError(f"every file is broken, see {cache / BROKEN}; there is nothing to prepare")
    name = samples_name(entries)
    by_source = {source_of(entry): entry for entry in entries}
    listed = [by_source[source] for source in order if source in by_source]
    index: dict[str, Any] = {
        "version": VERSION,
        "rate": RATE,
        "samples_file": name,
        "samples_total": sum(entry.samples for entry in entries),
        **{field.name: [getattr(entry, field.name) for entry in listed] for field in dataclasses.fields(Entry)},
        "left_out": [{**dataclasses.asdict(source), "reason": reason} for source, reason in broken.items()],
    }
    with whole(cache / INDEX) as file:
        file.write(json.dumps(index).encode())
        file.flush()  # while the samples can still be added to: now a full disk is told
        with (cache / PART).open("rb") as samples:
            put(samples, cache / name)  # their name is on the disk before an index speaks of it
    _remove(cache, keep=(name,))
    if not broken:
        (cache / BROKEN).unlink(missing_ok=True)


def _remove(cache: Path, keep: tuple[str, ...]) -> None:
    """Everything of this module in a folder but the index and what it speaks of."""
    for path in [*cache.glob("samples-*.int16"), cache / PART, cache / JOURNAL]:
        if path.name not in keep:
            path.unlink(missing_ok=True)
    sweep(cache, INDEX)


def _report(cache: Path, above: Path, broken: dict[Source, str], skip_broken: bool) -> None:
    """Write broken files down, and stop unless they are to be left out."""
    (cache / BROKEN).write_text("".join(f"{reason}\n" for reason in broken.values()), errors="surrogateescape")
    if not skip_broken:
        shown = "; ".join(list(broken.values())[:3])
        raise ValueError(
            f"{len(broken)} of the files in {above} cannot be read: {shown}. {cache / BROKEN} lists all. "
            "The others are kept: mend these and run it again, or leave them out (--skip-broken)"
        )


# --- looking first


def _look(file: AudioFile, above: Path) -> Source:
    """What tells later whether a file is still the same."""
    inner = Path(os.path.relpath(file.path.absolute(), above)).as_posix()
    try:
        status = file.path.stat()
    except OSError:  # a link to nothing: it is named when it is read
        return Source(file.utterance, file.speaker, file.chapter, inner, -1, -1)
    return Source(file.utterance, file.speaker, file.chapter, inner, status.st_size, status.st_mtime_ns)


def _check_kept(cache: Path, old: dict[str, Any], sources: Iterable[Source]) -> None:
    """ValueError where an utterance of the old cache is not among `sources` as it was: labels and splits name it."""
    now = {source.utterance: (source.speaker, source.chapter) for source in sources}
    was = list(zip(old["utterance"], zip(old["speaker"], old["chapter"])))
    if lost := [name for name, spoken in was if now.get(name) != spoken]:
        raise ValueError(
            f"{len(lost)} of the {len(was)} utterances in {cache} would vanish or get another speaker or chapter, "
            f"such as {', '.join(lost[:5])}; choose another folder (--out), or replace this cache (--replace)"
        )


def _old_index(cache: Path) -> dict[str, Any] | None:
    """The index of a finished cache that is whole; None where there is none, or it is of another version."""
    try:
        index: dict[str, Any] = json.loads((cache / INDEX).read_bytes())
        if index["version"] != VERSION or fault(index):
            return None
        return index if (cache / index["samples_file"]).stat().st_size == 2 * index["samples_total"] else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _is_fresh(index: dict[str, Any], wanted: set[Source], skip_broken: bool) -> bool:
    names = [field.name for field in dataclasses.fields(Source)]
    cached = {Source(*row) for row in zip(*(index[name] for name in names))}
    left_out = {Source(*(item[name] for name in names)) for item in index["left_out"]}
    return cached | left_out == wanted and (skip_broken or not left_out)


def _check_space(cache: Path, paths: Sequence[Path], *, done: int) -> None:
    """ValueError where the samples will not fit, by the headers of up to 100 files and the sizes of all."""
    some = paths[:: -(-len(paths) // 100)]
    seconds = size = 0.0
    for path in some:
        try:
            information = soundfile.info(path)
            seconds += information.duration if information.frames < UNKNOWN else 0
            size += path.stat().st_size
        except (soundfile.LibsndfileError, UnicodeEncodeError, OSError):  # broken: it will be named, and takes no space
            continue
    total = sum(path.stat().st_size for path in paths if path.is_file())
    need = int(seconds * RATE * 2 * total / size) - 2 * done if size else 0
    free = shutil.disk_usage(cache).free
    if need > free:
        raise ValueError(
            f"{cache} needs about {need / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free; "
            "free some, choose another folder (--out), or fewer files"
        )
