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
from recipes.terminal import command

HERE = Path(__file__).parent
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
PROTOCOLS = ("linear", "logistic", "knn")
BASELINES = ("raw pixels", "untrained encoder")  # measured for one preset, valid for all that share
OF_BASELINES = ("data", "limit", "arch", "stem", "width", "initialisation")
LARGEST = 1e100  # of a number in a table; squares of larger ones are infinite
ELSEWHERE = ("transfer", "finetune", "detect", "segment", "analysis", "collapse")  # stages with a table of their own

# Linear accuracy in %, Table 1 of Scherr et al. 2022 (1,000 epochs, 5 runs), Table 3 for ImageNet (100 epochs, top-1).
PAPER = {
    ("resnet18", "cifar10"): {
        "SimCLR": "91.5 ± 0.1",
        "ReLIC": "91.5 ± 0.2",
        "MoCo v2": "90.9 ± 0.2",
        "BYOL": "92.0 ± 0.2",
        "S-TEC": "92.0 ± 0.2",
        "S-TEC*": "92.6 ± 0.1",
    },
    ("resnet18", "cifar100"): {
        "SimCLR": "65.3 ± 0.3",
        "ReLIC": "65.6 ± 0.3",
        "MoCo v2": "65.7 ± 0.4",
        "BYOL": "66.4 ± 0.4",
        "S-TEC": "66.6 ± 0.3",
        "S-TEC*": "67.6 ± 0.4",
    },
    ("resnet18", "stl10"): {
        "SimCLR": "91.5 ± 0.4",
        "ReLIC": "91.4 ± 0.2",
        "MoCo v2": "88.6 ± 0.6",
        "BYOL": "91.1 ± 0.2",
        "S-TEC": "91.6 ± 0.2",
        "S-TEC*": "91.4 ± 0.2",
    },
    ("resnet50", "cifar10"): {
        "SimCLR": "93.2 ± 0.2",
        "ReLIC": "93.2 ± 0.2",
        "S-TEC": "93.9 ± 0.2",
        "S-TEC*": "94.0 ± 0.1",
    },
    ("resnet50", "cifar100"): {
        "SimCLR": "70.8 ± 0.2",
        "ReLIC": "70.8 ± 0.2",
        "S-TEC": "71.9 ± 0.4",
        "S-TEC*": "72.4 ± 0.1",
    },
    ("resnet50", "stl10"): {
        "SimCLR": "94.0 ± 0.1",
        "ReLIC": "93.8 ± 0.1",
        "S-TEC": "94.3 ± 0.2",
        "S-TEC*": "93.9 ± 0.2",
    },
    ("resnet50", "imagenet"): {"SimCLR": "64.6", "ReLIC": "66.2", "S-TEC": "64.8", "S-TEC*": "66.3"},
    ("resnet50", "imagenet-300ep"): {"ReLIC": "70.0", "S-TEC*": "70.2"},
    # Table 2, by epochs; SimSiam's 200 are Lee et al.'s (2021)
    ("stl10", "200ep"): {"SimSiam": "86.32", "AugSelf": "86.03", "SimCLR": "86.1 ± 0.2", "S-TEC": "86.2 ± 0.2"},
    ("stl10", "1000ep"): {
        "SimSiam": "90.2 ± 0.3",
        "AugSelf": "90.8 ± 0.2",
        "SimCLR": "91.5 ± 0.4",
        "S-TEC": "91.6 ± 0.2",
    },
}


# A linear layer on c, 41 phones, 251 speakers by frame: Scherr et al. 2022, section 4.4, and Oord et al. 2018, Table 1.
PUBLISHED_SPEECH = (
    "Published, on the 100 hours of LibriSpeech and 41 phones, to be compared with nothing smaller or synthetic: CPC "
    "65.1 %, with the time-insensitive model 65.4 % (Scherr et al. 2022); untrained 27.6, MFCC 39.7, CPC 64.6, "
    "supervised 74.6; speakers by frame 1.9, 17.6, 97.4, 98.5 (Oord et al. 2018)."
)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which records, and where the tables go."""

    results: Path = HERE  # a folder of records, or one file
    write: Path | None = None  # a Markdown file with the two marks


def paper_value(record: records.Record) -> str:
    """The paper's linear accuracy for this method, of the row that the preset stands for; "small" is CIFAR-10's."""
    first, *rest = record.preset.split("-")
    if first in ("small", "tiny"):
        row = ("resnet18", "cifar10")
    elif first == "table2":
        row = ("stl10", rest[-1] if rest else "")
    else:
        row = (rest[0] if rest else "", f"{first}-300ep" if "300ep" in rest else first)
    name = record.method
    for variant in (" exact", " official", ", as released"):
        name = name.removesuffix(variant)
    return PAPER.get(row, {}).get(name, "")


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
    lines = [
        "| method | seeds | linear % | logistic % | kNN % | manipulation minus chance, nats | paper, linear % |",
        "|---|---|---|---|---|---|---|",
    ]
    rows_of: dict[tuple[str, str], list[records.Record]] = {}
    for record in found:
        rows_of.setdefault((record.method, "" if record.method in BASELINES else record.preset), []).append(record)
    for (method, preset), rows in rows_of.items():
        _check_alike(method, rows)
        name = f"{method} ({preset})" if sum(other == method for other, _ in rows_of) > 1 else method

        def values(metric: str, protocol: str, rows: list[records.Record] = rows) -> list[float]:
            return [x.value for r in rows for x in r.results if x.metric == metric and x.protocol == protocol]

        cells = [spread(values("accuracy", protocol), 100, 1) for protocol in PROTOCOLS]
        manipulation = spread(values("manipulation minus chance", "held-out"), 1, 3)
        # Raw pixels do not depend on the seed but through the linear probe's own.
        seeds = str(len({r.seed for r in rows}))
        lines.append(row([name, seeds, *cells, manipulation, paper_value(rows[0])]))
    return "\n".join([*lines, "", *_origins([record for record in found if record.method != "raw pixels"])])


def speech(found: Sequence[records.Record]) -> str:
    """One table of phones, speakers and surprise: a row for each method, a column for each kind of number.

    A method that several presets stand for has a row for each. ValueError where runs of one row differ in a setting.
    """
    columns = dict.fromkeys(column for r in found for x in r.results if (column := _column(r, x)))
    header = ["method", "seeds", *columns]
    lines = [row(header), "|---" * len(header) + "|"]
    rows: dict[tuple[str, str], list[records.Record]] = {}
    for record in found:
        # MFCC and the commonest phone know no preset.
        preset = "" if record.method in ("majority", "MFCC") else record.preset
        rows.setdefault((record.method, preset), []).append(record)
    for (method, preset), of in rows.items():
        _check_alike(method, of)
        several = sum(name == method for name, _ in rows) > 1
        cells = []
        for column in columns:
            values = [x.value for r in of for x in r.results if _column(r, x) == column]
            cells.append(spread(values, 1, 3) if "nats" in column else spread(values, 100, 1))
        seeds = str(len({record.seed for record in of}))
        lines.append(row([f"{method} ({preset})" if several else method, seeds, *cells]))
    return "\n".join([*lines, "", PUBLISHED_SPEECH, "", *_origins(found)])


def _check_alike(method: str, found: Sequence[records.Record]) -> None:
    """ValueError where records that a mean would be taken over differ in more than the seed."""
    first = found[0].settings
    read = [key for key in (OF_BASELINES if method in BASELINES else first) if key not in ("seed", "resumed")]
    for record in found:
        differ = [key for key in read if record.settings.get(key) != first.get(key)]
        if "precision" in differ and "auto" in (first["precision"], record.settings.get("precision")):
            differ.remove("precision")  # older records name no more than "auto"
        if differ and method not in ("majority", "MFCC"):
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
    header = ["method", "seeds", *columns]
    lines = [row(header), "|---" * len(header) + "|"]
    for method in dict.fromkeys(record.method for record in found):
        of = [record for record in found if record.method == method]
        cells = []
        for name in columns:
            values = [x.value for r in of for x in r.results if column(r, x) == name]
            cells.append(spread(values, 100, 1) if name.endswith("%") else spread(values, 1, 2))
        lines.append(row([method, len({record.seed for record in of}), *cells]))
    return "\n".join([*lines, "", *_origins(found)])


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
    lines = ["| measured side by side | value | of |", "|---|---|---|"]
    for record in found:
        for result in record.results:
            of = ", ".join(f"{name} {value}" for name, value in result.details.items())
            lines.append(row([result.metric, spread([result.value], 1, 2), of]))
    return "\n".join([*lines, "", *_origins(found)])


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
