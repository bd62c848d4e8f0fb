"""Pictures of what many runs gave: accuracy and surprise over a swept setting or by arm."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from recipes.results.intervals import Interval
from recipes.vision.axes import Value, text
from recipes.vision.summary import NATS, R2, Summary

# Okabe and Ito (2008): colours that people with any colour vision tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
SEED, ALONE = "#8C8C8C", "#444444"  # single runs; the identity model without L_manip
AXES = {"bins": "K, bins of each component", "size": "size of the views, pixels"}
ENOUGH = 3  # seeds for an interval: by Student's t that of two reaches nine standard deviations to each side
BAND = "95 % interval of the dashed line"


class Metric(NamedTuple):
    """What a panel shows: which metric of a summary, its scale, and what the axis says."""

    name: str
    scale: float
    label: str


def draw_sweep(summaries: Sequence[Summary], path: Path, *, axes: Sequence[str], accuracy: str, title: str) -> Figure:
    """Write a PNG of means, every seed a grey dot: accuracy within 0 to 100 %, and manipulation in nats.

    Means of three seeds and more have their 95 % confidence interval.

    Along the first axis, with a line for each combination of the others; where there is no axis, the arms one below
    the other. What has no place on the axis, such as SimCLR among numbers of bins, is a dashed line across. `accuracy`
    is the name of a metric; the second panel is there where any run reads actions as bins.
    """
    panels = [Metric(accuracy, 100, f"{accuracy.partition(', ')[2]} accuracy, test images (%)")]
    if any(NATS in summary.metrics for summary in summaries):
        panels.append(Metric(NATS, 1, "manipulation minus chance,\nheld-out views (nats; lower is better)"))
    figure = figure_of(len(panels), tall=3.4 if axes else 1.2 + 0.36 * len(summaries), share_y=not axes)
    for panel, metric in zip(figure.axes, panels):
        if axes:
            _lines(panel, summaries, axes, metric)
        else:
            _arms(panel, summaries, metric)
        if metric.scale == 100:
            _within(panel, upright=not axes)
    if axes:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        # Below the panels: a wide band leaves no free place inside.
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3), frameon=False, fontsize=8)
    most = max(len(summary.seeds) for summary in summaries)
    several = "1 seed"
    if most > 1:
        several = f"{most} seeds (dots), mean" + (" and 95 % confidence interval" if most >= ENOUGH else "")
    if not axes and most >= ENOUGH and any(s.overrides.get("lambda_manip") == 0 for s in summaries):
        several += "\ngrey band: the interval without L_manip"
    figure.suptitle(f"{title}: {several}", fontsize=10)
    return save(figure, path)


def alone(summary: Summary, axis: str) -> bool:
    """Whether a setting lies beside the axis rather than on it: without L_manip its settings change nothing."""
    return axis not in summary.overrides or (axis == "lambda_manip" and summary.overrides[axis] == 0)


def places(values: Sequence[Value]) -> list[float]:
    """Where values lie on an axis: to scale, by logarithm where they span a decade, side by side where not numbers.

    >>> places([4, 6, 8]), places([0.1, 10.0]), places(["exact", None])
    ([4.0, 6.0, 8.0], [-1.0, 1.0], [0.0, 1.0])
    """
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values):
        return [float(i) for i in range(len(values))]
    if min(numbers) > 0 and max(numbers) >= 10 * min(numbers):
        return [math.log10(number) for number in numbers]
    return numbers


def category(at: Sequence[float]) -> float:
    """How much of an axis a value has for itself: the way to its nearest neighbour, 1 for one alone.

    >>> category([4.0, 6.0, 10.0]), category([4.0])
    (2.0, 1.0)
    """
    return min((b - a for a, b in itertools.pairwise(sorted(at))), default=1.0)


def _within(panel: Axes, *, upright: bool) -> None:
    """The axis of accuracies cut to 0 to 100 %, which intervals may leave."""
    low, high = panel.get_xlim() if upright else panel.get_ylim()
    (panel.set_xlim if upright else panel.set_ylim)(max(low, 0.0), min(high, 100.0))


def _lines(panel: Axes, summaries: Sequence[Summary], axes: Sequence[str], metric: Metric) -> None:
    """A metric along the first axis."""
    axis, *others = axes
    values = list(dict.fromkeys(s.overrides[axis] for s in summaries if not alone(s, axis)))
    at = dict(zip(values, places(values)))
    words = any(isinstance(value, str | bool | tuple | None) for value in values)  # between two words lies nothing
    labels = list(dict.fromkeys(_label(s, others) for s in summaries if not alone(s, axis)))
    shown = [s for s in summaries if metric.name in s.metrics]
    for s in (s for s in shown if alone(s, axis)):
        own = _label(s, others) in labels and bool(others)
        colour = COLOURS[labels.index(_label(s, others)) % len(COLOURS)] if own else ALONE
        _across(panel, s.metrics[metric.name], metric.scale, colour=colour, label=s.label)
    width = category(list(at.values()))
    gap = min(0.2, 0.6 / max(len(labels), 1)) * width
    for i, label in enumerate(labels):
        of = [s for s in shown if not alone(s, axis) and _label(s, others) == label]
        found = [s.metrics[metric.name] for s in of]
        # Side by side, so that no interval hides another, and single seeds beside their mean.
        x = [at[s.overrides[axis]] + gap * (i - (len(labels) - 1) / 2) for s in of]
        _seeds(panel, [(place + gap / 3, metric.scale * v) for place, f in zip(x, found) for v in _several(f)])
        panel.errorbar(
            x, [metric.scale * f.mean for f in found], _reach(found, metric.scale), label=label or "mean",
            color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], markersize=5, capsize=3,
            linewidth=1.4, linestyle="none" if words else "-", zorder=3,
        )  # fmt: skip
    panel.set_xticks(list(at.values()), [f"{v:.3g}" if isinstance(v, float) else text(v) for v in at])
    if at:
        panel.set_xlim(min(at.values()) - width / 2, max(at.values()) + width / 2)
    panel.set_xlabel(AXES.get(axis, axis))
    panel.set_ylabel(metric.label)


def _label(summary: Summary, fields: Sequence[str]) -> str:
    return ", ".join(f"{field}={text(summary.overrides[field])}" for field in fields if field in summary.overrides)


def _arms(panel: Axes, summaries: Sequence[Summary], metric: Metric) -> None:
    """A metric of every arm, the first at the top; what is trained without L_manip is a line through all."""
    panel.set_yticks(range(len(summaries)), [s.label for s in summaries])
    panel.set_ylim(len(summaries) - 0.5, -0.5)
    for row, s in enumerate(summaries):
        found = s.metrics.get(metric.name)
        without = s.overrides.get("lambda_manip") == 0
        if found is None:
            # A regression has no bins, so no nats over chance.
            note = "no L_manip" if without else f"L2: R² {s.metrics[R2].mean:.2f}" if R2 in s.metrics else "no result"
            panel.annotate(
                note, (0.5, row), xycoords=("axes fraction", "data"), ha="center", va="center", size=8,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            )  # fmt: skip
            continue
        colour = ALONE if without else COLOURS[0]
        if without:
            _across(panel, found, metric.scale, colour=colour, label=None, upright=True)
        _seeds(panel, [(metric.scale * value, row + 0.17) for value in _several(found)])
        panel.errorbar(
            metric.scale * found.mean, row, xerr=_reach([found], metric.scale), color=colour, marker="o", markersize=5,
            capsize=3, linewidth=1.4, zorder=3,
        )  # fmt: skip
    panel.xaxis.set_major_locator(MaxNLocator(6))
    panel.set_xlabel(metric.label)


def _across(
    panel: Axes, found: Interval, scale: float, *, colour: str, label: str | None, upright: bool = False
) -> None:
    """A dashed line across the panel at a mean, in a band as wide as its interval."""
    line, band = (panel.axvline, panel.axvspan) if upright else (panel.axhline, panel.axhspan)
    line(scale * found.mean, color=colour, linestyle="--", linewidth=1.1, label=label, zorder=1)
    low, high = _ends(found)
    if not math.isnan(low):
        name = BAND if label and BAND not in panel.get_legend_handles_labels()[1] else None
        band(scale * low, scale * high, color=colour, alpha=0.1, linewidth=0, zorder=0, label=name)


def _several(found: Interval) -> list[float]:
    """Single runs, where there is more than the one that is the mean."""
    return found.values if len(found.values) > 1 else []


def _seeds(panel: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Single runs as grey dots."""
    x, y = [x for x, _ in points], [y for _, y in points]
    panel.plot(x, y, ".", color=SEED, markersize=5, markeredgewidth=0, zorder=4)


def _ends(found: Interval) -> tuple[float, float]:
    """The ends of an interval that is drawn; NaN of fewer seeds than make one worth drawing."""
    if len(found.values) < ENOUGH or found.low is None or found.high is None:
        return math.nan, math.nan
    return found.low, found.high


def _reach(found: Sequence[Interval], scale: float) -> list[list[float]] | None:
    """How far the intervals reach below and above; NaN, which draws nothing, where there is none.

    None where there is none at all: the legend shows no bar either.
    """
    ends = [_ends(f) for f in found]
    if all(math.isnan(low) for low, _ in ends):
        return None
    below = [scale * (f.mean - low) for f, (low, _) in zip(found, ends)]
    above = [scale * (high - f.mean) for f, (_, high) in zip(found, ends)]
    return [below, above]


def figure_of(panels: int, *, tall: float, wide: float = 4.6, rows: int = 1, share_y: bool = False) -> Figure:
    """An empty figure with panels side by side, in rows of equal length."""
    columns = math.ceil(panels / rows)
    size = (wide * columns + (1.2 if share_y else 0.0), 0.5 + tall * rows)
    figure = Figure(figsize=size, dpi=96, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    for panel in figure.subplots(rows, columns, sharey=share_y, squeeze=False).flat:
        panel.grid(color="#E3E3E3", linewidth=0.7)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=9)
    return figure


def save(figure: Figure, path: Path) -> Figure:
    """Write a PNG of 128 colours, a third of the size of one with all of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    pixels.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    return figure
