"""A picture of the confusions of frames: how the frames of each true phone are classified."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from recipes.audio.utterance_picture import check_names


def confusions(truth: Int[Tensor, " n"], predicted: Int[Tensor, " n"], *, classes: int) -> Float[np.ndarray, "c c"]:
    """How the frames of each true class (row) are classified, as shares; NaN in rows of classes without a frame.

    >>> import torch
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
    check_names(names, classes, title)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
