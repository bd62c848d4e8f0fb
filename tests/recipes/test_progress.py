"""What a person is told of long work, with a clock of our own."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from recipes import progress
from recipes.progress import EpochProgress, Forecast, duration


class Clock:
    """Every step takes two seconds; others have taken 1.5 cores."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, others: float) -> None:
        self.now = 100.0
        monkeypatch.setattr("recipes.progress.time.monotonic", lambda: self.now)
        monkeypatch.setattr(progress, "Others", lambda: SimpleNamespace(cores=lambda: others))
        monkeypatch.setattr(progress, "cores", lambda: 4)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 4)


def told(clock: Clock, steps: int = 1_000) -> dict[int, str]:
    """What is said after which step, of 40 steps after the first."""
    forecast, lines = Forecast(1), {}
    for step in range(2, 42):
        clock.now += 2.0
        if line := forecast.tell(step, steps):
            lines[step] = line
    return lines


def test_once_after_twenty_seconds_the_rest_is_foretold(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(Clock(monkeypatch, others=0.1)) == {11: "2 s a step: 33 min for the other 989 of 1,000 steps"}


def test_other_programs_are_named_with_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, others=1.5)
    (line,) = told(clock).values()
    assert line.endswith(". Other programs take 1.5 of 4 cores; with OMP_NUM_THREADS=1 they slow it down less")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    (line,) = told(clock).values()
    assert line.endswith("Other programs take 1.5 of 4 cores")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (line,) = told(clock).values()
    assert "Other programs" not in line


@pytest.mark.parametrize(("quiet", "expected"), [(False, 1), (True, 0)])
def test_the_bar_says_it_once_and_short_runs_say_nothing(
    quiet: bool, expected: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch, others=0.0)
    learner: Any = SimpleNamespace(last={"loss": 1.5, "online": 0.25})
    monkeypatch.setattr(progress, "Learner", SimpleNamespace)
    for steps, seconds in ((3, 9.0), (400, 9.0)):
        shown = EpochProgress(quiet=quiet)
        trainer: Any = SimpleNamespace(global_step=0, estimated_stepping_batches=float(steps), max_epochs=1)
        shown.on_train_epoch_start(trainer, learner)
        for trainer.global_step in range(1, steps + 1):
            clock.now += seconds
            shown.on_train_batch_end(trainer, learner, None, None, 0)
    said = [line for line in capsys.readouterr().out.splitlines() if "a step" in line]
    assert said == ["9 s a step: 59 min for the other 396 of 400 steps"] * expected
    assert progress._losses(learner) == "loss 1.500  online 25.0 %"


@pytest.mark.parametrize(
    ("step", "quiet", "said"),
    [
        (240, False, "going on from step 240 of 936, epoch 7 of 25\n"),
        (74, False, "going on from step 74 of 936, epoch 2 of 25\n"),
        (75, False, "going on from step 75 of 936, epoch 3 of 25\n"),
        (240, True, ""),
        (0, False, ""),
    ],
)
def test_a_run_that_is_taken_up_says_where(
    step: int, quiet: bool, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer: Any = SimpleNamespace(global_step=step, estimated_stepping_batches=936.0, max_epochs=25)
    EpochProgress(quiet=quiet).on_train_start(trainer, None)  # type: ignore[arg-type]
    assert capsys.readouterr().out == said


def test_durations_in_the_units_of_plans() -> None:
    assert [duration(s) for s in (89, 90, 3_569, 3_570, 172_799, 173_000)] == [
        "89 s", "2 min", "59 min", "1 h 0 min", "2 days 0 h", "2 days 0 h",
    ]  # fmt: skip
