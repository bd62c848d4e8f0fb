"""The picture of `recipes.vision.pairs`: view pairs, the action between them, and the bins that a model reads off."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Polygon
from matplotlib.patheffects import withStroke
from PIL import Image
from torch import Tensor

from stec.core.actions import ViewPair
from stec.vision.affine import Affine

FRAME, TRUE, GUESS, FALSE, X_COLOUR, GREY = "#e07b00", "#18836b", "#c23b50", "#b8c4d6", "#1f6fb4", "#7a7a7a"
CORNERS = ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))  # a view's own top left first
ROW, STRIP, TOP = 1.72, 1.55, 0.95  # inches: a row and its images, the bars of one component, the headings
LEAST = 0.4  # belief: all bars have the scale on which the largest fits, or this


def frame_corners(action: Float[Tensor, " 4"]) -> list[tuple[float, float]]:
    """Where the corners of x' lie in the coordinates of x, the own top left of x' first: u -> scale u + shift.

    >>> frame_corners(torch.tensor([-0.5, 0.5, 0.25, 0.0]))[:2]
    [(0.75, -0.5), (-0.25, -0.5)]
    """
    corners = torch.tensor(CORNERS, device=action.device) * action[:2] + action[2:]
    return [(x, y) for x, y in corners.tolist()]


def draw_pairs(
    images: UInt8[Tensor, "b 3 height width"],
    pair: ViewPair,
    *,
    beliefs: Float[Tensor, "b d k"],
    truth: Int[Tensor, "b d"],
    to_x: Float[Tensor, "b 3 3"] | None,
    path: Path,
    components: Sequence[str] | None = None,
) -> Figure:
    """Write a PNG with one row for each pair: the image, x with the frame of x' on it, x', and a strip of K bins for
    each component of the action.

    `pair` holds the views of `images` and their exact egocentric actions (scale_x, scale_y, shift_x, shift_y), which
    map coordinates of x' to coordinates of x. A dot marks the own top left corner of x', the arrow leads from the
    centre of x to that of x'. With the poses `to_x` the image goes on around x, faintly. `beliefs` are the model's
    probabilities over bins, such as `BinnedActions.logits(...).softmax(2)`; `truth` are the bins of the true action,
    as the model was told it: `components` are their names, those of the exact action by default. All on the CPU.
    ValueError where the shapes do not fit together.
    """
    b, k = len(images), beliefs.shape[-1]
    exact = Affine().components
    components = exact if components is None else components
    d = len(components)
    if not b or pair.action.shape != (b, len(exact)):
        raise ValueError(
            f"{b} images with actions {tuple(pair.action.shape)}; need at least one image, and for each the components "
            f"{', '.join(exact)} of the exact action (draw the pairs with the copy `stec.vision.views.EXACT`)"
        )
    if beliefs.shape != (b, d, k) or truth.shape != (b, d):
        raise ValueError(
            f"beliefs {tuple(beliefs.shape)} and truth {tuple(truth.shape)} do not fit {b} actions of {d} components; "
            f"need (b, {d}, k) and (b, {d})"
        )
    columns = [("image", ROW), ("x, and the frame of x' on it", 1.5 * ROW), ("x'", ROW)]
    columns += [(name, STRIP) for name in components]
    top = max(LEAST, float(beliefs.max()))  # of all: the same per cent are the same height
    wide, tall = sum(width for _, width in columns) + 0.5, b * ROW + TOP
    figure = Figure(figsize=(wide, tall), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    for row in range(b):
        left, bottom = 0.3, (b - 1 - row) * ROW + 0.3
        for column, (title, width) in enumerate(columns):
            pad = 0.1 if column < 3 else 0.16
            place = (left / wide, bottom / tall, (width - 2 * pad) / wide, (ROW - 0.26) / tall)
            axes = figure.add_axes((place[0] + pad / wide, *place[1:]))
            left += width
            if column == 0:
                _show(axes, images[row] / 255)
            elif column == 1:
                _frame(axes, images[row], pair, row, None if to_x is None else to_x[row])
            elif column == 2:
                _show(axes, pair.x_prime[row], edge=FRAME)
                axes.plot(-1, -1, "o", markersize=7, color=FRAME, markeredgecolor="white", clip_on=False, zorder=9)
            else:
                c = column - 3
                _bars(axes, beliefs[row, c], int(truth[row, c]), valid=bool(pair.valid[row]), top=top)
            if row == 0:
                axes.set_title(title, fontsize=10, pad=8)
    legend = (
        (0.3, GREY, "arrow: the action from x to x'    dot: the own top left corner of x'"),
        (0.3 + 3.5 * ROW, GREY, f"bars: beliefs over {k} bins, in per cent (dotted: 1/{k});"),
        (0.3 + 3.5 * ROW + 3.35, TRUE, "green: the true bin"),
        (0.3 + 3.5 * ROW + 4.72, GUESS, "red: a wrong guess"),
    )
    for left, colour, words in legend:
        figure.text(left / wide, 1 - 0.14 / tall, words, fontsize=9.5, color=colour, va="top")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").save(path, optimize=True)  # photographs need more than 256 colours
    return figure


def _show(axes: Axes, image: Float[Tensor, "3 h w"], *, edge: str = "none") -> None:
    """An image over [-1, 1], y down."""
    axes.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy(), extent=(-1, 1, 1, -1), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(edgecolor=edge, linewidth=2 if edge != "none" else 0)


def _frame(
    axes: Axes, image: UInt8[Tensor, "3 height width"], pair: ViewPair, row: int, to_x: Float[Tensor, "3 3"] | None
) -> None:
    """x, and on it, or beside it, the frame of x' and the arrow to its centre."""
    action = pair.action[row]
    corners = frame_corners(action)
    if to_x is not None:
        scale_x, scale_y, shift_x, shift_y = Affine().flatten(Affine().inverse(to_x[None].double()))[0].tolist()
        extent = (shift_x - scale_x, shift_x + scale_x, shift_y + scale_y, shift_y - scale_y)
        axes.imshow(image.permute(1, 2, 0).numpy(), extent=extent, alpha=0.35, interpolation="nearest")
    _show(axes, pair.x[row])
    axes.add_patch(Polygon(CORNERS, closed=True, fill=False, edgecolor=X_COLOUR, linewidth=1.6))
    axes.add_patch(Polygon(corners, closed=True, fill=False, edgecolor=FRAME, linewidth=2.2))
    axes.plot(*corners[0], "o", markersize=7, color=FRAME, markeredgecolor="white", zorder=7)
    centre = (float(action[2]), float(action[3]))
    arrow = FancyArrowPatch(
        (0, 0), centre, arrowstyle="-|>", color=FRAME, linewidth=1.8, mutation_scale=11, shrinkA=0, shrinkB=0, zorder=6
    )
    arrow.set_path_effects([withStroke(linewidth=4.5, foreground="white")])
    axes.add_patch(arrow)
    # square pixels in a wide box: what must be seen decides the scale
    reach_y = 0.08 + max(1.0, *(abs(y) for _, y in corners))
    reach_x = 0.08 + max(1.0, *(abs(x) for x, _ in corners))
    box = axes.get_position(original=True)
    width, height = axes.get_figure().get_size_inches()  # type: ignore[union-attr]
    shape = box.width * width / (box.height * height)
    reach = max(reach_y, reach_x / shape)
    axes.set(xlim=(-reach * shape, reach * shape), ylim=(reach, -reach), facecolor="#f3f3f3")
    if action[0] < 0:
        where = {"x": 0.03, "y": 0.5, "rotation": 90, "va": "center", "transform": axes.transAxes}
        axes.text(s="mirrored", fontsize=9, color=FRAME, weight="bold", **where)  # type: ignore[arg-type]


def _bars(axes: Axes, belief: Float[Tensor, " k"], truth: int, *, valid: bool, top: float) -> None:
    """The beliefs over the bins of one component: the true bin, and the largest belief where that is another."""
    k, guess = len(belief), int(belief.argmax())
    colours = [FALSE] * k
    if valid:
        colours[guess], colours[truth] = GUESS, TRUE
        for i in {guess, truth}:
            place = (i, float(belief[i]) + 0.02 * top)
            words = {"fontsize": 8.5, "color": colours[i], "ha": "center", "va": "bottom"}
            number = axes.text(*place, f"{100 * float(belief[i]):.0f}", **words)  # type: ignore[arg-type]
            number.set_path_effects([withStroke(linewidth=2, foreground="white")])  # the dotted line may cross it
        axes.plot(truth, -0.06 * top, marker="^", markersize=6, color=TRUE, clip_on=False)
    else:
        axes.text(0.5, 0.98, "no label", transform=axes.transAxes, fontsize=8.5, ha="center", va="top", color=GREY)
    axes.bar(range(k), belief.tolist(), width=0.86, color=colours)
    axes.axhline(1 / k, color=GREY, linewidth=0.9, linestyle=":")
    axes.set(xlim=(-0.55, k - 0.45), ylim=(0, 1.15 * top), xticks=[], yticks=[])
    axes.spines[["top", "right", "left"]].set_visible(False)
