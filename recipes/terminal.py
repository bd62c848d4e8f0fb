"""Lines and small tables for a person. Apart from recipes.progress, which takes lightning's seconds to import."""

import sys
from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

CONSOLE = Console(markup=False, emoji=False)  # names of files and classes may hold brackets and colons


def visible(text: str) -> str:
    """Text of files and of their names, as a terminal shows it and does not obey it.

    >>> visible("a\\x1b[2Jb")
    'a?[2Jb'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def say(line: str) -> None:
    """One line for the person at the terminal."""
    CONSOLE.print(visible(line), highlight=False, soft_wrap=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str) -> None:
    """A small table: the first column names, the others numbers. Words stay whole, on a narrow terminal too."""
    grid = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    needed = 1
    for i, name in enumerate(header):
        words = [word for text in (name, *(row[i] for row in rows)) for word in text.split()]
        longest = max(map(len, words), default=0)
        grid.add_column(name, justify="left" if i == 0 else "right", min_width=longest)
        needed += longest + 2  # with a blank on each side
    for row in rows:
        grid.add_row(*map(visible, row))
    CONSOLE.print(grid, width=max(needed, CONSOLE.width), crop=False)


def command(main: Callable[[], object], *further: type[Exception], interrupted: str = "interrupted") -> None:
    """Run a command line: a ValueError, or one of `further`, ends it in one line and status 1, without a traceback.

    So does Ctrl+C, with what was raised for it or else `interrupted`. Messages can hold names of files and their
    words: they are shown, not obeyed.
    """
    mistakes: tuple[type[Exception], ...] = (ValueError, *further)
    try:
        main()
    except mistakes as mistake:
        sys.exit(visible(f"error: {mistake}"))
    except KeyboardInterrupt as interruption:
        sys.exit(visible(str(interruption) or interrupted))
