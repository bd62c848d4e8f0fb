"""The picture of what the released code's label cannot tell: two worlds, both labels' shifts, and what stays open."""

import math
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from sklearn.datasets import load_sample_image
from torch import Tensor

from recipes.vision import networks
from recipes.vision.mirror_worlds import (
    IMAGE_SIZE,
    Ambiguity,
    draw_pairs_of,
    exact_label,
    mirror_world,
    official_label,
)
from recipes.vision.presets import preset
from stec.core.actions import Bins
from stec.vision.affine import CropFlip, official_bins
from stec.vision.views import SIMCLR_CIFAR

X, X_PRIME, EXACT, OFFICIAL, GREY = "#1f6fb4", "#e07b00", "#18836b", "#b5235a", "#9a9a9a"


def a_photo() -> UInt8[Tensor, "1 3 h h"]:
    """A square of a photograph that comes with scikit-learn."""
    photo = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)
    left = (photo.shape[2] - photo.shape[1]) // 2
    return photo[None, :, :, left : left + photo.shape[1]].contiguous()


def an_example(image_size: tuple[int, int]) -> tuple[CropFlip, CropFlip]:
    """The first drawn pair that shows the point: unflipped, overlapping views whose official bins lie far apart."""
    to_x, to_x_prime = draw_pairs_of(SIMCLR_CIFAR, 4096, image_size, seed=0)
    official, exact = official_label(to_x, to_x_prime), exact_label(to_x, to_x_prime)
    mirrored = official_label(mirror_world(to_x), mirror_world(to_x_prime))
    bins = official_bins()
    far = (bins(official)[:, 2] - bins(mirrored)[:, 2]).abs() >= 3
    unclamped = (official[:, 2].abs() < 0.45) & (mirrored[:, 2].abs() < 0.45)
    areas = torch.stack([draw.height * draw.width / math.prod(image_size) for draw in (to_x, to_x_prime)])
    middling = ((areas > 0.12) & (areas < 0.3)).all(dim=0)
    moved = ((exact[:, 2].abs() > 0.5) & (exact[:, 2:].abs() < 0.9).all(dim=1)) & ~to_x.flip & ~to_x_prime.flip
    i = int((far & unclamped & middling & moved).int().argmax())
    return _one(to_x, i), _one(to_x_prime, i)


def _one(draw: CropFlip, i: int) -> CropFlip:
    """The i-th crop and flip, as a batch of one."""
    part = slice(i, i + 1)
    crop = draw.top[part], draw.left[part], draw.height[part], draw.width[part]
    return CropFlip(*crop, draw.flip[part], draw.image_size)


def _corners(matrix: Float[Tensor, "3 3"], size: int) -> list[tuple[float, float]]:
    """The view's corners in pixels of the image, the view's own top left first."""
    corners = torch.tensor([[-1, -1, 1.0], [1, -1, 1.0], [1, 1, 1.0], [-1, 1, 1.0]], dtype=matrix.dtype)
    points = ((corners @ matrix.T)[:, :2] + 1) / 2 * size
    return [(x, y) for x, y in points.tolist()]


def _crop(axes: Axes, draw: CropFlip, *, colour: str, name: str) -> None:
    """A crop's frame on the image, with a dot at the view's own top left corner, which a flip moves to the right."""
    corners = _corners(draw.matrix(torch.float64)[0], draw.image_size[1])
    axes.add_patch(Polygon(corners, closed=True, fill=False, edgecolor=colour, linewidth=2.2))
    axes.plot(*corners[0], marker="o", markersize=7, color=colour, markeredgecolor="white", clip_on=False)
    left = min(x for x, _ in corners)
    bottom = max(y for _, y in corners)
    box = {"facecolor": colour, "edgecolor": "none", "pad": 1.5}
    axes.text(left + 5, bottom - 7, name, color="white", fontsize=10, fontweight="bold", va="bottom", bbox=box)


def _image(axes: Axes, image: Tensor, *, colour: str = "none", title: str = "") -> None:
    axes.imshow(image.permute(1, 2, 0).numpy(), extent=(0, image.shape[2], image.shape[1], 0))
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=10.5, color=colour if colour != "none" else "black", pad=4, loc="left")
    for spine in axes.spines.values():
        spine.set(edgecolor=colour, linewidth=2.2 if colour != "none" else 0)


def _strip(axes: Axes, value: float, bin_: int, *, k: int, colour: str, name: str) -> None:
    """The K bins of one label as cells, its own one filled, and its value."""
    for i in range(k):
        face = colour if i == bin_ else "#f1f1f1"
        axes.add_patch(Rectangle((i, 0), 0.9, 1, facecolor=face, edgecolor="#bdbdbd", linewidth=0.6))
    axes.text(bin_ + 0.45, 0.46, str(bin_), color="white", ha="center", va="center", fontsize=9, fontweight="bold")
    axes.text(0, 1.18, f"{name}  ${value:+.2f}$", color=colour, fontsize=10.5, va="bottom")
    axes.set(xlim=(0, k), ylim=(0, 1))
    axes.axis("off")


def _worlds(figure: Figure, exact_bins: Bins) -> None:
    """Left: two worlds, one pair of views."""
    photo = a_photo()
    size = photo.shape[3]
    draws = an_example((photo.shape[2], size))
    mirrored = mirror_world(draws[0]), mirror_world(draws[1])
    rows = ((photo, draws, "a world, no view flipped"), (photo.flip(3), mirrored, "its mirror, both views flipped"))
    width, tall = 1 / 16, 1 / 6  # an inch
    for row, (image, (to_x, to_x_prime), title) in enumerate(rows):
        bottom = (2.98, 0.3)[row] * tall
        whole = figure.add_axes((0.35 * width, bottom, 2.3 * width, 2.3 * tall))
        _image(whole, image[0], title=title)
        _crop(whole, to_x, colour=X, name="x")
        _crop(whole, to_x_prime, colour=X_PRIME, name="x'")
        for column, (draw, colour, name) in enumerate(((to_x, X, "x"), (to_x_prime, X_PRIME, "x'"))):
            axes = figure.add_axes(((2.95 + 1.52 * column) * width, bottom + 0.48 * tall, 1.36 * width, 1.36 * tall))
            _image(axes, draw.apply(image, 128)[0].clamp(0, 1), colour=colour, title=f"view {name}")
        exact, official = exact_label(to_x, to_x_prime), official_label(to_x, to_x_prime)
        labels = (
            ("exact $t_x$", exact[0, 2], exact_bins(exact.float())[0, 2], EXACT),
            ("official $t_x$", official[0, 2], official_bins()(official)[0, 2], OFFICIAL),
        )
        for line, (name, value, bin_, colour) in enumerate(labels):
            place = (6.1 * width, bottom + (1.3 - 0.78 * line) * tall, 1.4 * width, 0.27 * tall)
            _strip(figure.add_axes(place), float(value), int(bin_), k=6, colour=colour, name=name)
    title = "Two worlds, the same two views, two official labels"
    figure.text(0.35 * width, 5.62 * tall, title, fontsize=13, weight="bold")
    figure.text(2.95 * width, 0.42 * tall, "dot: the view's own top left corner", fontsize=9, color="#555555")


def _scatter(figure: Figure, found: Ambiguity) -> None:
    """Middle: the released label's shifts against the exact ones."""
    for row, (name, shift) in enumerate((("t_x", found.t_x), ("t_y", found.t_y))):
        axes = figure.add_axes((8.55 / 16, (3.2, 0.72)[row] / 6, 3.0 / 16, 2.05 / 6))
        axes.hexbin(
            found.exact[:, row].numpy(),
            found.official[:, row].numpy(),
            gridsize=(44, 26),
            extent=(-2, 2, -1, 1),
            cmap=("PuRd", "GnBu")[row],
            bins="log",
            mincnt=1,
            linewidths=0.1,
        )
        axes.set(xlim=(-2, 2), ylim=(-1, 1), ylabel=f"official ${name}$")
        axes.set_xlabel(f"exact ${name}$", labelpad=1)
        axes.text(-1.9, 0.93, f"r = {shift.correlation:z.2f}", fontsize=12, va="top", weight="bold")
        axes.spines[["top", "right"]].set_visible(False)
    figure.text(8.1 / 16, 5.62 / 6, f"{len(found.exact):,} simulated pairs", fontsize=13, weight="bold")


def _bars(figure: Figure, found: Ambiguity, exact_chance: float) -> None:
    """Right: how much of the bin of t_x stays open to whom. The floor of the exact label is 0 by the same argument."""
    axes = figure.add_axes((12.35 / 16, 0.72 / 6, 3.45 / 16, 3.75 / 6))
    bars = (
        ("blind\nguess", found.t_x.chance, GREY),
        ("exact\nknown", found.t_x.lookup, "#d88aa9"),
        ("mirror\nfloor", found.t_x.floor, OFFICIAL),
        ("blind\nguess", exact_chance, GREY),
        ("mirror\nfloor", 0.0, EXACT),
    )
    at = (0.0, 1.0, 2.0, 3.5, 4.5)
    for x, (_, height, colour) in zip(at, bars):
        axes.bar(x, max(height, 0.012), color=colour, width=0.78)
        axes.text(x, height + 0.03, f"{height:.2f}", ha="center", fontsize=10.5, color="#222222")
    axes.set_xticks(at, [name for name, _, _ in bars], fontsize=9)
    axes.tick_params(axis="x", length=0)
    axes.set(ylabel="nats of its bin left open", ylim=(0, 2.05), xlim=(-0.55, 5.05))
    axes.text(1.0, 1.98, "official $t_x$", color=OFFICIAL, ha="center", fontsize=12, weight="bold")
    axes.text(4.0, 1.98, "exact $t_x$", color=EXACT, ha="center", fontsize=12, weight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    figure.text(11.85 / 16, 5.62 / 6, "What the pixels leave open", fontsize=13, weight="bold")
    t_x = found.t_x
    lines = (
        "The mirror world moves the official $t_x$ to another bin",
        f"in {t_x.changed:.0%} of pairs. Where mirrored scenes are as likely,",
        f"$H \\geq {t_x.changed:.3f}\\,\\ln 2 = {t_x.floor:.3f}$ nats: right in {t_x.ceiling:.0%} at most.",
    )
    figure.text(11.85 / 16, 5.42 / 6, "\n".join(lines), fontsize=10, va="top", linespacing=1.35)


def draw_figure(found: Ambiguity, path: Path) -> None:
    """Write the picture (1600 x 600 pixels) as PNG."""
    config = preset("cifar10-resnet18-stec")
    exact_bins = networks.action_bins(config, IMAGE_SIZE)
    figure = Figure(figsize=(16, 6), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    _worlds(figure, exact_bins)
    _scatter(figure, found)
    _bars(figure, found, float(networks.chance(config, exact_bins, IMAGE_SIZE).nll[2]))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
