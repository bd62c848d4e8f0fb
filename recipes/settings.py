"""Settings that were written down, back as the dataclass that they were: by name, and of the types it names."""

import dataclasses
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from stec.core.inert import named

T = TypeVar("T")


def typed(kind: type[T], settings: Mapping[str, Any], *, source: Path) -> T:
    """A dataclass from its fields by name, lists as tuples. ValueError names a field that is unknown, missing or other.

    `source` is the file that they are from, for the message.
    """
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(kind)  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    wrong = [str(name) for name in settings if name not in hints]
    missing = [name for name in required if name not in settings]
    if wrong and missing:
        raise ValueError(
            f"{source} has {named(wrong)} and lacks {named(missing)}: it is another file, or of another version of stec"
        )
    if wrong:
        raise ValueError(
            f"{source} has {named(wrong)}, no setting of {kind.__name__}; it is of another version of stec"
        )
    if missing:
        raise ValueError(f"{source} does not have {named(missing)}; it is of another version of stec")
    for name, value in settings.items():
        if not fits(value, hints[name]):
            raise ValueError(
                f"{source} has {named([repr(value)])} for {name}; it is damaged or of another version of stec"
            )
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()})


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type that settings have.

    >>> fits(1, float), fits(True, int), fits([1, 2.5], tuple[float, float]), fits("c", Literal["a", "b"] | None)
    (True, False, True, False)
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            return False
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return len(value) == len(kinds) and all(map(fits, value, kinds))
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint if hint in (int, bool) else isinstance(value, hint)
