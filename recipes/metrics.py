"""The logs of a run: one metrics.csv, however often it is interrupted, and TensorBoard's files."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.summary.writer import event_file_writer

from stec.core.files import whole


def last_row(path: Path, names: Sequence[str]) -> dict[str, float]:
    """What was logged last under these names; nothing where there is no row with all of them."""
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []
    return {name: float(rows[-1][name]) for name in names} if rows and set(names) <= rows[-1].keys() else {}


class MetricsFile(Logger):
    """Writes each read of the losses as a row of `path`; begins after `step`, dropping later rows of an earlier try."""

    def __init__(self, path: Path, *, step: int) -> None:
        super().__init__()
        self.path = path
        self._columns: list[str] = []
        if getattr(rank_zero_only, "rank", 0) == 0:
            self._take_back(path, step)

    def _take_back(self, path: Path, step: int) -> None:
        rows: list[dict[str, str]] = []
        if path.is_file():
            lines = path.read_text(errors="replace").splitlines(keepends=True)
            if lines and not lines[-1].endswith("\n"):
                lines.pop()  # torn by a loss of power, or a full disk
            read = csv.DictReader(line.replace("\0", "") for line in lines)
            whole_rows = [row for row in read if None not in row and None not in row.values()]  # a field for each name
            rows = [row for row in whole_rows if row.get("step", "").isdecimal() and int(row["step"]) <= step]
        self._columns = list(rows[0]) if rows else []
        path.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO(newline="")
        if rows:
            writer = csv.DictWriter(text, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        with whole(path) as file:
            file.write(text.getvalue().encode())

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row, at once handed to the system: nothing is lost with a killed process."""
        row = {"step": step, **metrics}
        with self.path.open("a", newline="") as file:
            if not self._columns:
                self._columns = list(row)
                csv.writer(file).writerow(self._columns)
            csv.DictWriter(file, self._columns).writerow(row)

    def log_hyperparams(self, *args: Any) -> None:
        """The configuration lies in config.json."""

    @rank_zero_only
    def sync(self) -> None:
        """See to it that the rows are on the disk, before a checkpoint that counts on them."""
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())


class Events(TensorBoardLogger):
    """TensorBoard's files without the name of the host, which tensorboard puts into theirs."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        there = event_file_writer.socket
        event_file_writer.socket = SimpleNamespace(gethostname=lambda: "host")
        try:
            return super().experiment
        finally:
            event_file_writer.socket = there
