"""The index of a folder of shards: what lies where, and whether it is all there."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from stec.core.inert import named

FORMAT = 1
INDEX = "shards.json"
TABLE = "samples.npy"
JOURNAL = "shards.journal"  # what is there until the writing has finished
SCHEMES = ("https", "http", "gs", "s3", "hf", "ais", "sftp", "ftps", "scp", "file")
KEYS = {"format", "kind", "samples", "shards", "table", "digest", "details", "left_out", "location"}
NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"  # of a shard: in its folder, and plain


class Shard(NamedTuple):
    """A file of samples, as its index knows it."""

    name: str
    samples: int
    bytes: int
    sha256: str


class Location(NamedTuple):
    """Where shards lie that are not beside their index, and how many bytes of them may be kept on this machine."""

    url: str
    cache_bytes: int


@dataclasses.dataclass(frozen=True, eq=False)
class ShardIndex:
    """What a folder of shards holds. `rows` (n, columns) int64 is mapped: byte offset, bytes, and the kind's own."""

    folder: Path
    kind: str
    shards: tuple[Shard, ...]
    rows: np.ndarray
    details: dict[str, Any]  # what all samples share, such as the names of classes
    left_out: tuple[str, ...]  # a line for each source that could not be read
    location: Location | None

    @classmethod
    def open(cls, folder: str | Path, *, kind: str | None = None) -> "ShardIndex":
        """The index of a folder.

        Raises ValueError where it is missing, unfinished, torn, of another format or kind than `kind`; where a name
        leaves the folder; and where a shard is missing, or shorter or longer than it was written.
        """
        path = Path(folder).expanduser()
        index = read_index(path)
        if kind is not None and index["kind"] != kind:
            raise ValueError(f"{path} holds shards of {named([index['kind']])}, not of {kind}; name another folder")
        shards = tuple(Shard(*(item[field] for field in Shard._fields)) for item in index["shards"])
        location = None if index["location"] is None else Location(**index["location"])
        if location:
            check_url(location.url, source=path / INDEX)
        else:
            for shard in shards:
                check_size(path / shard.name, shard)
        rows = _rows(path, index, shards)
        return cls(path, index["kind"], shards, rows, index["details"], tuple(index["left_out"]), location)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.rows)

    @property
    def shard_of(self) -> Int64[Tensor, " n"]:
        """The shard that each sample lies in."""
        return torch.arange(len(self.shards)).repeat_interleave(torch.tensor([shard.samples for shard in self.shards]))


def is_sharded(folder: Path) -> bool:
    """Whether a folder holds shards, finished or not."""
    return (folder / INDEX).is_file() or (folder / JOURNAL).is_file()


def read_index(folder: Path) -> dict[str, Any]:
    """The index as it was written; ValueError where it is missing, unfinished, torn or of another format."""
    file = folder / INDEX
    if not file.is_file():
        if (folder / JOURNAL).is_file():
            raise ValueError(f"{folder} is unfinished; run the command that writes these shards again, it goes on")
        raise ValueError(f"{folder} holds no shards (no {INDEX}); write them with python -m recipes.shards")
    try:
        index: dict[str, Any] = json.loads(file.read_bytes())
        version = index["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is torn or not of this package ({str(error)[:200]!r}); copy it again") from error
    if version != FORMAT:
        shown = named([str(version)])
        raise ValueError(f"{file} is of format {shown}, this stec reads {FORMAT}; write the shards again")
    if wrong := _fault(index):
        raise ValueError(f"{file} {wrong}; copy it again")
    return index


def _fault(index: dict[str, Any]) -> str | None:
    """What an index lacks, or holds that none has."""
    if missing := sorted(KEYS - index.keys()):
        return f"does not have {', '.join(missing)}"
    kinds = {
        "kind": str,
        "samples": int,
        "shards": list,
        "table": str,
        "digest": str,
        "details": dict,
        "left_out": list,
    }
    for key, kind in kinds.items():
        if type(index[key]) is not kind:
            return f"has a {key} that is no {kind.__name__}"
    names = set()
    for item in index["shards"]:
        if not isinstance(item, dict) or item.keys() != set(Shard._fields):
            return f"has a shard without {', '.join(Shard._fields)}"
        name, samples, size, digest = (item[field] for field in Shard._fields)
        if not isinstance(name, str) or not re.fullmatch(NAME, name) or name in names:
            return f"names a shard {named([str(name)])}, which is twice there or no plain name in its folder"
        if not (type(samples) is type(size) is int and samples > 0 and 0 < size < 1 << 62 and isinstance(digest, str)):
            return f"tells no samples, bytes and checksum of {name}"
        names.add(name)
    where = index["location"]
    if where is not None and not (
        isinstance(where, dict)
        and where.keys() == set(Location._fields)
        and isinstance(where["url"], str)
        and type(where["cache_bytes"]) is int
    ):
        return "has a location without url and cache_bytes"
    if not names or not all(isinstance(line, str) for line in index["left_out"]):
        return "names no shards, or things that are no names under left_out"
    return None


def check_names(index: ShardIndex, *keys: str) -> None:
    """ValueError where the details of an index do not hold a list of names under each of `keys`."""
    for key in keys:
        names = index.details.get(key)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{index.folder / INDEX} holds no list of names under {key}; copy it again")


def check_name(name: str, *, source: Path) -> None:
    """ValueError where a name, of a shard or of a member, would leave the folder that it is unpacked to."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        shown = ascii(name[:100])
        raise ValueError(f"{source} names {shown}, which leaves its folder; do not trust it, get it from its source")


def check_url(url: str, *, source: Path) -> None:
    """ValueError for an address whose scheme is not known; "pipe:", say, would run a command that an index names."""
    if url.partition(":")[0] not in SCHEMES:
        raise ValueError(f"{source}: {url[:200]!a} is no address to fetch from; there are {', '.join(SCHEMES)}")


def check_size(path: Path, shard: Shard) -> None:
    """ValueError where a shard's file is missing, or not as long as it was written."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy it again, or write the shards again")
    if (size := path.stat().st_size) != shard.bytes:
        state = "truncated" if size < shard.bytes else "too long"
        raise ValueError(f"{path} is {state}: {size:,} bytes, its index says {shard.bytes:,}; copy it again")


def _rows(folder: Path, index: dict[str, Any], shards: tuple[Shard, ...]) -> np.ndarray:
    """The table of samples, mapped; ValueError where it does not fit the index."""
    file = folder / TABLE
    if not file.is_file():
        raise ValueError(f"{file} is missing; copy it again")
    with file.open("rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() != index["table"]:
            raise ValueError(f"{file} is damaged; copy it again")
    try:
        rows = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of whatever kind numpy meets in a header that it did not write
        raise ValueError(f"{file} is no table of samples ({str(error)[:200]!r}); copy it again") from error
    counts = [shard.samples for shard in shards]
    if not isinstance(rows, np.memmap) or rows.dtype != np.int64 or rows.ndim != 2 or rows.shape[1] < 2:
        raise ValueError(f"{file} is no table of whole numbers with two columns or more; write the shards again")
    if not len(rows) == sum(counts) == index["samples"]:
        raise ValueError(f"{file} has {len(rows)} rows, its index another number of samples; write the shards again")
    limits = np.repeat([shard.bytes for shard in shards], counts)
    # Offset and size are compared one after the other: their sum may be more than an int64 holds.
    offsets, sizes = rows[:, 0], rows[:, 1]
    if outside := np.flatnonzero(
        (offsets < 0) | (offsets > limits) | (sizes < 1) | (sizes > limits - offsets)
    ).tolist():
        raise ValueError(f"{file}: sample {outside[0]} lies outside its shard; write the shards again")
    return rows
