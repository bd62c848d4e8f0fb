"""By how much methods differ, seed by seed: from the first one, or from themselves without actions."""

import statistics
from collections.abc import Mapping, Sequence

from recipes import records
from recipes.results.cells import BASELINES, NOT_OF_METHOD, by_row
from recipes.results.intervals import interval

Column = tuple[str, str]  # of a result: its metric and its protocol
IMAGES: dict[str, Column] = {
    "linear": ("accuracy", "linear"),
    "logistic": ("accuracy", "logistic"),
    "kNN": ("accuracy", "knn"),
}
SPEECH: dict[str, Column] = {  # all read off the context by linear layers
    "phones": ("phone accuracy", "linear"),
    "speakers, by frame": ("speaker accuracy", "frame"),
    "speakers, by utterance": ("speaker accuracy", "utterance"),
}
OF_ACTIONS = ("preset", "lambda_manip", "action", "manipulation", "manipulation_hidden", "bins")
Differences = tuple[str, list[str], list[list[str]]]  # title, header and rows of a table
OVER_SEEDS = "mean over seeds that both have [95 % interval, Student's t]"


def paired(
    found: Sequence[records.Record], *, baselines: Sequence[str] = BASELINES, columns: Mapping[str, Column] = IMAGES
) -> Differences:
    """Accuracy less that of the first method, in points, a row for each other one.

    Differences are taken between runs of the same seed, which share their data, views and start as far as methods
    allow; then their mean and its 95 % interval by Student's t over three seeds or more. Fewer common seeds give a
    difference without an interval, none an empty cell. Baselines have no row. No rows where there are not two methods.
    """
    rows = [row for row in by_row(found, baselines) if row[0] not in baselines]
    if len(rows) < 2:
        return "", [], []
    (first, reference), *others = rows
    shown = {name: column for name, column in columns.items() if _by_seed(reference, column)}
    cells = []
    for name, of in others:
        common = sorted({r.seed for r in reference} & {r.seed for r in of})
        values = (list(_differences(reference, of, column).values()) for column in shown.values())
        cells.append([name, str(len(common)), *map(_cell, values)])
    title = f"accuracy less that of {first}, points: {OVER_SEEDS}"
    return title, ["method", "common seeds", *shown], cells


def additions(found: Sequence[records.Record], *, baselines: Sequence[str] = BASELINES) -> Differences:
    """As `paired`, of each method with actions less the one that differs from it in nothing but the actions.

    The last row is the mean over the identity models, seed by seed, where several have exact actions in bins.
    """
    title, header = f"what actions add to accuracy, points: {OVER_SEEDS}", ["method", "common seeds"]
    trained = [(name, of) for name, of in by_row(found, baselines) if name not in baselines and of[0].settings]
    shown = {name: column for name, column in IMAGES.items() if any(_by_seed(of, column) for _, of in trained)}
    rows, exact = [], []
    for name, of in trained:
        settings = of[0].settings
        alone = [
            r
            for _, others in trained
            for r in others
            if not r.settings.get("lambda_manip") and _alike_but_actions(r, of[0])
        ]
        if not settings.get("lambda_manip") or not alone:
            continue
        by = [_differences(alone, of, column) for column in shown.values()]
        rows.append([name, str(max(map(len, by))), *(_cell(list(each.values())) for each in by)])
        if (settings.get("action"), settings.get("manipulation")) == ("exact", "binned"):
            exact.append((settings.get("identity"), by))
    if len(exact) > 1 and len({identity for identity, _ in exact}) == len(exact):
        means = [_means(of_models) for of_models in zip(*(by for _, by in exact))]
        name = f"mean of the {len(exact)} with exact actions"
        rows.append([name, str(max(map(len, means))), *map(_cell, means)])
    return (title, [*header, *shown], rows) if rows else ("", [], [])


def _alike_but_actions(one: records.Record, other: records.Record) -> bool:
    """Whether two runs differ in nothing but the actions; what an older version did not have stood at its default."""
    shared = [key for key in one.settings if key in other.settings and key not in (*OF_ACTIONS, *NOT_OF_METHOD)]
    return bool(one.settings) and all(one.settings[key] == other.settings[key] for key in shared)


def _means(of: Sequence[dict[int, float]]) -> list[float]:
    """The mean over several, for each seed that all have."""
    common = set.intersection(*(set(each) for each in of))
    return [statistics.fmean(each[seed] for each in of) for seed in sorted(common)]


def _by_seed(of: Sequence[records.Record], column: Column) -> dict[int, float]:
    """Accuracy by seed, of speech that of the context in its own frame."""
    return {
        r.seed: x.value
        for r in of
        for x in r.results
        if (x.metric, x.protocol) == column
        and x.details.get("layer", "context") == "context"
        and x.details.get("offset", "+0") == "+0"
    }


def _differences(reference: Sequence[records.Record], of: Sequence[records.Record], column: Column) -> dict[int, float]:
    """Points by seed, of seeds that both have."""
    theirs, ours = _by_seed(reference, column), _by_seed(of, column)
    return {seed: 100 * (ours[seed] - theirs[seed]) for seed in theirs if seed in ours}


def _cell(values: Sequence[float]) -> str:
    """Mean and interval; no interval of fewer than three, nothing of none."""
    if not values:
        return ""
    mean = interval(values)
    few = len(values) < 3  # of two the interval is as wide as chance has it
    around = "" if few or mean.low is None or mean.high is None else f" [{mean.low:+z.1f},{mean.high:+z.1f}]"
    return f"{mean.mean:+z.1f}{around}"
