"""Files of torch.save, both its formats, read without running anything in them (`stec.core.inert`).

Tensors are made from the records in the pickle, for the entries that are asked for; the rest of the file stays unread.
"""

import math
import re
import struct
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stec.core.inert import Inert, InertUnpickler, Stored, named, ordinary

# How torch.save wrote before version 1.6, and on request ever since: pickles one after another, then the values.
_LEGACY = 0x1950A86A20F9469CFC6C

AGAIN = 8  # how often values may be used in tensors that share them, by the size of the file; networks do it twice

_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}


class TorchFile:
    """A file of torch.save: its `content` with `Inert` for all that is not plain, and the names of its `globals`.

    Raises ValueError, with the file and the reason, for one that is torn or that torch.save did not write.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._found: dict[str, type[Inert]] = {}
        self._places: dict[str, tuple[int, int]] = {}  # of the older format: offset and number of bytes, by key
        self._root = ""  # of the zip format: the folder in the archive
        if not self.path.is_file():
            raise ValueError(f"there is no file {self.path}")
        try:
            self.content = self._zip() if zipfile.is_zipfile(self.path) else self._legacy()
        except MemoryError:  # of the machine, not of the file
            raise
        except Exception as error:  # a damaged file can fail in any way: name it, whatever the way
            would = f"; loading it with pickle would run {named(self.foreign)}" if self.foreign else ""
            raise ValueError(
                f"{self.path} is torn or is no checkpoint ({_reason(error)}){would}; copy or fetch it again"
            ) from error

    @property
    def globals(self) -> list[str]:
        """The classes and functions that the file names, torch's own included."""
        return sorted(self._found)

    @property
    def foreign(self) -> list[str]:
        """Those that no ordinary checkpoint names; loading the file with pickle would run them."""
        return [name for name in self.globals if not ordinary(name)]

    def _zip(self) -> Any:
        with zipfile.ZipFile(self.path) as archive:
            names = [name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
            if len(names) != 1:
                raise ValueError("a zip file of something else: no data.pkl in it")
            self._root = names[0].removesuffix("data.pkl")
            order = f"{self._root}byteorder"
            if order in archive.namelist() and _entry(archive, order) != b"little":
                raise ValueError("its values are stored in big-endian order")
            whole = BytesIO(_entry(archive, names[0]))  # read to the end, where its checksum is compared
        return InertUnpickler(whole, self._found).load()

    def _legacy(self) -> Any:
        with self.path.open("rb") as file:
            if file.read(2) == b"PK":
                raise ValueError("an archive whose end is missing")
            file.seek(0)
            if InertUnpickler(file, self._found).load() != _LEGACY:
                raise ValueError("a pickle of something else")
            _, system, content, keys = (InertUnpickler(file, self._found).load() for _ in range(4))
            if not system["little_endian"]:
                raise ValueError("its values are stored in big-endian order")
            kinds = {stored.key: stored.kind for stored in _stored(content)}
            for key in keys:
                (numel,) = struct.unpack("<Q", file.read(8))
                size = numel * _DTYPES[kinds[key]].itemsize
                self._places[key] = file.tell(), size
                file.seek(size, 1)
            if file.tell() > self.path.stat().st_size:
                raise ValueError("it ends early")
        return content

    def tensors(self, entries: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors that these entries of the content stand for, values and types unchanged, on the CPU.

        Raises ValueError for an entry that is no tensor, or whose values are not all in the file.
        """
        made = {}
        room = AGAIN * self.path.stat().st_size
        with zipfile.ZipFile(self.path) if self._root else self.path.open("rb") as source:
            for name, entry in entries.items():
                try:
                    made[name] = self._tensor(source, entry)
                    room -= made[name].nbytes
                    if room < 0:
                        raise ValueError("its tensors share their values more often than any network's")
                except MemoryError:
                    raise
                except Exception as error:  # as above
                    raise ValueError(
                        f"{named([name])} in {self.path} is torn or is no tensor ({_reason(error)})"
                    ) from error
        return made

    def _tensor(self, source: Any, entry: Any) -> Tensor:
        if not isinstance(entry, Inert):
            raise ValueError(f"it is a {type(entry).__name__}")
        made_by = entry.name.rpartition(".")[2]
        if made_by in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return self._tensor(source, entry.args[0])
        if made_by == "_rebuild_from_type_v2":  # a tensor with attributes
            return self._tensor(source, entry.args[0](*entry.args[2]))
        if made_by not in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            raise ValueError(f"it is a {named([entry.name])}")
        stored, offset, size, stride = entry.args[:4]
        if not all(type(number) is int and number >= 0 for number in (offset, *size, *stride)):
            raise ValueError("its shape is no list of numbers")  # the product of a number and a text is a longer text
        dtype = _DTYPES[stored.kind]
        if self._root:
            raw = _entry(source, f"{self._root}data/{stored.key}")
        else:
            place, length = self._places[stored.key]
            source.seek(place)
            raw = source.read(length)
        values = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        if math.prod(size) > len(values):  # a stride of 0 could ask for any number of values
            raise ValueError(f"it asks for {math.prod(size)} of {len(values)} values")
        return values.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)


def refuse_compressed(path: str | Path) -> None:
    """ValueError where an archive has compressed entries: torch.save writes none, and torch.load lets them swell."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed, as torch.save never does")


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """An entry of an archive, which torch.save never compresses: so it is no larger than the file."""
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise ValueError("an archive with compressed entries, which torch.save does not write")
    if entry.file_size > Path(str(archive.filename)).stat().st_size:
        raise ValueError("an entry that is larger than the file")
    return archive.read(name)


def _reason(error: Exception) -> str:
    shown = str(error) if len(str(error)) < 10_000 else ""
    first = shown.splitlines()[0][:80] if shown.strip() else type(error).__name__
    return first if first.isprintable() else ascii(first)


def _stored(content: Any) -> list[Stored]:
    """All records of values in `content`, wherever they are."""
    found, seen, todo = [], set(), [content]
    while todo:
        value = todo.pop()
        if isinstance(value, Stored):
            found.append(value)
        elif id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, dict):
                todo += [*value, *value.values()]
            elif isinstance(value, list | tuple | set | frozenset):
                todo += value
            elif isinstance(value, Inert):
                todo += [value.args, value.items, value.members, value.state]
    return found
