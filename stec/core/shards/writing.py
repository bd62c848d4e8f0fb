"""Writing shards: one file after the other, each at once in place, so that an interrupted run goes on.

A shard is written under another name, hashed on the way, read back for the offsets of its members, and renamed when
it is on the disk; then a line of `shards.journal` speaks of it. The index comes last. So a folder without `shards.json`
is unfinished, whatever else it holds, and the same command goes on with the shards whose sources are the same.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch

from stec.core.files import full_disk, only_writer, sweep, whole
from stec.core.inert import named
from stec.core.shards import FORMAT, INDEX, JOURNAL, TABLE, Shard, read_index
from stec.core.shards.checks import members
from stec.core.shards.files import webdataset_part
from stec.core.shards.journal import append, is_whole, read_journal

SOURCES = "sources.txt"  # for people: the source of each sample, a line each, in the order of the table


class Sample(NamedTuple):
    """What a source becomes: the first of `members` (by extension) is the content, `row` what the table adds to it."""

    members: dict[str, bytes]
    row: tuple[int, ...]
    skip: int = 0  # bytes of the content's own header, which no reader needs


@dataclasses.dataclass(frozen=True)
class Sources:
    """What is to be written: `identity` tells whether a source is still the same, `sizes` are about their bytes."""

    kind: str
    names: Sequence[str]
    identity: Sequence[str]
    sizes: Sequence[int]
    read: Callable[[int], Sample]  # ValueError where a source is broken
    details: dict[str, Any]


class Written(NamedTuple):
    """What `write_shards` did: `resumed` shards were there, `left_out` names broken sources, a line each."""

    folder: Path
    shards: int
    resumed: int
    left_out: tuple[str, ...]


def plan(sizes: Sequence[int], *, shard_bytes: int, seed: int) -> list[list[int]]:
    """Which sources make which shard: shuffled, so that each shard is a fair sample, and cut at `shard_bytes`.

    >>> [len(shard) for shard in plan([1000] * 5, shard_bytes=4096, seed=0)]
    [2, 2, 1]
    """
    if shard_bytes < 1:
        raise ValueError(f"shards of {shard_bytes} bytes; need at least 1")
    shards: list[list[int]] = [[]]
    filled = 0
    for i in torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed)).tolist():
        room = 512 + -(-sizes[i] // 512) * 512  # a member's header and its content, in blocks of tar
        if shards[-1] and filled + room > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(i)
        filled += room
    return shards


def write_shards(
    sources: Sources,
    folder: Path,
    *,
    shard_bytes: int,
    seed: int = 0,
    workers: int = 1,
    skip_broken: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Write sources as shards of about `shard_bytes` in an order drawn from `seed`, going on where a run stopped.

    Raises ValueError where sources are broken, after trying all of them, unless `skip_broken`; where the folder holds
    files that are no shards, or finished shards of something else; and where another run is writing to it.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}; need at least 1")
    planned = plan(sources.sizes, shard_bytes=shard_bytes, seed=seed)
    digests = [_digest([f"{i} {sources.names[i]} {sources.identity[i]}" for i in shard]) for shard in planned]
    digest = _digest([sources.kind, json.dumps(sources.details, sort_keys=True), *digests])
    done = 0
    lines: list[dict[str, Any]] = []
    broken: list[str] = []
    with full_disk(folder), only_writer(folder, doing="writing shards to"):
        if (folder / INDEX).is_file():
            old = read_index(folder)
            if old["digest"] != digest or (old["left_out"] and not skip_broken):
                raise ValueError(f"{folder} holds shards of other sources or settings; choose another folder (--out)")
            if old["location"] or all(is_whole(folder, {**shard, "digest": ""}, "") for shard in old["shards"]):
                _clean(folder, old["shards"])  # of a run that was killed just before it did
                return Written(folder, len(planned), len(planned), tuple(old["left_out"]))
            (folder / JOURNAL).touch()  # one was lost or cut: all are written again, as they were
            (folder / INDEX).unlink()
        if not (folder / JOURNAL).is_file() and (other := sorted(path.name for path in folder.iterdir())):
            raise ValueError(f"{folder} holds other files, such as {named(other[:3])}; choose an empty folder (--out)")
        sweep(folder, "shard-*.tar", SOURCES, TABLE, INDEX)
        kept = read_journal(folder / JOURNAL)
        resumed = 0
        for number, (chosen, mark) in enumerate(zip(planned, digests)):
            name = f"shard-{number:06d}.tar"
            line = kept.get(name)
            if line and is_whole(folder, line, mark) and (skip_broken or not line["left_out"]):
                resumed += 1
            else:
                line = _write(sources, chosen, folder / name, workers=workers, first=done, progress=progress)
                line["digest"] = mark
                broken += line["left_out"]
                if skip_broken or not line["left_out"]:
                    append(folder / JOURNAL, line)
            lines.append(line)
            done += len(chosen)
            if progress:
                progress(done, len(sources.names))
        if broken and not skip_broken:
            raise ValueError(
                f"{len(broken)} of {len(sources.names)} cannot be read: {'; '.join(broken[:3])}. The other shards are "
                "kept: mend these and run it again, or leave them out (--skip-broken)"
            )
        _finish(sources, folder, lines, digest)
    return Written(folder, len(lines), resumed, tuple(reason for line in lines for reason in line["left_out"]))


def _write(
    sources: Sources,
    chosen: Sequence[int],
    path: Path,
    *,
    workers: int,
    first: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """One shard, as the journal speaks of it; broken sources are listed and left out."""
    writer = webdataset_part("writer", "TarWriter")
    rows: dict[str, tuple[int, tuple[int, ...], int]] = {}  # of each content's member: source, row, header
    left_out: list[str] = []
    with whole(path) as file, ThreadPoolExecutor(workers) as pool:
        hashed = _Hashed(file)
        with writer(hashed, encoder=False, mtime=0, user="", group="") as tar:
            for start in range(0, len(chosen), 64):  # not all at once, for memory's sake
                some = chosen[start : start + 64]
                samples = pool.map(lambda i: _try(sources.read, i), some)
                for number, (i, sample) in enumerate(zip(some, samples), first + start):
                    if isinstance(sample, str):
                        left_out.append(sample)
                        continue
                    key = f"{number:09d}"
                    tar.write({"__key__": key, **sample.members})
                    rows[f"{key}.{next(iter(sample.members))}"] = (i, sample.row, sample.skip)
                if progress:
                    progress(first + start + len(some), len(sources.names))
        file.flush()
        found = {name: place for name, *place in members(Path(file.name))}
        size = file.tell()
    table = []
    for name, (_, row, skip) in rows.items():
        offset, length = found[name]
        table.append([offset + skip, length - skip, *row])
    shard = Shard(path.name, len(table), size, hashed.digest.hexdigest())
    return {**shard._asdict(), "rows": table, "sources": [i for i, *_ in rows.values()], "left_out": left_out}


class _Hashed:
    """A file that is written to and hashed at once."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)


def _try(read: Callable[[int], Sample], i: int) -> Sample | str:
    try:
        return read(i)
    except (ValueError, OSError) as error:  # the second: of a disk or network that cannot be read
        return str(error)


def _finish(sources: Sources, folder: Path, lines: list[dict[str, Any]], digest: str) -> None:
    """Put the table and then the index in place."""
    rows = [row for line in lines for row in line["rows"]]
    if not rows:
        raise ValueError(f"none of {len(sources.names)} sources can be read: {lines[0]['left_out'][0]}")
    order = [sources.names[i] for line in lines for i in line["sources"]]
    with whole(folder / SOURCES) as file:
        file.writelines(os.fsencode(name.replace("\n", "\\n")) + b"\n" for name in order)
    with whole(folder / TABLE) as file:
        np.save(file, np.array(rows, dtype=np.int64))
    table = hashlib.sha256((folder / TABLE).read_bytes()).hexdigest()
    index = {
        "format": FORMAT,
        "kind": sources.kind,
        "samples": len(rows),
        "shards": [{field: line[field] for field in Shard._fields} for line in lines],
        "table": table,
        "digest": digest,
        "details": sources.details,
        "left_out": [reason for line in lines for reason in line["left_out"]],
        "location": None,
    }
    with whole(folder / INDEX) as file:
        file.write(json.dumps(index).encode())
    _clean(folder, lines)


def _clean(folder: Path, shards: Sequence[dict[str, Any]]) -> None:
    """Remove what only an unfinished folder has, and shards that are not the index's."""
    known = {shard["name"] for shard in shards}
    for path in folder.glob("shard-*.tar*"):
        if path.name not in known:
            path.unlink()
    sweep(folder, SOURCES, TABLE, INDEX)
    (folder / JOURNAL).unlink(missing_ok=True)


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
