"""A folder that is written to: one writer at a time, files that appear at once, and a disk that fills up."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Put a file in place at once, on the disk."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """A disk that fills up, or a folder that cannot be written to, as a ValueError that says how to go on."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ValueError(f"the disk is full while writing to {folder}; free some and run it again") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EPERM):
            raise ValueError(f"cannot write to {folder} ({error.strerror}); choose another folder (--out)") from error
        raise


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which the system gives back however the process ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another run is writing shards to {folder}; wait for it") from error
        yield
    finally:
        os.close(descriptor)
