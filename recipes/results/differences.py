"""By how much methods differ from the first one, seed by seed."""

from collections.abc import Sequence

from recipes import records
from recipes.results.cells import BASELINES, by_row
from recipes.results.intervals import interval

PROTOCOLS = {"linear": "linear", "logistic": "logistic", "knn": "kNN"}


def paired(
    found: Sequence[records.Record], *, baselines: Sequence[str] = BASELINES
) -> tuple[str, list[str], list[list[str]]]:
    """Title, header and rows of a table: accuracy less that of the first method, in points, a row for each other one.

    Differences are taken between runs of the same seed, which share their data, views and start as far as methods
    allow; then their mean and its 95 % interval by Student's t over three seeds or more. Fewer common seeds give a
    difference without an interval, none an empty cell. Baselines have no row. No rows where there are not two methods.
    """
    rows = [row for row in by_row(found, baselines) if row[0] not in baselines]
    if len(rows) < 2:
        return "", [], []
    (first, reference), *others = rows
    shown = [p for p in PROTOCOLS if _by_seed(reference, p)]
    cells = []
    for name, of in others:
        common = sorted({r.seed for r in reference} & {r.seed for r in of})
        cells.append([name, str(len(common)), *(_difference(reference, of, p) for p in shown)])
    title = f"accuracy less that of {first}, points: mean over seeds that both have [95 % interval, Student's t]"
    return title, ["method", "common seeds", *(PROTOCOLS[p] for p in shown)], cells


def _by_seed(of: Sequence[records.Record], protocol: str) -> dict[int, float]:
    """Accuracy by seed."""
    return {r.seed: x.value for r in of for x in r.results if (x.metric, x.protocol) == ("accuracy", protocol)}


def _difference(reference: Sequence[records.Record], of: Sequence[records.Record], protocol: str) -> str:
    theirs, ours = _by_seed(reference, protocol), _by_seed(of, protocol)
    values = [100 * (ours[seed] - theirs[seed]) for seed in theirs if seed in ours]
    if not values:
        return ""
    mean = interval(values)
    few = len(values) < 3  # of two the interval is as wide as chance has it
    around = "" if few or mean.low is None or mean.high is None else f" [{mean.low:+z.1f},{mean.high:+z.1f}]"
    return f"{mean.mean:+z.1f}{around}"
