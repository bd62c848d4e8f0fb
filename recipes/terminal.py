"""Lines and small tables for a person. Apart from recipes.progress, which takes lightning's seconds to import."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

CONSOLE = Console()


def say(line: str) -> None:
    """One line for the person at the terminal."""
    CONSOLE.print(line, highlight=False, soft_wrap=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str) -> None:
    """A small table: the first column names, the others numbers."""
    grid = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        grid.add_column(name, justify="left" if i == 0 else "right", overflow="fold", min_width=min(8, len(name)))
    for row in rows:
        grid.add_row(*row)
    CONSOLE.print(grid)
