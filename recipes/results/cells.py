"""What tables of records are made of: cells, rows, and which records a row is the mean of."""

import re
import statistics
from collections.abc import Iterable, Sequence

from recipes import records

BASELINES = ("raw pixels", "untrained encoder")  # measured for one preset, valid for all that share
WITHOUT_PRESET = ("majority", "MFCC")  # the commonest phone, and features that nothing was trained for
OF_BASELINES = ("data", "limit", "arch", "stem", "width", "initialisation")
# Settings in which runs of one row may differ: they change when a run is looked at and where it lies, and no number.
NOT_OF_METHOD = ("seed", "resumed", "root", "check_every", "checkpoint_every", "workers", "memory_gb")
LARGEST = 1e100  # of a number in a table; squares of larger ones are infinite
SPREAD = "mean ± standard deviation over seeds"  # what `spread` shows
SEEDS = "seeds (mean ± SD)"  # a table's column that says how many, and what the others show


def line(text: object) -> str:
    """Words of a record as they can stand in Markdown and on a terminal: they begin no code, comment or new line.

    >>> line("a`b\\n<!-- c -->")
    "a'b?&lt;!-- c -->"
    """
    shown = "".join(c if c.isprintable() else "?" for c in str(text))
    return re.sub("<(?=[!?/a-zA-Z])", "&lt;", shown.replace("`", "'"))


def row(cells: Iterable[object]) -> str:
    """A row of a table, whose cells cannot add another.

    >>> row(["SimCLR", "a|b"])
    '| SimCLR | a\\\\|b |'
    """
    return f"| {' | '.join(line(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def lines(header: Sequence[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """The lines of a table in Markdown."""
    return [row(header), "|---" * len(header) + "|", *map(row, rows)]


def spread(values: Sequence[float], scale: float, digits: int) -> str:
    """Mean ± standard deviation over seeds; the value alone of one seed, nothing of none."""
    if not values:
        return ""
    if not all(abs(value) < LARGEST for value in values):
        return "not finite"
    mean = f"{scale * statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {scale * statistics.stdev(values):.{digits}f}"


def tight(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for a terminal, where a number must not be broken at a blank, and the title says what ± is.

    >>> tight(["method", SEEDS, "linear %"], [["SimCLR", "3", "47.4 ± 0.7"]])
    (['method', 'seeds', 'linear %'], [['SimCLR', '3', '47.4±0.7']])
    """
    return ["seeds" if name == SEEDS else name for name in header], [
        [cell.replace(" ± ", "±") for cell in cells] for cells in rows
    ]


def by_row(
    found: Sequence[records.Record], shared: Sequence[str], *, alike: bool = True
) -> list[tuple[str, list[records.Record]]]:
    """The records of each row by its name: the method, with the preset where several stand for it.

    Methods in `shared` have one row whatever the preset. ValueError where runs of one row differ in a setting, unless
    they need not be `alike`.
    """
    rows: dict[tuple[str, str], list[records.Record]] = {}
    for record in found:
        rows.setdefault((record.method, "" if record.method in shared else record.preset), []).append(record)
    for (method, _), of in rows.items():
        if alike:
            _check_alike(method, of)
    for method in shared:  # where each preset has brought its own, those of one count
        first: dict[int, str] = {}
        of = rows.get((method, ""), [])
        of[:] = [record for record in of if first.setdefault(record.seed, record.preset) == record.preset]
    methods = [method for method, _ in rows]
    return [
        (f"{method} ({preset})" if methods.count(method) > 1 else method, of) for (method, preset), of in rows.items()
    ]


def seeds(found: Sequence[records.Record]) -> int:
    """Of how many seeds the records are."""
    return len({record.seed for record in found})


def _check_alike(method: str, found: Sequence[records.Record]) -> None:
    """ValueError where records that a mean would be taken over differ in more than the seed."""
    first = found[0].settings
    read = [key for key in (OF_BASELINES if method in BASELINES else first) if key not in NOT_OF_METHOD]
    for record in found:
        differ = [key for key in read if record.settings.get(key) != first.get(key)]
        if "precision" in differ and "auto" in (first["precision"], record.settings.get("precision")):
            differ.remove("precision")  # older records name no more than "auto"
        if differ and method not in WITHOUT_PRESET:
            raise ValueError(
                f"runs of {line(method[:60])} differ in {line(', '.join(differ)[:200])}; keep them in different files"
            )
