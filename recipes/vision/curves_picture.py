"""A picture of numbers over training, of several arms."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from recipes.vision.plots import ALONE, COLOURS, figure_of, save


class Curve(NamedTuple):
    """Numbers over training, of one arm: a row of values at `epochs` for each seed, by the label of their panel."""

    arm: str
    manipulation: bool  # with L_manip, or without
    epochs: Sequence[int]
    seeds: dict[str, list[list[float]]]


def draw_curves(curves: Sequence[Curve], path: Path, *, title: str) -> Figure:
    """Write a PNG with a panel for each number: its mean over training, and single seeds as thin lines.

    A colour for each arm; solid with L_manip, dashed without. Panels stand in rows of three.
    """
    names = list(curves[0].seeds)
    figure = figure_of(len(names), rows=math.ceil(len(names) / 3), tall=3.0, wide=3.7)
    arms = list(dict.fromkeys(curve.arm for curve in curves))
    colours = dict(zip(arms, COLOURS))
    for panel, name in zip(figure.axes, names):
        for curve in curves:
            colour, line = colours[curve.arm], "-" if curve.manipulation else "--"
            rows = curve.seeds[name]
            mean = [sum(column) / len(column) for column in zip(*rows)]
            panel.plot(curve.epochs, mean, linewidth=1.7, color=colour, linestyle=line)
            for row in rows if len(rows) > 1 else []:
                panel.plot(curve.epochs, row, linewidth=0.7, alpha=0.45, color=colour, linestyle=line)
        panel.set_xlabel("epoch")
        panel.set_title(name, fontsize=10)
        panel.set_ylim(0, 1.05 * max(value for curve in curves for row in curve.seeds[name] for value in row) or None)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = [Line2D([], [], color=colours[arm], linewidth=2, label=arm) for arm in arms]
    handles.append(Line2D([], [], color=ALONE, linestyle="-", label="with L_manip"))
    handles.append(Line2D([], [], color=ALONE, linestyle="--", label="without L_manip"))
    free = figure.axes[len(names) :]
    for panel in free:
        panel.axis("off")
    if free:
        free[0].legend(handles=handles, loc="center left", frameon=False, fontsize=10)
    else:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=10)
    return save(figure, path)
