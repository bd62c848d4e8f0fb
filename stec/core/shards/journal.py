"""The journal of an unfinished folder of shards: a line for each shard that is on the disk."""

import json
import os
from pathlib import Path
from typing import Any


def read_journal(journal: Path) -> dict[str, dict[str, Any]]:
    """The shards that an interrupted run finished, by name; what is torn does not count. Makes the file."""
    journal.touch()
    lines: dict[str, dict[str, Any]] = {}
    for text in journal.read_bytes().splitlines(keepends=True):
        try:
            line = json.loads(text) if text.endswith(b"\n") else {}
            lines[line["name"]] = line
        except (ValueError, KeyError, TypeError):
            continue
    return lines


def append(journal: Path, line: dict[str, Any]) -> None:
    """A line more; it begins on a line of its own where the last one was torn."""
    with journal.open("ab") as file:
        file.write(b"\n" + json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def is_whole(folder: Path, line: dict[str, Any], digest: str) -> bool:
    """Whether the shard of a line is there, of its size, and of the sources that `digest` stands for."""
    path = folder / line["name"]
    return bool(line["digest"] == digest and path.is_file() and path.stat().st_size == line["bytes"])
