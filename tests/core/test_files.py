"""A folder with one writer."""

import threading
import time
from pathlib import Path

import pytest

from stec.core.files import only_writer


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    second = only_writer(tmp_path, doing="writing to")
    with only_writer(tmp_path, doing="writing to"), pytest.raises(ValueError, match="another run is writing to"):
        second.__enter__()
    with only_writer(tmp_path, doing="writing to"):
        pass


def test_it_waits_for_one_that_is_about_to_end(tmp_path: Path) -> None:
    held, free = threading.Event(), threading.Event()

    def first() -> None:
        with only_writer(tmp_path, doing="training in"):
            held.set()
            free.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    held.wait(10)
    threading.Timer(0.3, free.set).start()
    start = time.monotonic()
    with only_writer(tmp_path, doing="training in", patience=10):
        assert 0.2 < time.monotonic() - start < 9
    thread.join()
