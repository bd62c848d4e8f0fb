"""Pictures of a phone probe: one utterance with what was read in it, confusions, accuracy by layer and offset."""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from recipes.audio.measure import Frames, PhoneProbe
from recipes.records import Result

if TYPE_CHECKING:  # phones imports this module
    from recipes.audio.phones import Task

RATE, HOP, LABEL_CENTRE = 16_000, 160, 200.0
LONGEST = 4.0  # seconds of an utterance: more would leave no room for names
SIZES = (9.0, 7.0)  # points: of a name, and of one that is too wide for its stretch otherwise
WINDOW, BINS, FLOOR = 400, 512, -80  # of the spectrogram: samples, length of the transform, dB below its peak
# Okabe and Ito (2008): colours that people with any colour vision tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
MARKERS = ("o", "s", "^", "D", "v", "P")
TRUE, RIGHT, WRONG, MARK = "#E4E4E4", "#CFE5F4", "#FBD9A0", "#D55E00"


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Frames in a row with one value, in seconds from the start of the utterance."""

    value: int
    start: float
    end: float


def stretches(values: Int[Tensor, " n"], *, centre: float) -> list[Stretch]:
    """Runs of equal values, where value i lies around sample 160 i + `centre` at 16 kHz; those of -1 are left out.

    >>> stretches(torch.tensor([7, 7, -1, 3]), centre=200.0)
    [Stretch(value=7, start=0.0075, end=0.0275), Stretch(value=3, start=0.0375, end=0.0475)]
    """
    found, first = [], 0
    for value, run in itertools.groupby(values.tolist()):
        last = first + len(list(run))
        if value >= 0:
            edges = [(centre + HOP * (i - 0.5)) / RATE for i in (first, last)]
            found.append(Stretch(value, *edges))
        first = last
    return found


def draw_all(task: "Task", frames: Frames, probe: PhoneProbe, *, names: Sequence[str], folder: Path) -> list[Path]:
    """Write utterance.png, confusion.png and accuracy.png into `folder`; the first two show the best linear head.

    `names` are those of the phones in the order of their ids, or none. The utterance is the first of median length in
    the test split. ValueError where there is nothing to draw, or fewer names than phones.
    """
    if not task.test:
        raise ValueError(f"{folder}: there are no test utterances to draw; name some in the test split")
    best = best_linear(probe)
    head = probe.heads.heads[best]
    features, labels = frames.sets[head.features], probe.labels[best]
    of_test = set(task.test)
    tested = {name: i for i, name in enumerate(features.utterances) if name in of_test}
    predicted = {name: probe.heads.predict(best, features.of(i)) for name, i in tested.items()}
    truth = {name: labels[features.starts[i] : features.starts[i] + features.lengths[i]] for name, i in tested.items()}
    title = f"{head.features}, linear head" + ("" if int(head.labels) == 0 else f" at offset {head.labels}")

    lengths = [int(task.corpus.lengths[task.corpus.index(name)]) for name in task.test]
    median = task.test[lengths.index(statistics.median_low(lengths))]
    paths = [folder / f"{what}.png" for what in ("utterance", "confusion", "accuracy")]
    draw_utterance(
        task.corpus.waveform(task.corpus.index(median)),
        torch.as_tensor(task.labels[median]),
        predicted=predicted[median],
        truth=truth[median],
        # a head that reads a label from k frames later is drawn where that label is
        centre=frames.centre - HOP * int(head.labels),
        names=names,
        title=f"{median}: {title}",
        path=paths[0],
    )
    draw_confusion(
        torch.cat([truth[name] for name in task.test]),
        torch.cat([predicted[name] for name in task.test]),
        classes=task.classes,
        names=names,
        title=title,
        path=paths[1],
    )
    draw_accuracies([r for r in probe.results if r.metric == "phone accuracy"], path=paths[2])
    return paths


def best_linear(probe: PhoneProbe) -> str:
    """The linear head with the highest accuracy; the first of equals."""
    shares = {
        name: float(probe.counts[name].correct[name].sum() / probe.counts[name].total.sum())
        for name, head in probe.heads.heads.items()
        if head.hidden is None and name in probe.counts  # not those that read speakers
    }
    return max(shares, key=lambda name: shares[name])


def draw_utterance(
    waveform: Float[Tensor, " n"],
    labels: Int[Tensor, " m"],
    *,
    predicted: Int[Tensor, " t"],
    truth: Int[Tensor, " t"],
    centre: float,
    names: Sequence[str],
    title: str,
    path: Path,
) -> None:
    """Write a PNG of the first 4 s: waveform, spectrogram, and the phones, true and predicted, in time.

    `labels` are every 10 ms from sample 200 on, at 16 kHz; `predicted` and `truth` (-1: no label) are of frames, every
    10 ms from sample `centre` on. Frames without a label are left out. ValueError for an empty waveform, an utterance
    without a labelled frame, and fewer names than phones.
    """
    counted = truth >= 0
    if not len(waveform) or len(truth) != len(predicted) or not bool(counted.any()):
        raise ValueError(
            f"{title}: {len(waveform)} samples, {len(predicted)} predictions and {len(truth)} labels of frames, "
            f"{int(counted.sum())} of them known; need a waveform, and a label for each of its frames, known for one"
        )
    _check_names(names, 1 + int(torch.cat((labels, predicted)).max()), title)
    seconds = len(waveform) / RATE
    end = min(seconds, LONGEST)
    wrong = (predicted != truth).long()
    share = 1 - float(wrong[counted].double().mean())

    figure = Figure(figsize=(14, 6), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        3, 2, width_ratios=(1, 0.012), height_ratios=(1, 2.6, 1.15), left=0.075, right=0.93, top=0.92, bottom=0.09,
        wspace=0.025, hspace=0.09,
    )  # fmt: skip
    wave, spectrum, lanes = (figure.add_subplot(grid[row, 0]) for row in range(3))
    cut = "" if end == seconds else f"; shown: the first {end:.0f} s of {seconds:.1f} s"
    wave.set_title(
        f"{title}, {100 * share:.1f} % of {int(counted.sum())} frames right{cut}", fontsize=12, parse_math=False
    )
    shown = waveform[: math.ceil(end * RATE)]
    wave.plot(np.arange(len(shown)) / RATE, shown.numpy(), color=COLOURS[0], linewidth=0.4)
    reach = 1.1 * max(float(shown.abs().max()), 1e-3)
    wave.set(ylabel="amplitude", ylim=(-reach, reach))
    _spectrogram(spectrum, waveform, figure.add_subplot(grid[1, 1]))
    true = stretches(labels, centre=LABEL_CENTRE)
    for axes in (wave, spectrum):
        axes.set(xlim=(0, end))
        axes.tick_params(labelbottom=False)
        for one in true:
            axes.axvline(one.start, color="white" if axes is spectrum else "black", linewidth=0.6, alpha=0.3)

    lanes.set(xlim=(0, end), ylim=(0, 2), yticks=(1.5, 0.5), yticklabels=("true", "predicted"), xlabel="time (s)")
    lanes.tick_params(axis="y", length=0, labelsize=10)
    _lane(lanes, [(one, one.value, TRUE) for one in true], 1.5, names)
    # a stretch of one phone that is right in part becomes two, so that each has its colour and name
    parts = stretches(torch.where(counted, 2 * predicted + wrong, -1), centre=centre)
    _lane(lanes, [(one, one.value // 2, WRONG if one.value % 2 else RIGHT) for one in parts], 0.5, names)
    for one in parts:
        if one.value % 2:  # a second sign beside the colour
            lanes.broken_barh([(one.start, one.end - one.start)], (0.1, 0.13), facecolor=MARK, zorder=3)
    lanes.legend(
        handles=[Patch(color=RIGHT, label="right"), Patch(facecolor=WRONG, edgecolor=MARK, label="wrong")],
        loc="lower left", bbox_to_anchor=(1.002, 0.02), frameon=False, fontsize=9, handlelength=1, borderpad=0.2,
    )  # fmt: skip
    _save(figure, path)


def _spectrogram(axes: Axes, waveform: Float[Tensor, " n"], bar: Axes) -> None:
    """Windows of 25 ms every 10 ms, in dB below the loudest bin."""
    window = torch.hann_window(WINDOW)
    # centred, so that column t lies around sample 160 t
    spectrum = torch.stft(
        waveform.float(), BINS, HOP, WINDOW, window, center=True, pad_mode="constant", return_complex=True
    ).abs()
    level = 20 * (spectrum / spectrum.max().clamp(min=1e-10)).clamp(min=1e-10).log10()
    half, width = HOP / RATE / 2, RATE / BINS / 1000
    image = axes.imshow(
        level.numpy(),
        extent=(-half, half * (2 * level.shape[1] - 1), -width / 2, width * (level.shape[0] - 0.5)),
        origin="lower", aspect="auto", cmap="magma", vmin=FLOOR, vmax=0, interpolation="nearest",
    )  # fmt: skip
    axes.set(ylabel="frequency (kHz)", ylim=(0, RATE / 2000))
    axes.figure.colorbar(image, cax=bar, label="dB below the loudest")


def _lane(axes: Axes, parts: Sequence[tuple[Stretch, int, str]], y: float, names: Sequence[str]) -> None:
    """Stretches, each with its phone and colour, around `y`; the name where it fits."""
    renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    for one, phone, colour in parts:
        axes.broken_barh([(one.start, one.end - one.start)], (y - 0.4, 0.8), facecolor=colour)
        axes.vlines(one.start, y - 0.4, y + 0.4, color="white", linewidth=1)
        left, right = max(one.start, 0.0), min(one.end, axes.get_xlim()[1])
        (start, _), (end, _) = axes.transData.transform([(left, y), (right, y)])
        for size in SIZES:
            text = axes.text(
                (left + right) / 2, y + 0.03, names[phone] if names else str(phone), fontsize=size, parse_math=False,
                ha="center", va="center_baseline", zorder=4,
            )  # fmt: skip
            if text.get_window_extent(renderer).width < end - start - 3:
                break
            text.remove()


def _check_names(names: Sequence[str], phones: int, title: str) -> None:
    if names and len(names) < phones:
        raise ValueError(f"{title}: {len(names)} names for {phones} phones; name each, or none")


def confusions(truth: Int[Tensor, " n"], predicted: Int[Tensor, " n"], *, classes: int) -> Float[np.ndarray, "c c"]:
    """How the frames of each true class (row) are classified, as shares; NaN in rows of classes without a frame.

    >>> confusions(torch.tensor([0, 0, 1, -1]), torch.tensor([0, 1, 1, 1]), classes=2)
    array([[0.5, 0.5],
           [0. , 1. ]])
    """
    counted = truth >= 0
    cells = truth[counted] * classes + predicted[counted]
    counts = cells.bincount(minlength=classes**2).reshape(classes, classes).double()
    return (counts / counts.sum(dim=1, keepdim=True)).numpy()


def cluster_order(shares: Float[np.ndarray, "c c"]) -> list[int]:
    """Classes that are taken for one another side by side: the leaves of average linkage (Bar-Joseph et al. 2001)."""
    known = np.nan_to_num(shares)
    distance = 1 - (known + known.T) / 2
    np.fill_diagonal(distance, 0)
    return [int(leaf) for leaf in leaves_list(linkage(squareform(distance), "average", optimal_ordering=True))]


def draw_confusion(
    truth: Int[Tensor, " n"],
    predicted: Int[Tensor, " n"],
    *,
    classes: int,
    names: Sequence[str],
    title: str,
    path: Path,
) -> None:
    """Write a PNG of the confusions of frames, true phones in rows; clustered where phones have names, else by id.

    ValueError for no labelled frame, and for fewer names than classes.
    """
    counted = truth >= 0
    if not bool(counted.any()):
        raise ValueError(f"{title}: no frame has a label, so there are no confusions; test on labelled utterances")
    _check_names(names, classes, title)
    shares = confusions(truth, predicted, classes=classes)
    order = cluster_order(shares) if names else list(range(classes))
    accuracy = float((truth == predicted)[counted].double().mean())

    side = min(max(0.185 * classes, 4.0), 11.0)  # inches of the matrix: a tick label of 8 points needs 0.18 a class
    wide, tall = side + 2.0, side + 1.6
    figure = Figure(figsize=(wide, tall), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.8 / wide, 0.75 / tall, side / wide, side / tall))
    colours = matplotlib.colormaps["Blues"].with_extremes(bad="#EFEFEF")
    # By the square root: most confusions are a few per cent, which a linear scale would show as white.
    image = axes.imshow(
        100 * shares[np.ix_(order, order)], cmap=colours, norm=PowerNorm(0.5, 0, 100), interpolation="nearest"
    )
    ticks = range(0, classes, math.ceil(classes * 0.18 / side))
    labels = [names[order[i]] if names else str(order[i]) for i in ticks]
    axes.set_xticks(ticks, labels, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(ticks, labels, fontsize=8, parse_math=False)
    axes.tick_params(length=2, pad=2)
    what = "phone" if names else "phone id"
    absent = " (grey: not in the test split)" if np.isnan(shares).any() else ""
    axes.set(xlabel=f"predicted {what}", ylabel=f"true {what}{absent}")
    axes.set_title(f"{title}\n{100 * accuracy:.1f} % of {int(counted.sum()):,} frames right", fontsize=11, pad=10)
    bar = figure.add_axes(((0.8 + side + 0.15) / wide, 0.75 / tall, 0.16 / wide, side / tall))
    figure.colorbar(image, cax=bar, ticks=(0, 1, 5, 10, 20, 40, 60, 80, 100), label="% of the true phone's frames")
    _save(figure, path)


# Of each layer and head: (offset, per cent, how far its interval reaches below, and above).
Series = dict[tuple[str, str], list[tuple[int, float, float, float]]]


def draw_accuracies(results: Sequence[Result], *, path: Path) -> None:
    """Write a PNG of accuracy, with intervals where results have them: over offsets, or as bars where all share one.

    Of each result, `details` names the layer and the offset ("+0"), and low and high of its interval; the protocol is
    the head. ValueError for no result.
    """
    if not results:
        raise ValueError(f"{path}: there are no results to draw; give at least one")
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
    intervals = any("low" in r.details for r in results)
    axes.set_title("phone accuracy, test frames" + (", with 95 % intervals" if intervals else ""), fontsize=11)
    axes.set_ylabel("frames right (%)")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


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
            [offset + aside for offset in x], y, (below, above), label=f"{layer}, {head}", capsize=3, linewidth=1.4,
            color=COLOURS[place[0] % len(COLOURS)], marker=MARKERS[place[1] % len(MARKERS)], markersize=5,
            linestyle=("-", "--", ":", "-.")[place[1] % 4],
        )  # fmt: skip
    axes.set_xlabel("offset: frames of 10 ms past the one nearest to the label")
    if len(offsets) <= 15:
        axes.set_xticks(sorted(offsets), [f"{offset:+d}" if offset else "0" for offset in sorted(offsets)])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))


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
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0), title="head")


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
