"""The axes of a grid, as they are written: settings of a Config or of its augmentation, and their values."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from recipes.vision.config import Config
from stec.vision.views import Augmentation

Value = str | int | float | bool | tuple[int | float, ...] | None

# Named by arguments of their own, or no single value.
ELSEWHERE = {
    "preset": "name the preset as the first argument",
    "seed": "--seeds names them, such as --seeds 0 1 2",
    "root": "--root names the folder, one for all runs",
    "devices": "each run has one device; share the runs among processes with --part",
}


def text(value: Value) -> str:
    """A value as it is written in a grid, in labels and in the names of folders.

    >>> [text(value) for value in (2.0, 0.25, 6, None, True, "exact", (0.08, 1.0))]
    ['2', '0.25', '6', 'none', 'true', 'exact', '0.08:1']
    """
    if isinstance(value, tuple):
        return ":".join(text(part) for part in value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def name(overrides: Mapping[str, Value]) -> str:
    """The overrides as one word.

    >>> name({"bins": 4, "lambda_manip": 0.2})
    'bins=4,lambda_manip=0.2'
    """
    return ",".join(f"{field}={text(value)}" for field, value in overrides.items())


def _choices(kind: Any) -> tuple[list[str], list[type]]:
    """The words that a type admits, and the kinds of number; None counts as the word "none"."""
    if typing.get_origin(kind) is Literal:
        return [str(word) for word in typing.get_args(kind)], []
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        parts = [_choices(part) for part in typing.get_args(kind)]
        return [word for words, _ in parts for word in words], [number for _, numbers in parts for number in numbers]
    if kind is types.NoneType:
        return ["none"], []
    if kind is bool:
        return ["true", "false"], []
    return [], [kind] if kind in (int, float) else []


def _several(kind: Any, word: str) -> tuple[int | float, ...] | None:
    """The numbers of a word such as "0.08:1", where the type has as many; None where the word is no such thing."""
    for part in typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,):
        if typing.get_origin(part) is tuple and ":" in word:
            of = typing.get_args(part)
            numbers = word.split(":")
            try:
                values = tuple(of[0](number) for number in numbers)
            except ValueError:
                continue
            if (len(numbers) == len(of) or of[-1] is Ellipsis) and all(map(math.isfinite, values)):
                return values
    return None


def _fields() -> dict[str, Any]:
    """The types of all settings by their names, those of the augmentation included, as `pretrain` has them."""
    own = typing.get_type_hints(Config)
    return {name: kind for name, kind in own.items() if kind is not Augmentation} | typing.get_type_hints(Augmentation)


def override(config: Config, overrides: Mapping[str, Value]) -> Config:
    """The configuration with these settings; those of the augmentation go into it.

    >>> from recipes.vision.presets import preset
    >>> override(preset("small-stec"), {"size": 48, "bins": 4}).augmentation.size
    48
    """
    of_views = {field.name for field in dataclasses.fields(Augmentation)} & set(overrides)
    views = dataclasses.replace(config.augmentation, **{name: overrides[name] for name in of_views})  # type: ignore[arg-type]
    own = {name: value for name, value in overrides.items() if name not in of_views}
    return dataclasses.replace(config, augmentation=views, **own)  # type: ignore[arg-type]


def parse_value(field: str, word: str) -> Value:
    """The value that a word of the command line gives a field of Config or of its augmentation, by the field's type.

    Ranges are written with a colon. ValueError names the nearest fields or values where there is none of that name, or
    says what the field takes.

    >>> parse_value("bins", "4"), parse_value("momentum", "none"), parse_value("scale", "0.2:1")
    (4, None, (0.2, 1.0))
    """
    kinds = _fields()
    if field not in kinds:
        near = difflib.get_close_matches(field, kinds, n=4, cutoff=0.4) or sorted(kinds)
        raise ValueError(f"there is no setting {field[:60]!r}; the nearest are {', '.join(near)}")
    if field in ELSEWHERE:
        raise ValueError(f"{field} is no axis of a grid: {ELSEWHERE[field]}")
    words, numbers = _choices(kinds[field])
    if (several := _several(kinds[field], word)) is not None:
        return several
    if not words and not numbers:
        raise ValueError(f"{field} takes two numbers with a colon between them, such as 0.2:1, not {word[:60]!r}")
    if word.lower() in words:
        return {"none": None, "true": True, "false": False}.get(word.lower(), word.lower())
    for number in numbers:
        try:
            value: int | float = number(word)
        except ValueError:
            continue
        if isinstance(value, int) or math.isfinite(value):
            return value
    if numbers:
        takes = " or ".join([*(number.__name__ for number in numbers), *words])
        raise ValueError(f"{field} takes {takes}, not {word[:60]!r}")
    near = difflib.get_close_matches(word, words, n=3, cutoff=0.4) or words
    raise ValueError(f"{field} cannot be {word[:60]!r}; the nearest are {', '.join(near)}")


def parse_grid(words: Sequence[str]) -> dict[str, list[Value]]:
    """Axes from words like "bins=4,6,8". ValueError for an unknown field, a bad value, or one that is named twice.

    >>> parse_grid(["bins=4,6", "lambda_manip=0,0.2"])
    {'bins': [4, 6], 'lambda_manip': [0.0, 0.2]}
    """
    axes: dict[str, list[Value]] = {}
    for word in words:
        field, equals, values = word.partition("=")
        if not equals or not values:
            raise ValueError(f"{word[:60]!r} is no axis; write a setting and its values, such as bins=4,6,8")
        if field in axes:
            raise ValueError(f"{field} is named twice; give all its values at once: {field}=A,B,C")
        axes[field] = [parse_value(field, value) for value in values.split(",")]
        if len(set(axes[field])) < len(axes[field]):
            raise ValueError(f"{word[:60]!r} names a value twice; name each once")
    return axes
