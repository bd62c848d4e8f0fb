"""Which settings a sweep compares: grids over settings, and the panels of the paper's Fig. 3.

The weights stay as they are given. Every manipulation loss is a mean over components, so lambda_manip weighs the whole
action, however many components a label has and however many bins cut them; its chance level is log K nats for bins of
equal shares, and 1/2 for the regression, whatever lambda_manip is.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

from recipes.vision.axes import Value, name, override, text
from recipes.vision.config import NAMES, Config, Identity, method

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
    law = config.augmentation
    for share, of in {"p_jitter": "strength", "p_blur": "sigma", "p_solarise": "threshold"}.items():
        if getattr(law, share) == 0:
            why[of] = f"{share} is 0"
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
    unread = idle(override(base, overrides))
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
