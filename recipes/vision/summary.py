"""Means over seeds of the runs that a sweep has done, with their spread in tables and 95 % intervals in pictures."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recipes import records
from recipes.results.cells import SPREAD, spread, tight
from recipes.results.intervals import Interval, interval
from recipes.terminal import table
from recipes.vision import axes, grids
from recipes.vision.compare import DONE
from recipes.vision.config import Config

FAILED = "failed.json"  # in a run's folder: why it has no results
NATS = "manipulation minus chance, held-out"
R2 = "R2 of actions, held-out"
# What a table shows of a summary: the heading of each metric, and its factor, 100 for per cent.
Columns = Mapping[str, tuple[str, float]]
COLUMNS: Columns = {
    "accuracy, linear": ("linear %", 100),
    "accuracy, logistic": ("logistic %", 100),
    "accuracy, knn": ("kNN %", 100),
    NATS: ("manip. - chance", 1),
    R2: ("actions R2", 1),
}


class Run(NamedTuple):
    """One setting with one seed, and its folder."""

    label: str
    config: Config
    folder: Path


@dataclasses.dataclass(frozen=True)
class Summary:
    """What the runs of one setting gave: each metric over seeds, why runs failed, and which are not done yet."""

    label: str
    overrides: Mapping[str, axes.Value]
    seeds: list[int]
    failed: dict[int, str]
    missing: list[int]
    metrics: dict[str, Interval]


def summarise(grid: grids.Grid, runs: Sequence[Run]) -> tuple[list[Summary], list[records.Record]]:
    """Every setting's means and intervals over the seeds that are done, and the records behind them.

    A record is named by its setting here, so that tables keep the settings of one method apart.
    """
    summaries, found = [], []
    for cell in grid.cells:
        done, values = [], {}  # type: tuple[list[records.Record], dict[str, list[float]]]
        failed: dict[int, str] = {}
        missing: list[int] = []
        for _, config, folder in (run for run in runs if run.label == cell.label):
            if (folder / DONE).is_file():
                done += [dataclasses.replace(record, method=cell.label) for record in records.read(folder / DONE)]
            elif (folder / FAILED).is_file():
                failed[config.seed] = json.loads((folder / FAILED).read_text())["reason"]
            else:
                missing.append(config.seed)
        for x in (x for record in done for x in record.results):
            values.setdefault(f"{x.metric}, {x.protocol}", []).append(x.value)
        metrics = {metric: interval(numbers) for metric, numbers in values.items()}
        seeds = [record.seed for record in done]
        summaries.append(Summary(cell.label, cell.overrides, seeds, failed, missing, metrics))
        found += done
    return summaries, found


def aggregate(grid: grids.Grid, summaries: Sequence[Summary]) -> dict[str, Any]:
    """The summaries with their origin, as plain values."""
    return {
        "axes": list(grid.axes),
        "command": records.command(),
        "commit": records.commit(),
        "hardware": records.hardware(),
        "interval": "mean over seeds, 95 % by Student's t",
        "cells": [dataclasses.asdict(summary) for summary in summaries],
    }


def show(summaries: Sequence[Summary], columns: Columns = COLUMNS) -> None:
    """A table of the settings: mean ± standard deviation over seeds, of those metrics that any of them has."""
    shown = {name: column for name, column in columns.items() if any(name in s.metrics for s in summaries)}
    rows = []
    for summary in summaries:
        notes = [f"{len(summary.failed)} failed"] if summary.failed else []
        notes += [f"{len(summary.missing)} to come"] if summary.missing else []
        cells = [_cell(summary.metrics.get(name), factor) for name, (_, factor) in shown.items()]
        rows.append([summary.label.replace(", ", ",\n"), ", ".join([str(len(summary.seeds)), *notes]), *cells])
    header = [heading for heading, _ in shown.values()]
    table(*tight(["", "seeds", *header], rows), title=SPREAD)


def _cell(x: Interval | None, factor: float) -> str:
    return "" if x is None else spread(x.values, factor, 1 if factor == 100 else 3)
