"""Pickles, read without running anything in them.

A pickle is a small program: it names classes and functions ("globals") and calls them. Here every global, torch's own
among them, becomes a record of its name and of what it was called with. Nothing is imported and nothing is called. This
is how files of others are read (`stec.core.torch_files`); our own hold nothing but tensors and plain values
(`stec.core.checkpoints`). Memory follows the size of the pickle, whatever numbers it holds.
"""

import itertools
import pickle
import re
import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

# What training code leaves in a checkpoint beside tensors: containers, numbers, paths, and classes (never functions)
# of the libraries that the released code runs on, and of its own modules.
_ORDINARY = re.compile(
    r"""collections\.(OrderedDict|defaultdict|Counter|deque)
    |argparse\.Namespace
    |pathlib\.\w*Path
    |datetime\.(datetime|date|timedelta)
    |functools\.partial
    |copyreg\.(_reconstructor|__newobj__)
    |_codecs\.encode
    |builtins\.(set|frozenset|complex|bytes|bytearray|slice|range|int|float|bool|str|list|dict|tuple|object)
    |torch\.(\w+\.)*\w*Storage
    |torch\.(Size|Tensor|device|dtype|b?float\w+|u?int\w+|bool|half|double|long|complex\d+)
    |torch\._utils\._rebuild_\w+
    |torch\._tensor\._rebuild_from_type_v2
    |torch\.nn\.parameter\.\w*Parameter
    |numpy\.(_?core\.(multiarray\.(scalar|_reconstruct)|numeric\._frombuffer)|dtype|ndarray)
    |numpy\.(bool_?|u?int\d+|float\d+|str_|dtypes\.\w+)
    |(torch\.optim|torch\.nn\.modules|torchvision\.transforms|torchmetrics|omegaconf|pl_bolts|pytorch_lightning
      |lightning\w*|train|transforms|resnets|hybrid_optimizer_utils|cifar100_datamodule)(\.[a-z_]\w*)*\.[A-Z]\w*""",
    re.VERBOSE,
)


MOST = 10_000  # values that `plain` writes out


class Inert:
    """What stands for a global, and for what it would have made: its `name`, and what it was given."""

    name = ""
    args: tuple[Any, ...]
    items: dict[Any, Any]
    members: list[Any]
    state: Any

    def __new__(cls, *args: Any, **named: Any) -> "Inert":
        made = super().__new__(cls)
        made.args, made.items, made.members, made.state = args, dict(named), [], None
        return made

    def __init__(self, *args: Any, **named: Any) -> None: ...

    def __call__(self, *args: Any) -> "Inert":
        return type(self)(*args)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        """What a pickle does to a list, or (`add`) to a set."""
        self.members.append(value)

    add = append

    def extend(self, values: Any) -> None:
        """What a pickle does to a list."""
        self.members.extend(values)

    def __repr__(self) -> str:
        return f"<{self.name}>"


def _bytearray(reader: Any) -> None:
    """BYTEARRAY8 without making room for what may not come."""
    (size,) = struct.unpack("<Q", reader.read(8))
    reader.append(bytearray(reader.read(size)))


def _refused(reader: Any) -> None:
    """A number of copyreg's registry (EXT), where another library may have put a real object."""
    raise ValueError("it names an extension's number, which no checkpoint needs")


PIECE = 1 << 20  # bytes read at once


class Stored(NamedTuple):
    """Values of a tensor that lie elsewhere in the file."""

    kind: str  # of the storage class, such as "Float"
    key: str
    numel: int


@runtime_checkable
class Readable(Protocol):
    """A file, an entry of an archive, or bytes in memory."""

    def read(self, n: int, /) -> bytes: ...

    def readline(self) -> bytes: ...


class _InPieces:
    """Reads a file piece by piece: a length that it tells makes no room for what may not come."""

    def __init__(self, file: Readable) -> None:
        self.file = file
        self.readline = file.readline

    def read(self, n: int, /) -> bytes:
        """`n` bytes, or what there is."""
        data = self.file.read(min(n, PIECE))
        if len(data) == n or not data:
            return data
        parts = [data]
        while (n := n - len(parts[-1])) and (more := self.file.read(min(n, PIECE))):
            parts.append(more)
        return b"".join(parts)


# Python's own reader in Python: the one in C makes room for 2 n values where a pickle says "store as number n".
class InertUnpickler(pickle._Unpickler):
    """Reads one pickle of `file` with `Inert` for every global; `found` collects their classes by name."""

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: _bytearray,
        **{code[0]: _refused for code in (pickle.EXT1, pickle.EXT2, pickle.EXT4)},
    }

    def __init__(self, file: Readable, found: dict[str, type[Inert]]) -> None:
        super().__init__(_InPieces(file), encoding="latin1")
        self.found = found

    def find_class(self, module: str, name: str) -> type[Inert]:
        """The stand-in for a global, whatever it is."""
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = f"{'os' if module in ('posix', 'nt') else module}.{name}"
        if full not in self.found:
            self.found[full] = type("Inert", (Inert,), {"name": full})
        return self.found[full]

    def persistent_load(self, pid: Any) -> Stored:
        """What torch.save writes in place of a tensor's values."""
        kind, storage, key, _, numel, *view = pid
        # Nothing but plain values may be put into words: the words for lists of lists can fill any memory.
        if kind != "storage" or any(part is not None for part in view):
            raise pickle.UnpicklingError("holds values of a form that torch.save no longer writes")
        if not isinstance(key, str | int) or not isinstance(numel, int) or numel < 0:
            raise pickle.UnpicklingError("names no place of a tensor's values")
        return Stored(storage.name.rpartition(".")[2].removesuffix("Storage"), str(key), numel)


def ordinary(name: str) -> bool:
    """Whether a checkpoint is expected to name this class or function.

    >>> ordinary("collections.OrderedDict"), ordinary("os.system")
    (True, False)
    """
    return _ORDINARY.fullmatch(name) is not None


def named(names: Sequence[str]) -> str:
    """The first of the names in a file, as they can stand in a message: short, without control characters.

    >>> named(["os.system", "a\\x1b[2J"])
    "os.system, 'a\\\\x1b[2J'"
    """
    shown = (name[:80] if name.isprintable() else ascii(name[:80]) for name in names[:20])
    return ", ".join(shown) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def entries(value: Any) -> dict[Any, Any]:
    """What a mapping holds, whatever class it was of: a dictionary, an OrderedDict, a Namespace; else nothing."""
    if isinstance(value, dict):
        return value
    if isinstance(value, Inert):
        return value.items or (value.state if isinstance(value.state, dict) else {})
    return {}


def plain(value: Any, depth: int = 4) -> Any:
    """Numbers, text, lists and dictionaries in place of what a file holds; of other objects their names.

    Anything deeper than `depth` is "...", and so is all that follows the first 10,000 values: a list that holds another
    one many times is small in a file and large when it is written out.

    >>> plain({"epochs": 3, "size": (2, (3, 4))}, depth=2)
    {'epochs': 3, 'size': [2, '...']}
    """
    return _plain(value, depth, itertools.count())


def _plain(value: Any, depth: int, count: Iterator[int]) -> Any:
    if next(count) >= MOST:
        return "..."
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, type) and issubclass(value, Inert):
        return value.name
    if isinstance(value, Inert):
        if value.name.startswith("pathlib."):
            return "/".join(_word(part) for part in value.args[:100]).replace("//", "/")
        if value.name.endswith("multiarray.scalar"):
            return _number(value)
        if value.name == "torch.device":
            return ":".join(_word(part) for part in value.args[:2])
    if depth == 0:
        return "..."
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth - 1, count) for item in list(value)[:100]]
    if isinstance(value, dict) or entries(value):
        found = list(entries(value).items())[:500]
        return {str(_plain(key, 0, count)): _plain(item, depth - 1, count) for key, item in found}
    return repr(value) if isinstance(value, Inert) else f"<{type(value).__name__}>"


def _word(part: Any) -> str:
    """A piece of a path or of a device's name; of anything else the kind."""
    return str(part) if isinstance(part, str | int) else f"<{type(part).__name__}>"


def _number(scalar: Inert) -> Any:
    """The value of a numpy number, from its type's code and its bytes; its name where it is no number."""
    letters = dict(zip(("f2", "f4", "f8", "b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"), "efd?bhiqBHIQ"))
    try:
        kind, raw = scalar.args
        raw = raw.args[0].encode("latin1") if isinstance(raw, Inert) else raw
        return struct.unpack(f"<{letters[kind.args[0]]}", raw)[0]
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        struct.error,
    ):  # no number after all
        return repr(scalar)
