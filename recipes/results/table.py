"""The results table: python -m recipes.results.table [--write README.md].

Reads the committed records, groups them by file and method, and prints mean and standard deviation over seeds for
each protocol, with the paper's value beside. --write puts the tables between the marks in a Markdown file.
"""

import dataclasses
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import tyro

from recipes import records
from recipes.results.published import PUBLISHED_SPEECH, paper_value
from recipes.terminal import command

HERE = Path(__file__).parent
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
PROTOCOLS = ("linear", "logistic", "knn")
HEADER = ("method", "seeds", "linear %", "logistic %", "kNN %", "manipulation minus chance, nats", "paper, linear %")
BASELINES = ("raw pixels", "untrained encoder")  # measured for one preset, valid for all that share
WITHOUT_PRESET = ("majority", "MFCC")  # the commonest phone, and features that nothing was trained for
OF_BASELINES = ("data", "limit", "arch", "stem", "width", "initialisation")
LARGEST = 1e100  # of a number in a table; squares of larger ones are infinite
ELSEWHERE = ("transfer", "finetune", "detect", "segment", "analysis", "collapse")  # stages with a table of their own


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which records, and where the tables go."""

    results: Path = HERE  # a folder of records, or one file
    write: Path | None = None  # a Markdown file with the two marks


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


def _table(header: Sequence[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """The lines of a table."""
    return [row(header), "|---" * len(header) + "|", *map(row, rows)]


def spread(values: Sequence[float], scale: float, digits: int) -> str:
    """Mean ± standard deviation over seeds; the value alone of one seed, nothing of none."""
    if not values:
        return ""
    if not all(abs(value) < LARGEST for value in values):
        return "not finite"
    mean = f"{scale * statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {scale * statistics.stdev(values):.{digits}f}"


def markdown(found: Sequence[records.Record]) -> str:
    """One table: a row for each method, with the commands, commits, hardware and dates below.

    A method that several presets stand for has a row for each. ValueError where runs of one row differ in a setting.
    """
    rows = []
    for name, of in _by_row(found, BASELINES):

        def values(metric: str, protocol: str, of: list[records.Record] = of) -> list[float]:
            return [x.value for r in of for x in r.results if x.metric == metric and x.protocol == protocol]

        cells = [spread(values("accuracy", protocol), 100, 1) for protocol in PROTOCOLS]
        manipulation = spread(values("manipulation minus chance", "held-out"), 1, 3)
        # Raw pixels do not depend on the seed but through the linear probe's own.
        rows.append([name, _seeds(of), *cells, manipulation, paper_value(of[0])])
    return "\n".join([*_table(HEADER, rows), "", *_origins([r for r in found if r.method != "raw pixels"])])


def speech(found: Sequence[records.Record]) -> str:
    """One table of phones, speakers and surprise: a row for each method, a column for each kind of number.

    A method that several presets stand for has a row for each. ValueError where runs of one row differ in a setting.
    """
    columns = dict.fromkeys(column for r in found for x in r.results if (column := _column(r, x)))
    rows = []
    for name, of in _by_row(found, WITHOUT_PRESET):
        cells = []
        for column in columns:
            values = [x.value for r in of for x in r.results if _column(r, x) == column]
            cells.append(spread(values, 1, 3) if "nats" in column else spread(values, 100, 1))
        rows.append([name, _seeds(of), *cells])
    return "\n".join([*_table(["method", "seeds", *columns], rows), "", PUBLISHED_SPEECH, "", *_origins(found)])


def _by_row(found: Sequence[records.Record], shared: Sequence[str]) -> list[tuple[str, list[records.Record]]]:
    """The records of each row by its name: the method, with the preset where several stand for it.

    Methods in `shared` have one row whatever the preset. ValueError where runs of one row differ in a setting.
    """
    rows: dict[tuple[str, str], list[records.Record]] = {}
    for record in found:
        rows.setdefault((record.method, "" if record.method in shared else record.preset), []).append(record)
    for (method, _), of in rows.items():
        _check_alike(method, of)
    methods = [method for method, _ in rows]
    return [
        (f"{method} ({preset})" if methods.count(method) > 1 else method, of) for (method, preset), of in rows.items()
    ]


def _seeds(found: Sequence[records.Record]) -> int:
    return len({record.seed for record in found})


def _check_alike(method: str, found: Sequence[records.Record]) -> None:
    """ValueError where records that a mean would be taken over differ in more than the seed."""
    first = found[0].settings
    read = [key for key in (OF_BASELINES if method in BASELINES else first) if key not in ("seed", "resumed")]
    for record in found:
        differ = [key for key in read if record.settings.get(key) != first.get(key)]
        if "precision" in differ and "auto" in (first["precision"], record.settings.get("precision")):
            differ.remove("precision")  # older records name no more than "auto"
        if differ and method not in WITHOUT_PRESET:
            raise ValueError(
                f"runs of {line(method[:60])} differ in {line(', '.join(differ)[:200])}; keep them in different files"
            )


def _column(record: records.Record, result: records.Result) -> str | None:
    """The column of a number, MFCC and the commonest phone beside the context; None for what the table leaves out."""
    layer = "z" if result.details.get("layer") == "latents" else "c"
    offset = "" if result.details.get("offset", "+0") == "+0" else f", {result.details['offset']}"
    if "windows" in (result.details.get("input"), result.details.get("context")):
        offset += ", windows"
    if result.metric == "phone accuracy":
        protocol = "linear" if result.protocol == "majority" else result.protocol
        return f"phones, {protocol} ({layer}{offset}) %"
    if result.metric == "speaker accuracy":
        where = ", phone splits" if record.stage.startswith("phones") else ""
        return f"speakers, {result.protocol} ({layer}{offset}{where}) %"
    return "CPC minus chance, nats" if result.metric == "time-sensitive minus chance" else None


def outcomes(found: Sequence[records.Record]) -> str:
    """One table for what becomes of an encoder elsewhere: transfer, few labels, detection, segmentation.

    A row for each method, a column for each kind of number: accuracies, AP and mIoU in %, everything else as it is.
    """

    def column(record: records.Record, result: records.Result) -> str:
        share = result.metric.startswith(("accuracy", "AP", "mIoU"))
        metric = "" if result.metric == "accuracy" else f"{result.metric}, "
        return f"{record.data}: {metric}{result.protocol}{' %' if share else ''}"

    columns = dict.fromkeys(column(r, x) for r in found for x in r.results)
    rows = []
    for method in dict.fromkeys(record.method for record in found):
        of = [record for record in found if record.method == method]
        cells = []
        for name in columns:
            values = [x.value for r in of for x in r.results if column(r, x) == name]
            cells.append(spread(values, 100, 1) if name.endswith("%") else spread(values, 1, 2))
        rows.append([method, _seeds(of), *cells])
    return "\n".join([*_table(["method", "seeds", *columns], rows), "", *_origins(found)])


def _origins(found: Sequence[records.Record]) -> list[str]:
    """Where the numbers come from, each way once."""
    return [
        f"- {origin}"
        for origin in dict.fromkeys(
            f"`{line(r.command)}`, commit {line(r.commit)}, {line(r.hardware)}, {line(r.date)}" for r in found
        )
    ]


def speed(found: Sequence[records.Record]) -> str:
    """The ratios of a benchmark, with what was measured for each."""
    rows = []
    for result in (result for record in found for result in record.results):
        of = ", ".join(f"{name} {value}" for name, value in result.details.items())
        rows.append([result.metric, spread([result.value], 1, 2), of])
    return "\n".join([*_table(["measured side by side", "value", "of"], rows), "", *_origins(found)])


def read_all(path: Path) -> dict[str, list[records.Record]]:
    """Records by the name of their file. ValueError where there are none."""
    files = [path] if path.is_file() else sorted(p for p in path.glob("*.json") if ".aggregate" not in p.suffixes)
    if not files:
        raise ValueError(f"{path} holds no records (*.json)")
    return {file.stem: records.read(file) for file in files}


def render(path: Path) -> str:
    """All tables, each under the name of its file."""
    parts = []
    for name, found in read_all(path).items():
        benchmarks = [record for record in found if record.stage == "bench"]
        elsewhere = all(record.stage in ELSEWHERE for record in found)
        spoken = any("speaker" in x.metric or "phone" in x.metric for record in found for x in record.results)
        try:
            if benchmarks:
                text = speed(benchmarks)
            elif elsewhere:
                text = outcomes(found)
            else:
                text = speech(found) if spoken else markdown(found)
        except ValueError as error:
            raise ValueError(f"{path}, {name}: {error}") from error
        parts.append(f"**{name}**\n\n{text}")
    return "\n\n".join(parts)


def put(text: str, into: str) -> str:
    """The document with `text` between the marks. ValueError where the marks are missing."""
    if BEGIN not in into or END not in into:
        raise ValueError(f"the file needs the lines {BEGIN} and {END}, between which the tables go")
    head, rest = into.split(BEGIN, 1)
    return f"{head}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}"


def main() -> None:
    """The command line."""
    arguments = tyro.cli(Arguments, prog="python -m recipes.results.table", description=__doc__)
    text = render(arguments.results)
    if arguments.write is None:
        print(text)
    else:
        arguments.write.write_text(put(text, arguments.write.read_text()))


if __name__ == "__main__":
    command(main)
