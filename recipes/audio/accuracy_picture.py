"""A picture of accuracy by layer, head and offset, beside the baselines."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recipes.records import Result

# Okabe and Ito (2008): colours that people with any colour vision tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
BLIND = "#444444"  # the commonest phone: a line, since it has no features
MARKERS = ("o", "s", "^", "D", "v", "P")

# Of each layer and head: (offset, per cent, how far its interval reaches below, and above).
Series = dict[tuple[str, str], list[tuple[int, float, float, float]]]


def draw_accuracies(
    results: Sequence[Result], *, path: Path, beside: Mapping[str, Sequence[Result]] | None = None
) -> None:
    """Write a PNG of accuracy, with intervals where results have them: over offsets, or as bars where all share one.

    Of each result, `details` names the layer and the offset ("+0"), and low and high of its interval; the protocol is
    the head. `beside` are the results of other methods by their names: they have places of their own beside the
    layers, and what names no layer, such as the commonest phone, is a dashed line. ValueError for no result.
    """
    if not results:
        raise ValueError(f"{path}: there are no results to draw; give at least one")
    blind: dict[str, float] = {}
    if beside:
        results = [_named("trained", r) for r in results]
    results = list(results)
    for name, others in (beside or {}).items():
        for r in others:
            if "layer" not in r.details:
                blind[name] = 100 * r.value
                continue
            results.append(_named(name, r))
    layers, heads, offsets = (
        list(dict.fromkeys(values))
        for values in zip(*((str(r.details["layer"]), r.protocol, int(str(r.details["offset"]))) for r in results))
    )
    series: Series = {}
    for r in results:
        series.setdefault((str(r.details["layer"]), r.protocol), []).append(
            (int(str(r.details["offset"])), *_per_cent(r))
        )
    wide = 7.5 if len(offsets) > 1 else 2.6 + max(1.0 * len(layers) * len(heads), 3.0)
    figure = Figure(figsize=(wide, 4.6), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    axes = figure.add_subplot()
    if len(offsets) > 1:
        _lines(axes, series, layers, heads, offsets)
    else:
        _bars(axes, series, layers, heads)
    for name, value in blind.items():
        axes.axhline(value, color=BLIND, linestyle="--", linewidth=1.2, label=f"{name}: {value:.1f}", zorder=1)
    title = "head" if len(offsets) == 1 else None
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0), title=title)
    intervals = any("low" in r.details for r in results)
    axes.set_title("phone accuracy, test frames" + (", with 95 % intervals" if intervals else ""), fontsize=11)
    axes.set_ylabel("frames right (%)")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _named(method: str, result: Result) -> Result:
    """A result whose layer says the method too; MFCC have no other layer."""
    layer = str(result.details["layer"])
    place = method if layer == method.lower() else f"{method},\n{layer}"
    return dataclasses.replace(result, details={**result.details, "layer": place})


def _per_cent(result: Result) -> tuple[float, float, float]:
    """Accuracy, and how far its interval reaches below and above."""
    low, high = (float(str(result.details.get(end, result.value))) for end in ("low", "high"))
    return 100 * result.value, max(100 * (result.value - low), 0.0), max(100 * (high - result.value), 0.0)


def _lines(axes: Axes, series: Series, layers: list[str], heads: list[str], offsets: list[int]) -> None:
    """Accuracy over offsets: a colour for each layer, a marker and a dash for each head."""
    gap = 0.05 * min(b - a for a, b in itertools.pairwise(sorted(offsets)))
    for i, ((layer, head), points) in enumerate(series.items()):
        x, y, below, above = zip(*sorted(points))
        place = layers.index(layer), heads.index(head)
        # side by side, so that no error bar hides another
        aside = gap * (i - (len(series) - 1) / 2)
        axes.errorbar(
            [offset + aside for offset in x], y, (below, above), label=f"{layer}, {head}".replace("\n", " "),
            capsize=3, linewidth=1.4, markersize=5,
            color=COLOURS[place[0] % len(COLOURS)], marker=MARKERS[place[1] % len(MARKERS)],
            linestyle=("-", "--", ":", "-.")[place[1] % 4],
        )  # fmt: skip
    axes.set_xlabel("offset: frames of 10 ms past the one nearest to the label")
    if len(offsets) <= 15:
        axes.set_xticks(sorted(offsets), [f"{offset:+d}" if offset else "0" for offset in sorted(offsets)])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _bars(axes: Axes, series: Series, layers: list[str], heads: list[str]) -> None:
    """Accuracy at one offset: a group for each layer, a bar for each head."""
    width = 0.8 / len(heads)
    for i, head in enumerate(heads):
        points = [(at, series[layer, head][0]) for at, layer in enumerate(layers) if (layer, head) in series]
        x = [at + width * (i - (len(heads) - 1) / 2) for at, _ in points]
        y, below, above = zip(*(point[1:] for _, point in points))
        axes.bar(
            x, y, 0.92 * width, yerr=(below, above) if any(below + above) else None, label=head,
            color=COLOURS[i % len(COLOURS)], capsize=4, error_kw={"linewidth": 1.2, "ecolor": "black"},
        )  # fmt: skip
        for at, value, more in zip(x, y, above):
            axes.annotate(f"{value:.1f}", (at, value + more), (0, 3), textcoords="offset points", ha="center", size=9)
    offset = next(iter(series.values()))[0][0]
    axes.set_xticks(range(len(layers)), layers)
    axes.set_xlabel("features" if offset == 0 else f"features at offset {offset:+d} (frames of 10 ms)")
    axes.set_xlim(-0.6, len(layers) - 0.4)
    axes.margins(y=0.1)
