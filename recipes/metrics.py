"""One metrics.csv for a run, however often it is interrupted: rows after the checkpoint are taken back."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only


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
            with path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if row["step"] and int(row["step"]) <= step]
        self._columns = list(rows[0]) if rows else []
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            if rows:
                writer = csv.DictWriter(file, self._columns)
                writer.writeheader()
                writer.writerows(rows)

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row, at once on the disk: little is lost with a killed process."""
        row = {"step": step, **metrics}
        with self.path.open("a", newline="") as file:
            if not self._columns:
                self._columns = list(row)
                csv.writer(file).writerow(self._columns)
            csv.DictWriter(file, self._columns).writerow(row)

    def log_hyperparams(self, *args: Any) -> None:
        """The configuration lies in config.json."""
