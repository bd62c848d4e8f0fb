"""A picture of one utterance with what was read in it: waveform, spectrogram, and its phones, true and predicted."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

RATE, HOP, LABEL_CENTRE = 16_000, 160, 200.0
LONGEST = 4.0  # seconds of an utterance: more would leave no room for names
SIZES = (9.0, 7.0)  # points: of a name, and of one that is too wide for its stretch otherwise
WINDOW, BINS, FLOOR = 400, 512, -80  # of the spectrogram: samples, length of the transform, dB below its peak
WAVE, TRUE, RIGHT, WRONG, MARK = "#0072B2", "#E4E4E4", "#CFE5F4", "#FBD9A0", "#D55E00"


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
    check_names(names, 1 + int(torch.cat((labels, predicted)).max()), title)
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
    wave.plot(np.arange(len(shown)) / RATE, shown.numpy(), color=WAVE, linewidth=0.4)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


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


def check_names(names: Sequence[str], phones: int, title: str) -> None:
    """ValueError where there are names, but too few."""
    if names and len(names) < phones:
        raise ValueError(f"{title}: {len(names)} names for {phones} phones; name each, or none")
