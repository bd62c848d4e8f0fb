"""Which settings a sweep compares: grids over the fields of a Config, and the panels of the paper's Fig. 3.

The weights stay as they are given. Every manipulation loss is a mean over components, so lambda_manip weighs the whole
action, however many components a label has and however many bins cut them; its chance level is log K nats for bins of
equal shares, and 1/2 for the regression, whatever lambda_manip is.
"""

import dataclasses
import difflib
import itertools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from recipes.vision.config import NAMES, Config, Identity, method

Value = str | int | float | bool | None
Panel = Literal["3A", "3B-lambda", "3B-bins"]

# What the manipulation model alone reads: without it these change nothing, so that their cells are one.
OF_MANIPULATION = ("action", "manipulation", "manipulation_hidden", "bins")
# Which identity models read a setting; the others do not change with it (see networks.identity).
OF_IDENTITY: dict[str, tuple[Identity, ...]] = {
    "temperature": ("simclr", "relic", "relicv2", "moco"),
    "momentum": ("relic", "relicv2", "byol", "moco"),
    "predictor_hidden": ("relic", "relicv2", "byol", "simsiam"),
    "predictor_rate": ("relic", "relicv2", "byol", "simsiam"),
    "projection_layers": ("byol", "simsiam", "vicreg", "barlow"),
    "alpha": ("relic", "relicv2"),
    "queue": ("moco",),
    "lambda_reg": ("vicreg",),
    "variance_weight": ("vicreg",),
    "redundancy": ("barlow",),
    "stop_gradient": ("byol", "simsiam"),
    "small_size": ("relicv2",),
    "small_scale": ("relicv2",),
}
# Named by arguments of their own, or no single value.
ELSEWHERE = {
    "preset": "name the preset as the first argument",
    "seed": "--seeds N takes the seeds 0 ... N - 1",
    "root": "--root names the folder, one for all runs",
    "devices": "each run has one device; share the runs among processes with --part",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One setting of a sweep: its name in tables, and the fields that differ from the preset."""

    label: str
    overrides: Mapping[str, Value]


@dataclasses.dataclass(frozen=True)
class Grid:
    """The cells of a sweep, and the axes along which they vary; none where the cells are named arms.

    A cell that does not depend on an axis has no value there: SimCLR knows no bins.
    """

    cells: tuple[Cell, ...]
    axes: tuple[str, ...] = ()


def text(value: Value) -> str:
    """A value as it is written in a grid, in labels and in the names of folders.

    >>> [text(value) for value in (2.0, 0.25, 6, None, True, "exact")]
    ['2', '0.25', '6', 'none', 'true', 'exact']
    """
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


def parse_value(field: str, word: str) -> Value:
    """The value that a word of the command line gives a field of Config, by the field's type.

    ValueError names the nearest fields or values where there is none of that name, or says what the field takes.

    >>> parse_value("bins", "4"), parse_value("momentum", "none"), parse_value("action", "exact")
    (4, None, 'exact')
    """
    kinds = typing.get_type_hints(Config)
    if field not in kinds:
        near = difflib.get_close_matches(field, kinds, n=4, cutoff=0.4) or sorted(kinds)
        raise ValueError(f"there is no setting {field[:60]!r}; the nearest are {', '.join(near)}")
    if field in ELSEWHERE:
        raise ValueError(f"{field} is no axis of a grid: {ELSEWHERE[field]}")
    words, numbers = _choices(kinds[field])
    if not words and not numbers:
        raise ValueError(f"{field} has no single value, so a grid cannot vary it; choose another setting")
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


def idle(config: Config) -> dict[str, str]:
    """The settings that change nothing in a run, and why: those of models that it lacks.

    >>> from recipes.vision.presets import preset
    >>> idle(preset("tiny-simclr"))["bins"], "temperature" in idle(preset("tiny-simclr"))
    ('lambda_manip is 0', False)
    """
    why = {
        field: f"{NAMES[config.identity]} has none" for field, of in OF_IDENTITY.items() if config.identity not in of
    }
    if config.small_views == 0 and config.identity == "relicv2":
        why |= dict.fromkeys(("small_size", "small_scale"), "small_views is 0")
    if config.lambda_manip == 0:
        why |= dict.fromkeys(OF_MANIPULATION, "lambda_manip is 0")
    elif config.manipulation == "regressed":
        why["bins"] = "a regression of actions has none"
    return why


def check_fixed(fixed: Mapping[str, Value], preset: str, configs: Sequence[Config]) -> None:
    """ValueError for an axis of one value that no cell of the grid reads: its folder would be named by nothing."""
    for field, value in fixed.items():
        reasons = [idle(config).get(field) for config in configs]
        if reasons and all(reasons):
            raise ValueError(
                f"{field}={text(value)} changes nothing in {preset}: {reasons[0]}; leave it out, or choose another "
                "preset, or name the setting that brings it to use"
            )


def _without_idle(base: Config, overrides: Mapping[str, Value]) -> dict[str, Value]:
    """The overrides that the run depends on."""
    unread = idle(dataclasses.replace(base, **overrides))  # type: ignore[arg-type]
    return {field: value for field, value in overrides.items() if field not in unread}


def product(base: Config, axes: Mapping[str, Sequence[Value]]) -> Grid:
    """Every combination of the axes' values.

    Cells that differ only in what they do not use are one: without L_manip there are no bins to vary. An axis that no
    cell uses is none.
    """
    cells: dict[str, Cell] = {}
    for values in itertools.product(*axes.values()):
        overrides = _without_idle(base, dict(zip(axes, values)))
        label = name(overrides).replace(",", ", ") or method(base)
        cells.setdefault(label, Cell(label, overrides))
    read = {field for cell in cells.values() for field in cell.overrides}
    return Grid(tuple(cells.values()), tuple(field for field in axes if field in read))


def panel(which: Panel, base: Config) -> Grid:
    """The settings behind a panel of Fig. 3, around a preset with L_manip. ValueError for a preset without.

    3A: {egocentric, allocentric} x {classes, L2}, the released code's label, and the task of AugSelf (Lee et al. 2021).
    3B: lambda_manip around the preset's own value, and K. Each has the identity model alone beside it.
    """
    if base.lambda_manip == 0:
        raise ValueError(f"panel {which} varies L_manip, which {base.preset} lacks; choose a preset such as small-stec")
    if which == "3B-lambda":
        weights = [_scaled(base.lambda_manip, factor) for factor in (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)]
        return product(base, {"lambda_manip": weights})
    alone: dict[str, Value] = {"lambda_manip": 0.0}
    baseline = Cell(method(dataclasses.replace(base, lambda_manip=0.0)), alone)
    if which == "3B-bins":
        bins = product(base, {"bins": [2, 4, 6, 8, 10, 14, 20]})
        return Grid((baseline, *bins.cells), bins.axes)
    arms: list[tuple[str, str, str]] = [
        ("egocentric, classes", "exact", "binned"),
        ("egocentric, L2", "exact", "regressed"),
        ("allocentric, classes", "allocentric", "binned"),
        ("allocentric, L2", "allocentric", "regressed"),
        ("AugSelf, L2", "augself", "regressed"),
        ("released label, classes", "official", "binned"),
    ]
    cells = [baseline]
    for label, action, manipulation in arms:
        overrides: dict[str, Value] = {"action": action, "manipulation": manipulation}
        # Two of the released label's six components are void, and the loss is a mean over all: 6/4 gives each live
        # component the weight that it has with the four of the others, as in the presets.
        weight = _scaled(base.lambda_manip, _void(action) / _void(base.action))
        if weight != base.lambda_manip:
            overrides["lambda_manip"] = weight
        cells.append(Cell(label, overrides))
    return Grid(tuple(cells))


def _scaled(weight: float, factor: float) -> float:
    """A weight times a factor, to four digits: presets round theirs, and folders are named by it."""
    return weight if factor == 1 else float(f"{weight * factor:.4g}")


def _void(action: str) -> float:
    """Components of a label over those that are not constant."""
    return 6 / 4 if action == "official" else 1.0
