"""Files that appear whole or not at all, even where the power fails; a folder with one writer; a disk that fills up."""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` at the end: whole or not at all, even where the power fails.

    The bytes lie in a file of another name beside it, ending in .part, until they are on the disk. OSError names `path`
    where they cannot be written; what lay there before is unharmed.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            put(file, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        # torch.save answers a write that failed with an error of its own, that it could not finish the archive.
        failed = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(failed, OSError):
            raise OSError(failed.errno, failed.strerror, str(path)) from failed
        raise


def put(file: BinaryIO, path: Path) -> None:
    """An open file takes the name `path` at once, when all of it is on the disk; what had the name before is gone."""
    file.flush()
    os.fsync(file.fileno())
    os.replace(file.name, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """See to it that a new name is on the disk, where the file system has such a call."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sweep(folder: Path, *names: str) -> None:
    """Remove what processes that were killed while they wrote `names` (patterns of file names) left behind."""
    for name in names:
        for part in folder.glob(f"{name}.*part"):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Makes the folder. A disk that fills up, or a folder that cannot be written to, is a ValueError with the cure."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ValueError(
                f"the disk is full ({error.strerror}) while writing to {folder}; free some space and run it again: it "
                "goes on where it stopped"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EPERM):
            raise ValueError(f"cannot write to {folder} ({error.strerror}); choose another folder (--out)") from error
        raise


@contextlib.contextmanager
def only_writer(folder: Path, *, doing: str, patience: float = 0.0) -> Iterator[None]:
    """Holds the folder's lock, which the system gives back however the process ends.

    ValueError where another process holds it for `patience` seconds more, which is `doing` something: "writing to",
    say. Workers that outlive a killed process hold its lock until they notice. A file system without locks has none.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    end = time.monotonic() + patience
    try:
        while not _locked(descriptor):
            if time.monotonic() >= end:
                raise ValueError(f"another run is {doing} {folder}; wait for it, or choose another folder")
            time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
    return True
