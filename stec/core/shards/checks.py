"""Whether shards are whole: members of a tar file, checksums, and where the files of an index lie."""

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from stec.core.files import whole
from stec.core.shards import IN_USE, INDEX, Location, ShardIndex, check_name, check_url, read_index
from stec.core.shards.files import local_path


def members(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of all members of a tar file, in their order.

    Raises ValueError where a member is no plain file, where its name leaves the folder, and where the file is damaged.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            inside = [(member.name, member.isreg(), member.offset_data, member.size) for member in tar]
    except MemoryError:
        raise
    except Exception as error:  # of whatever kind tarfile meets in headers: wrong numbers, names, endless nesting
        raise ValueError(f"{path} is no whole tar file ({str(error)[:200]!r}); copy it again") from error
    for name, plain, offset, size in inside:
        check_name(name, source=path)
        if not plain:
            raise ValueError(f"{path}: {name[:100]!a} is a link or no plain file; write the shard again")
        if size < 0 or offset + size > path.stat().st_size:
            raise ValueError(f"{path}: {name[:100]!a} ends beyond the file; copy it again")
        yield name, offset, size


def verify(index: ShardIndex, *, progress: Callable[[int, int], None] | None = None) -> None:
    """Read every shard, fetched if need be; ValueError names the first whose checksum or members are not the index's.

    `progress` is called with the shards done and their number.
    """
    end = 0
    for number, shard in enumerate(index.shards):
        path = local_path(index, number)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != shard.sha256:
            raise ValueError(
                f"{path} is damaged: its checksum is not that of the index; copy it again, or remove it and write the "
                "shards again"
            )
        inside = [(offset, offset + size) for _, offset, size in members(path)]
        ends = dict(inside)
        starts = np.array(sorted(ends))
        for offset, size in index.rows[end : end + shard.samples, :2].tolist():
            start = int(starts[np.searchsorted(starts, offset, side="right") - 1]) if len(starts) else -1
            if not start <= offset <= offset + size <= ends.get(start, -1):
                raise ValueError(f"{path} has no member at byte {offset:,}, as its index says; write the shards again")
        end += shard.samples
        if progress:
            progress(number + 1, len(index.shards))


def locate(folder: Path, url: str | None, *, cache_bytes: int) -> None:
    """Write into an index where its shards lie: at an address, of which `cache_bytes` are kept here; None: beside it.

    ValueError for a scheme that is not known, and where the cache is smaller than the shards in use at once.
    """
    index = read_index(folder)
    if url is not None:
        check_url(url, source=folder / INDEX)
        sizes = [shard["bytes"] for shard in index["shards"]]
        if cache_bytes < (least := min(sum(sizes), IN_USE * max(sizes))):
            raise ValueError(
                f"{folder}: a cache of {cache_bytes / 1e9:g} GB is too small: {min(len(sizes), IN_USE)} shards are in "
                f"use at once; give at least {least / 1e9:g} GB (--cache-gb)"
            )
    index["location"] = None if url is None else Location(url, cache_bytes)._asdict()
    with whole(folder / INDEX) as file:
        file.write(json.dumps(index).encode())
