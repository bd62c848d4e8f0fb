"""Reading samples of shards by their place: from files beside the index, or fetched from where the index says."""

import contextlib
import fcntl
import hashlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stec.core.files import put
from stec.core.shards import IN_USE, Shard, ShardIndex, check_size

CACHE, FETCHING = "cache", "fetching"  # folders beside the index, for shards that are fetched
PIECE = 1 << 20  # bytes read at once
PATIENCE = 30.0  # seconds after which a shard that is still being fetched is spoken of, and again and again


class ShardFiles:
    """The open files of an index, at most `keep` at once: a block's shards of every lane, and some more.

    With `ahead`, the system is told to read a shard as a whole, in its order on the disk, when its first sample is
    asked for; leave it out where only few samples of a shard are wanted. Each process opens its own files. One thread
    at a time may read.
    """

    def __init__(self, index: ShardIndex, *, keep: int = 2 * IN_USE, ahead: bool = True) -> None:
        self.index = index
        self.keep = keep
        self.ahead = ahead
        self.opened = 0  # files so far, to see whether the order suits the shards
        self._open: OrderedDict[int, int] = OrderedDict()
        self._owner = os.getpid()

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` of a shard. ValueError names the shard that is missing, damaged or too short."""
        data = os.pread(self._descriptor(shard), size, offset)
        while len(data) < size:
            more = os.pread(self._descriptor(shard), size - len(data), offset + len(data))
            if not more:
                path = self.index.folder / self.index.shards[shard].name
                raise ValueError(f"{path} ends within a sample (byte {offset + len(data):,}); copy it again")
            data += more
        return data

    def close(self) -> None:
        """Close all files; the next read opens them again."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _descriptor(self, shard: int) -> int:
        if self._owner != os.getpid():  # after a fork, the files are the parent's as well
            self._open, self._owner = OrderedDict(), os.getpid()
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        descriptor = self._open_file(shard)
        if self.ahead and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        self._open[shard] = descriptor
        self.opened += 1
        if len(self._open) > self.keep:
            os.close(self._open.popitem(last=False)[1])
        return descriptor

    def _open_file(self, shard: int) -> int:
        for _ in range(10):  # between fetching and opening, another process may have made room
            path = local_path(self.index, shard)
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                check_size(path, self.index.shards[shard])
                return descriptor
            if self.index.location is None:
                break
        check_size(path, self.index.shards[shard])
        raise ValueError(f"{path} is removed as soon as it is fetched; give more room for shards (--cache-gb)")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __del__(self) -> None:
        if getattr(self, "_owner", None) == os.getpid():
            with contextlib.suppress(OSError):
                self.close()


def local_path(index: ShardIndex, shard: int) -> Path:
    """Where a shard's file lies on this machine, fetched first where the index says that it lies elsewhere.

    Of the processes of a machine one fetches and the others wait; a file takes its name when all of it is there and
    its checksum is right. Raises ValueError where it cannot be fetched or has another checksum.
    """
    wanted = index.shards[shard]
    if index.location is None:
        return index.folder / wanted.name
    cache, fetching = index.folder / CACHE, index.folder / FETCHING
    path = cache / wanted.name
    if path.is_file():
        return path
    cache.mkdir(exist_ok=True)
    fetching.mkdir(exist_ok=True)
    with (fetching / f"{wanted.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file():
            # The oldest shards go; those that are still read stay readable until they are closed.
            clean = webdataset_part("cache", "LRUCleanup")
            clean(str(cache), index.location.cache_bytes - wanted.bytes, interval=None).cleanup()
            _fetch(f"{index.location.url.rstrip('/')}/{wanted.name}", path, fetching / wanted.name, wanted)
    return path


def _fetch(url: str, path: Path, part: Path, wanted: Shard) -> None:
    gopen = webdataset_part("gopen", "gopen")
    digest = hashlib.sha256()
    try:
        with _spoken_of(url, part, wanted), gopen(url, "rb") as source, part.open("wb") as file:
            while piece := source.read(PIECE):
                digest.update(piece)
                file.write(piece)
            if digest.hexdigest() == wanted.sha256:
                put(file, path)
    except Exception as error:  # of curl, gsutil, the system: whatever the scheme of the address needs
        part.unlink(missing_ok=True)
        raise ValueError(f"{url} cannot be fetched ({error}); see that it is there and may be read") from error
    if digest.hexdigest() != wanted.sha256:
        part.unlink()
        raise ValueError(f"{url} has another checksum than its index says; upload it again")


@contextlib.contextmanager
def _spoken_of(url: str, part: Path, wanted: Shard) -> Iterator[None]:
    """While a shard is fetched, tells every `PATIENCE` seconds how far it is: curl and gsutil retry without a word."""
    done = threading.Event()

    def speak() -> None:
        seconds = 0.0
        while not done.wait(PATIENCE):
            seconds += PATIENCE
            there = part.stat().st_size if part.exists() else 0
            logger = logging.getLogger(__name__)
            logger.warning(f"{url}: {there / 1e6:.0f} of {wanted.bytes / 1e6:.0f} MB after {seconds:.0f} s")

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def webdataset_part(module: str, name: str) -> Callable[..., Any]:
    """A part of the webdataset library, which only writing and fetching need; ValueError where it is missing."""
    try:
        library = __import__(f"webdataset.{module}", fromlist=[name])
    except ModuleNotFoundError as error:
        raise ValueError(
            'shards are written and fetched with webdataset: pip install -e ".[shards]" in the clone of stec'
        ) from error
    part: Callable[..., Any] = getattr(library, name)
    return part
