"""The results tables: python -m recipes.results.table [--write docs/results.md README.md].

Reads the committed records, groups them by file and method, and prints mean and standard deviation over seeds for
each protocol, with the paper's value where a run was on its data set. --write puts them between the marks of Markdown
files: all tables where a file marks a place for them (docs/results.md), those of README.md where it marks one for them.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from recipes import records
from recipes.results.cells import BASELINES, SEEDS, WITHOUT_PRESET, by_row, line, lines, seeds, spread
from recipes.results.differences import SPEECH, Differences, additions, paired
from recipes.results.published import paper_value, published_speech
from recipes.results.short import short
from recipes.terminal import command

HERE = Path(__file__).parent
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
SHORT = "<!-- results in short: begin -->", "<!-- results in short: end -->"
PROTOCOLS = ("linear", "logistic", "knn")
HEADER = ("method", SEEDS, "linear %", "logistic %", "kNN %", "manipulation minus chance, nats", "paper, linear %")
NOT_PRETRAINED = (*WITHOUT_PRESET, "untrained", "supervised")
ELSEWHERE = ("transfer", "finetune", "detect", "segment", "analysis", "collapse")  # stages with a table of their own


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which records, and where the tables go."""

    results: Path = HERE  # a folder of records, or one file
    write: tuple[Path, ...] = ()  # Markdown files with marks; without any the tables are printed


def accuracies(found: Sequence[records.Record]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of images: a row for each method, a column for each protocol, and the paper's where any applies.

    A method that several presets stand for has a row for each. ValueError where runs of one row differ in a setting.
    """
    rows = []
    for name, of in by_row(found, BASELINES):

        def values(metric: str, protocol: str, of: list[records.Record] = of) -> list[float]:
            return [x.value for r in of for x in r.results if x.metric == metric and x.protocol == protocol]

        cells = [spread(values("accuracy", protocol), 100, 1) for protocol in PROTOCOLS]
        manipulation = spread(values("manipulation minus chance", "held-out"), 1, 3)
        # Raw pixels do not depend on the seed but through the linear probe's own.
        rows.append([name, str(seeds(of)), *cells, manipulation, paper_value(of[0])])
    shown = len(HEADER) if any(cells[-1] for cells in rows) else len(HEADER) - 1
    return list(HEADER[:shown]), [cells[:shown] for cells in rows]


def markdown(found: Sequence[records.Record], differences: Differences | None = None) -> str:
    """The table of `accuracies`, that of `differences`, and commands, commits, hardware and dates below."""
    further = _table(differences) if differences else []
    origins = _origins([r for r in found if r.method != "raw pixels"])
    return "\n".join([*lines(*accuracies(found)), *further, "", *origins])


def _table(differences: Differences) -> list[str]:
    """The lines of a further table, under its title; none without rows."""
    title, header, rows = differences
    return ["", f"{title}:", "", *lines(header, rows)] if rows else []


def speech_rows(found: Sequence[records.Record]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of phones, speakers and surprise: a row for each method, a column for each kind of number.

    A method that several presets stand for has a row for each. ValueError where runs of one row differ in a setting.
    """
    columns = dict.fromkeys(column for r in found for x in r.results if (column := _column(r, x)))
    rows = []
    for name, of in by_row(found, WITHOUT_PRESET):
        cells = []
        for column in columns:
            values = [x.value for r in of for x in r.results if _column(r, x) == column]
            cells.append(spread(values, 1, 3) if "nats" in column else spread(values, 100, 1))
        rows.append([name, str(seeds(of)), *cells])
    return ["method", SEEDS, *columns], rows


def speech(found: Sequence[records.Record]) -> str:
    """The table of `speech_rows`, and of differences; where they come from; published ones where the task is theirs."""
    published = published_speech(found)
    differences = paired(found, baselines=NOT_PRETRAINED, columns=SPEECH)
    below = ["", *([published, ""] if published else []), *_origins(found)]
    return "\n".join([*lines(*speech_rows(found)), *_table(differences), *below])


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
    for method, of in by_row(found, (), alike=False):  # shares of labels are trained differently
        cells = []
        for name in columns:
            values = [x.value for r in of for x in r.results if column(r, x) == name]
            cells.append(spread(values, 100, 1) if name.endswith("%") else spread(values, 1, 2))
        rows.append([method, seeds(of), *cells])
    return "\n".join([*lines(["method", SEEDS, *columns], rows), "", *_origins(found)])


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
        of = "; ".join(f"{name}: {value}" for name, value in result.details.items())
        rows.append([result.metric, spread([result.value], 1, 2), of])
    return "\n".join([*lines(["measured side by side", "value", "of"], rows), "", *_origins(found)])


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
                text = speech(found) if spoken else markdown(found, additions(found))
        except ValueError as error:
            raise ValueError(f"{path}, {name}: {error}") from error
        parts.append(f"## {name}\n\n{text}")
    return "\n\n".join(parts)


def put(text: str, into: str, *, between: tuple[str, str] = (BEGIN, END)) -> str:
    """The document with `text` between the marks. ValueError where the marks are missing."""
    begin, end = between
    if begin not in into or end not in into:
        raise ValueError(f"the file needs the lines {begin} and {end}, between which the tables go")
    head, rest = into.split(begin, 1)
    return f"{head}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}"


def filled(document: str, results: Path) -> str:
    """The document with the tables that it marks a place for. ValueError where it marks none."""
    if SHORT[0] in document:
        return put(short(read_all(results)), document, between=SHORT)
    return put(render(results), document)


def main() -> None:
    """The command line."""
    arguments = tyro.cli(Arguments, prog="python -m recipes.results.table", description=__doc__)
    if not arguments.write:
        print(render(arguments.results))
    for path in arguments.write:
        path.write_text(filled(path.read_text(), arguments.results))


if __name__ == "__main__":
    command(main)
