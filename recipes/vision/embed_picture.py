"""The picture of `recipes.vision.embed`: a row of four panels for each encoder."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from PIL import Image
from torch import Tensor

from stec.vision.analysis import CentroidDistances, centroids

TITLES = (
    "plain ● and augmented ✕,\nby magnitude of augmentation",
    "plain ● and augmented ✕,\nby class",
    "plain images alone,\nby class",
    "centroids of each class, enlarged,\nplain ○ to augmented ✕",
)
PANEL, STEP, LEFT, BELOW, ABOVE = 2.6, 3.0, 0.4, 0.9, 0.5  # inches; STEP from row to row
LEGEND = 20  # classes that a legend can name
PLAIN = "#c8c8c8"  # images that are not augmented, where colours tell by how much


class Row(NamedTuple):
    """An encoder's name, the places of n plain and then n augmented images, and how far their centroids lie apart."""

    name: str
    places: Float[Tensor, "2*n 2"]
    labels: Int[Tensor, " 2*n"]
    in_features: CentroidDistances
    in_embedding: CentroidDistances


def colours(labels: Int[Tensor, " n"], classes: int) -> Float[Tensor, "n 4"]:
    """A colour for each label: ten or twenty that differ, or more along a circle."""
    if classes <= LEGEND:
        shades = colormaps["tab10" if classes <= 10 else "tab20"](labels.numpy())  # whole numbers count colours
    else:
        shades = colormaps["hsv"]((labels / classes).numpy())
    return torch.from_numpy(shades).float()


def draw(rows: Sequence[Row], magnitude: Float[Tensor, " n"], classes: Sequence[str], *, path: Path) -> Figure:
    """Write a PNG of 256 colours; `magnitude` is that of the augmented views, plain images are grey beside them."""
    wide, tall = LEFT + 4 * PANEL + 0.1, ABOVE + (len(rows) - 1) * STEP + PANEL + BELOW
    figure = Figure(figsize=(wide, tall), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    for i, row in enumerate(rows):
        bottom = BELOW + (len(rows) - 1 - i) * STEP
        panels = [
            figure.add_axes(
                ((LEFT + k * PANEL + 0.05) / wide, (bottom + 0.05) / tall, (PANEL - 0.1) / wide, (PANEL - 0.1) / tall)
            )
            for k in range(4)
        ]
        _row(panels, row, magnitude, len(classes))
        if i == 0:
            for panel, title in zip(panels, TITLES):
                panel.set_title(title, fontsize=10)
        figure.text(0.17 / wide, (bottom + PANEL / 2) / tall, row.name, rotation=90, va="center", fontsize=11)
    bar = figure.add_axes(((LEFT + 0.3) / wide, (BELOW - 0.3) / tall, (PANEL - 0.6) / wide, 0.12 / tall))
    figure.colorbar(_magnitudes(), cax=bar, orientation="horizontal").ax.tick_params(labelsize=8)
    bar.set_xlabel("1 - area of the crop / area of the image", fontsize=8)
    if len(classes) <= LEGEND:
        of = colours(torch.arange(len(classes)), len(classes)).tolist()
        marks = [Line2D([], [], marker="o", ls="", color=colour, label=name) for colour, name in zip(of, classes)]
        figure.legend(
            handles=marks,
            loc="lower left",
            bbox_to_anchor=((LEFT + PANEL) / wide, 0.02),
            ncols=min(5, len(classes)) if len(classes) <= 10 else 7,
            fontsize=9,
            frameon=False,
        )
    _save(figure, path)
    return figure


def _magnitudes() -> ScalarMappable:
    return ScalarMappable(Normalize(0.0, 1.0), colormaps["viridis"])


def _row(panels: Sequence[Axes], row: Row, magnitude: Float[Tensor, " n"], classes: int) -> None:
    """The four panels of one encoder."""
    n = len(magnitude)
    of_class = colours(row.labels, classes)
    shades = torch.tensor([to_rgba(PLAIN)] * n + _magnitudes().to_rgba(magnitude.numpy()).tolist())
    # In a fixed random order, so that neither kind covers the other.
    order = torch.randperm(2 * n, generator=torch.Generator().manual_seed(0))
    both, crossed = row.places[order], order >= n
    size = min(24.0, max(2.4, 2000 / n))  # square points: the fewer images, the larger
    _cloud(panels[0], both, shades[order], crossed=crossed, size=size)
    _cloud(panels[1], both, of_class[order], crossed=crossed, size=size)
    _cloud(panels[2], row.places[:n], of_class[:n], crossed=torch.zeros(n, dtype=torch.bool), size=size)
    still, moved = (centroids(p, row.labels[:n]) for p in row.places.chunk(2))
    tints = colours(still.classes, classes).tolist()
    for (x, y), (to_x, to_y), tint in zip(still.points.tolist(), moved.points.tolist(), tints):
        panels[3].plot([x, to_x], [y, to_y], color=tint, lw=1.2)
        panels[3].plot(x, y, "o", color=tint, ms=6, mfc="white", mew=1.6)
        panels[3].plot(to_x, to_y, "x", color=tint, ms=6, mew=1.6)
    for panel in panels[:3]:
        _square(panel, row.places)
    _square(panels[3], torch.cat((still.points, moved.points)))
    here, there = row.in_embedding.ratio, row.in_features.ratio
    panels[3].set_xlabel(f"distance over that between classes:\n{here:.2f} here, {there:.2f} in features", fontsize=8)


def _cloud(
    panel: Axes, places: Float[Tensor, "n 2"], shades: Float[Tensor, "n 4"], *, crossed: Bool[Tensor, " n"], size: float
) -> None:
    """Points of plain images, crosses of augmented ones."""
    x, y = places.T.numpy()
    sizes, widths = size * (1 + 0.6 * crossed), 0.35 * size**0.5 * crossed  # thin crosses, as dark as the points
    cloud = panel.scatter(x, y, c=shades.numpy(), s=sizes.numpy(), linewidths=widths.tolist())
    marks = [MarkerStyle(mark) for mark in ("o", "x")]
    paths = [mark.get_path().transformed(mark.get_transform()) for mark in marks]
    cloud.set_paths([paths[int(cross)] for cross in crossed])  # in one collection, for the order


def _square(panel: Axes, shown: Float[Tensor, "n 2"]) -> None:
    """Limits around what is shown, of one scale along both axes: distances are to be compared by eye."""
    low, high = shown.amin(dim=0), shown.amax(dim=0)
    centre, half = (low + high) / 2, 0.55 * float((high - low).max())
    panel.set_xlim(float(centre[0]) - half, float(centre[0]) + half)
    panel.set_ylim(float(centre[1]) - half, float(centre[1]) + half)
    panel.set_xticks([])
    panel.set_yticks([])


def _save(figure: Figure, path: Path) -> None:
    """A PNG of 256 colours: a third of the size of millions, and no difference to the eye."""
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(drawn).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
