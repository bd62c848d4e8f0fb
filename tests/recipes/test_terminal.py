"""How a command ends: in one line, without a traceback, whatever a file's name holds."""

import pytest

from recipes.terminal import command


def _raise(error: BaseException) -> None:
    raise error


def test_a_mistake_ends_in_one_line_that_the_terminal_only_shows() -> None:
    with pytest.raises(SystemExit) as ended:
        command(lambda: _raise(ValueError("/data/a\x1b[2J\rb.jpg has no size\ncure: another file")))
    assert ended.value.code == "error: /data/a?[2J?b.jpg has no size\ncure: another file"


def test_only_what_was_named_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        command(lambda: _raise(KeyError("a")), RuntimeError)
    with pytest.raises(SystemExit, match="error: a"):
        command(lambda: _raise(RuntimeError("a")), RuntimeError)


def test_an_interruption_says_what_goes_on() -> None:
    with pytest.raises(SystemExit, match=r"^saved at step 3$"):
        command(lambda: _raise(KeyboardInterrupt("saved at step 3")), interrupted="the same command goes on")
    with pytest.raises(SystemExit, match=r"^the same command goes on$"):
        command(lambda: _raise(KeyboardInterrupt()), interrupted="the same command goes on")


def test_a_status_passes() -> None:
    with pytest.raises(SystemExit) as ended:
        command(lambda: _raise(SystemExit(143)))
    assert ended.value.code == 143
