"""What other programs take of the machine, with processor times of our own."""

import pytest

from recipes import others


@pytest.mark.parametrize(
    ("busy", "mine", "expected"),
    [(10.0, 6.0, 1.0), (10.0, 0.0, 2.5), (2.0, 6.0, 0.0)],  # the last: the two are not read at one moment
)
def test_the_own_time_is_not_that_of_others(
    busy: float, mine: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds, times = iter([50.0, 54.0]), iter([(100.0, 30.0), (100.0 + busy, 30.0 + mine)])
    monkeypatch.setattr("recipes.others.time.perf_counter", lambda: next(seconds))
    monkeypatch.setattr(others, "processor_seconds", lambda: next(times))
    assert others.Others().cores() == expected
