"""What the released code's label cannot tell from the pixels: an argument by mirror worlds, its numbers, a picture.

Mirror an image, mirror the position of each crop and toggle each flip: every view keeps its pixels, so every pair of
views keeps its action, and so does the label `exact`. The label `official` takes another t_x. Where mirrored scenes
are as likely as the scenes themselves, the pixels cannot say which of the two labels is meant.

    python -m recipes.vision.ambiguity --out docs/official-label.png
"""

import dataclasses
import math
from pathlib import Path

import torch
import tyro
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from sklearn.datasets import load_sample_image
from torch import Tensor

from recipes.terminal import command
from recipes.vision import networks
from recipes.vision.presets import preset
from stec.core.actions import Bins, chance_level
from stec.vision.affine import Affine, CropFlip, exact_action, official_action, official_bins
from stec.vision.views import SIMCLR_CIFAR, Augmentation

IMAGE_SIZE = (32, 32)  # the law of the crops, as for CIFAR
CELLS = 16  # along each axis of the lookup table: enough cells, and enough pairs in each
X, X_PRIME, EXACT, OFFICIAL, GREY = "#1f6fb4", "#e07b00", "#18836b", "#b5235a", "#9a9a9a"


def mirror_world(draw: CropFlip) -> CropFlip:
    """The draw that makes the same views of the mirrored images: positions mirrored, flips toggled.

    >>> crop = [torch.tensor([value]) for value in (4, 2, 8, 10)]
    >>> mirror_world(CropFlip(*crop, torch.tensor([False]), (32, 32)))[1:5:3]
    (tensor([20]), tensor([True]))
    """
    return draw._replace(left=draw.image_size[1] - draw.left - draw.width, flip=~draw.flip)


def draw_pairs_of(law: Augmentation, n: int, image_size: tuple[int, int], seed: int) -> tuple[CropFlip, CropFlip]:
    """n pairs of crops and flips of images of (H, W) pixels."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (law.draw_crops(n, image_size, generator=generator) for _ in range(2))
    return first, second


def official_label(to_x: CropFlip, to_x_prime: CropFlip) -> Float[Tensor, "b 6"]:
    """The released code's label of each pair: l00, l01, t_x, l10, l11, t_y (y up)."""
    return official_action(to_x.matrix(torch.float64), to_x_prime.matrix(torch.float64)).flatten(1)


def exact_label(to_x: CropFlip, to_x_prime: CropFlip) -> Float[Tensor, "b 4"]:
    """The egocentric action of each pair: scale_x, scale_y, shift_x, shift_y (y down)."""
    action = exact_action(to_x.matrix(torch.float64), to_x_prime.matrix(torch.float64))
    return Affine().flatten(action)


def lookup_nll(scale: Float[Tensor, " n"], shift: Float[Tensor, " n"], bins: Int[Tensor, " n"], k: int) -> float:
    """Nats that a table of CELLS x CELLS cells of the exact action's scale and shift along one axis leaves open.

    The table is counted on the first half of the pairs, with a tenth of a pair added to each entry, and scored on the
    second half. So it says what a reader of the exact action can reach, not what it cannot pass.
    """
    half = len(bins) // 2
    cell = torch.zeros_like(bins)
    for values in (scale, shift):
        fractions = torch.arange(1, CELLS, dtype=values.dtype) / CELLS
        cell = cell * CELLS + torch.bucketize(values.contiguous(), torch.quantile(values[:half], fractions))
    counts = torch.full((CELLS**2, k), 0.1, dtype=torch.float64)
    counts.index_put_((cell[:half], bins[:half]), torch.ones(half, dtype=torch.float64), accumulate=True)
    log_q = (counts / counts.sum(dim=1, keepdim=True)).log()
    return -float(log_q[cell[half:], bins[half:]].mean())


@dataclasses.dataclass(frozen=True)
class Shift:
    """One shift of the released label beside the exact one, over simulated pairs; NLLs in nats."""

    correlation: float  # with the exact shift, both with y up
    changed: float  # share of pairs whose bin the mirror world changes
    chance: float  # entropy of the bin
    lookup: float  # left open by a table of the exact action (`lookup_nll`)

    @property
    def floor(self) -> float:
        """No reader of the pixels gets below this, where mirrored scenes are equally likely: changed * ln 2.

        Of the two worlds that made a pair each is then as likely as the other, and where their bins differ that is one
        bit: H(bin | pixels) >= H(bin | which two worlds) = changed * ln 2.
        """
        return self.changed * math.log(2)

    @property
    def ceiling(self) -> float:
        """The accuracy that goes with it: one of two guesses is right where the bin changes."""
        return 1 - self.changed / 2


@dataclasses.dataclass(frozen=True)
class Ambiguity:
    """The numbers behind the picture."""

    t_x: Shift
    t_y: Shift
    exact_moves: float  # the largest change of any component of the exact action in the mirror world
    still: float  # mean |t_x| of the released label where both views are the same
    still_outside: float  # share of such pairs outside the two central bins
    apart: float  # share of pairs whose views do not overlap, so that no label can be read off them
    official: Float[Tensor, "n 2"]  # t_x, t_y (y up)
    exact: Float[Tensor, "n 2"]  # as above


def measure(pairs: int, *, seed: int = 0) -> Ambiguity:
    """Simulate pairs of views under the law for CIFAR and compare both labels in the world and in its mirror."""
    to_x, to_x_prime = draw_pairs_of(SIMCLR_CIFAR, pairs, IMAGE_SIZE, seed)
    mirrored = mirror_world(to_x), mirror_world(to_x_prime)
    bins = official_bins()
    official, exact = official_label(to_x, to_x_prime).double(), exact_label(to_x, to_x_prime)
    found = bins(official)
    changed = (found != bins(official_label(*mirrored))).double().mean(dim=0)
    chance = chance_level(found, bins.bins)
    exact_shift = exact[:, 2:] * exact.new_tensor([1.0, -1.0])  # y up

    def shift(axis: int) -> Shift:
        column = (2, 5)[axis]
        both = torch.stack((official[:, column], exact_shift[:, axis]))
        return Shift(
            correlation=float(torch.corrcoef(both)[0, 1]),
            changed=float(changed[column]),
            chance=float(chance.nll[column]),
            lookup=lookup_nll(exact[:, axis], exact[:, 2 + axis], found[:, column], bins.bins),
        )

    same = official_label(to_x, to_x)
    at = bins(same)[:, 2]
    return Ambiguity(
        t_x=shift(0),
        t_y=shift(1),
        exact_moves=float((exact - exact_label(*mirrored)).abs().max()),
        still=float(same[:, 2].abs().mean()),
        still_outside=float(((at < 2) | (at > 3)).double().mean()),
        apart=float((exact[:, 2:].abs() > 1 + exact[:, :2].abs() - 1e-9).any(dim=1).double().mean()),
        official=official[:, [2, 5]],
        exact=exact_shift,
    )


def chance_table() -> list[str]:
    """The chance levels of every label under the CIFAR presets, as `networks.chance` computes them."""
    lines = []
    base = preset("cifar10-resnet18-stec")
    for name, copy in networks.COPIES.items():
        config = dataclasses.replace(base, action=name)  # type: ignore[arg-type]
        level = networks.chance(config, networks.action_bins(config, IMAGE_SIZE), IMAGE_SIZE)
        lines.append(f"{name:<12}nll {level.nll.mean():.4f}  accuracy {level.accuracy.mean():.3f}")
        rows = zip(copy.components, level.nll.tolist(), level.accuracy.tolist())
        lines += [f"  {component:<10}nll {nll:.4f}  accuracy {accuracy:.3f}" for component, nll, accuracy in rows]
    return lines


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


def _rounded(value: float) -> str:
    """Two decimals, and no sign on a zero."""
    return f"{round(value, 2) + 0.0:.2f}"


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
        axes.text(-1.9, 0.93, f"r = {_rounded(shift.correlation)}", fontsize=12, va="top", weight="bold")
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


def report(found: Ambiguity) -> list[str]:
    """The numbers in words."""
    lines = [f"{len(found.exact):,} pairs of views, the law for CIFAR, K = 6, NLLs in nats"]
    for name, shift in (("t_x", found.t_x), ("t_y", found.t_y)):
        lines += [
            f"official {name} and exact {name}: correlation {_rounded(shift.correlation)}",
            f"  bin changed by the mirror world: {shift.changed:.1%} of pairs",
            f"  so NLL at least {shift.floor:.3f}, accuracy at most {shift.ceiling:.1%}; chance {shift.chance:.3f}",
            f"  a table of the exact action leaves {shift.lookup:.3f}",
        ]
    lines.append(f"exact action: largest change by the mirror world {found.exact_moves:.1g}")
    lines.append(
        f"official label of two equal views: mean |t_x| {found.still:.2f}, "
        f"outside the two central bins {found.still_outside:.0%}"
    )
    lines.append(f"views without overlap: {found.apart:.1%} of pairs")
    return lines


def main(out: Path, *, pairs: int = 100_000, seed: int = 0) -> None:
    """Draw what the released code's label cannot tell from the pixels, and print the numbers and chance levels.

    Args:
        out: where the picture goes (PNG).
        pairs: simulated pairs of views.
        seed: of the simulation.
    """
    found = measure(pairs, seed=seed)
    draw_figure(found, out)
    print("\n".join(report(found)))
    print("\nchance levels, CIFAR presets, 100,000 pairs (mean over components, then each)")
    print("\n".join(chance_table()))


if __name__ == "__main__":
    command(lambda: tyro.cli(main))
