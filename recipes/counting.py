"""How far counted work has come: a bar on a terminal, a line for each tenth elsewhere."""

from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from recipes.terminal import CONSOLE, say


class Counting:
    """Called with what is done and how much there is, within a `with`; `what` names the work: "decoding files"."""

    def __init__(self, what: str) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self.bar = Progress(TextColumn(what), *columns, console=CONSOLE, disable=not CONSOLE.is_terminal)
        self.what = what
        self._task = self.bar.add_task(what, total=None)
        self._tenth = 0

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """So many are done."""
        self.bar.update(self._task, completed=done, total=total)
        if not CONSOLE.is_terminal and 10 * done // total > self._tenth:
            self._tenth = 10 * done // total
            say(f"{self.what}: {done} of {total}")
