"""Records of what was measured: one JSON file, one list of numbers, each with all that is needed to measure it again.

A record names the machine by its kind, never by its name, its user or a folder outside the one that it ran in.
"""

import dataclasses
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

DEEPEST = 20  # levels of a record's JSON: ours have four, and dataclasses.asdict would fail at some hundred


@dataclasses.dataclass(frozen=True)
class Result:
    """One number: which metric, of what, by which protocol."""

    metric: str  # "accuracy" (a share), "manipulation over chance" (nats), ...
    value: float
    protocol: str  # "linear", "logistic", "knn", "online", ...
    details: Mapping[str, object] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Record:
    """The results of one run and their origin."""

    method: str  # "SimCLR", "S-TEC exact", "raw pixels", ...
    preset: str
    data: str
    seed: int
    seconds: float | None  # of pretraining; None where that is not known
    command: str
    commit: str
    hardware: str
    date: str
    results: list[Result]
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)
    stage: str = "evaluate"  # or "pretrain", "bench"


def command() -> str:
    """How this program was called, in the folder where it ran: relative paths whole, of others their last part."""
    words = [_without_folders(word) for word in sys.argv[1:]]
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).stem
    return shlex.join(["python", "-m", module, *words])


def _without_folders(word: str) -> str:
    """A word of the command line without folders of this machine: --root=/a/b and /a/b become --root=b and b."""
    flag, equals, value = word.partition("=")
    return place(word) if _of_machine(flag) else flag + equals + (place(value) if value else "")


def place(path: str) -> str:
    """A path as a record may hold it: whole below the folder where the program runs, else its last part.

    What lies above that folder belongs to this machine, and may name its user.

    >>> place("runs/x/step=160.ckpt"), place("/home/alice/data"), place("../alice/data")
    ('runs/x/step=160.ckpt', 'data', 'data')
    """
    return Path(path).name or "." if _of_machine(path) else path


def _of_machine(path: str) -> bool:
    """Whether a path names folders that only this machine has, or from above a user's own."""
    parts = Path(path).parts
    if Path(path).is_absolute() or path.startswith("~") or os.pardir in parts:
        return True
    home, here = Path(os.path.expanduser("~")), Path.cwd()
    above = home.parts[len(here.parts) :] if home.is_relative_to(here) else ()
    return bool(above) and parts[: len(above) - 1] == above[:-1]  # other users' folders lie beside it


def commit() -> str:
    """The commit of the source, with "+" where the tree had changes; "unknown" outside a git checkout."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=10", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if dirty else "")


def hardware() -> str:
    """The kind of machine, such as "AMD EPYC, 2 threads, torch 2.11.0"."""
    torch_version = torch.__version__.split("+")[0]
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, torch {torch_version}"
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return f"{processor}, {torch.get_num_threads()} threads, torch {torch_version}"


def record(
    *,
    method: str,
    preset: str,
    data: str,
    seed: int,
    seconds: float | None,
    results: Sequence[Result],
    settings: Mapping[str, object] | None = None,
    stage: str = "evaluate",
) -> Record:
    """A record with its origin filled in from this process."""
    return Record(
        method=method,
        preset=preset,
        data=data,
        seed=seed,
        seconds=None if seconds is None else round(seconds, 1),
        command=command(),
        commit=commit(),
        hardware=hardware(),
        date=datetime.date.today().isoformat(),
        results=list(results),
        settings=settings or {},
        stage=stage,
    )


def write(records: Sequence[Record], path: Path) -> None:
    """Write records as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps([dataclasses.asdict(r) for r in records], indent=1) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def update(records: Sequence[Record], path: Path) -> None:
    """Write records beside those of other stages that the file holds already, in place of those of the same stage."""
    stages = {record.stage for record in records}
    kept = [record for record in read(path) if record.stage not in stages] if path.is_file() else []
    write([*kept, *records], path)


def merge(records: Sequence[Record], path: Path) -> None:
    """Write records beside those that the file holds already; a number that is measured again replaces the old one.

    It is the same number where method, preset, data, seed, stage, metric and protocol are.
    """
    fresh = {(*_of(r), x.metric, x.protocol) for r in records for x in r.results}
    again = {_of(r) for r in records if not r.results}
    kept = []
    for old in read(path) if path.is_file() else []:
        results = [x for x in old.results if (*_of(old), x.metric, x.protocol) not in fresh]
        if results or (not old.results and _of(old) not in again):
            kept.append(dataclasses.replace(old, results=results))
    write([*kept, *records], path)


def _of(record: Record) -> tuple[str, str, str, int, str]:
    """What a record's numbers are of."""
    return record.method, record.preset, record.data, record.seed, record.stage


def read(path: Path) -> list[Record]:
    """Read what `write` wrote. ValueError names a file that holds something else."""
    try:
        entries = json.loads(path.read_text())
        if not isinstance(entries, list) or _depth(entries) > DEEPEST:
            raise ValueError(f"need a list, nested {DEEPEST} deep at most")
        return [_record(entry) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        reason = repr(str(error)[:200] or type(error).__name__)
        raise ValueError(f"{path} is no results record ({reason}); remove it, or write it again") from error


def _record(entry: Any) -> Record:
    """A record whose fields are of the types that they say."""
    made = Record(**{**entry, "results": [Result(**result) for result in entry["results"]]})
    of = made.results
    words = [made.method, made.preset, made.data, made.command, made.commit, made.hardware, made.date, made.stage]
    words += [word for result in of for word in (result.metric, result.protocol)]
    numbers = [made.seed, *(() if made.seconds is None else (made.seconds,)), *(result.value for result in of)]
    settings = [made.settings, *(result.details for result in of)]
    kinds: list[tuple[list[Any], Any, str]] = [
        (words, str, "text"),
        (numbers, int | float, "number"),
        (settings, dict, "dictionary"),
    ]
    for values, kind, what in kinds:
        for value in values:
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(f"{str(value)[:60]} is no {what}")
    for number in numbers:
        float(number)  # OverflowError for an integer of a thousand digits, of which no mean can be taken
    return made


def _depth(value: Any) -> int:
    """How deep a value of JSON is nested."""
    depth, level = 0, [value]
    while level := [x for v in level if isinstance(v, dict | list) for x in (v.values() if isinstance(v, dict) else v)]:
        depth += 1
    return depth
