"""What a person sees of long work: bars on a terminal, a line an epoch elsewhere."""

import math
import multiprocessing
import time
from types import TracebackType
from typing import Any, Self

import lightning
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from recipes.others import Others
from recipes.ranks import cores
from recipes.terminal import CONSOLE, say
from stec.core.learner import Learner

WATCHED = 20.0  # seconds of training before it is told how long the whole will take
CROWDED = 0.5  # cores that others take, from which on they are named


def duration(seconds: float) -> str:
    """In the units that a person plans by.

    >>> [duration(seconds) for seconds in (41.2, 754, 8_000, 200_000)]
    ['41 s', '13 min', '2 h 13 min', '2 days 8 h']
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} days {hours % 24} h"


class Forecast:
    """Once, some time after the first step, how long all steps will take at this speed, and what may slow them."""

    def __init__(self, step: int) -> None:
        self._step, self._start, self._others = step, time.monotonic(), Others()
        self._told = False

    def tell(self, step: int, steps: int) -> str:
        """The line to be said after `step` of `steps`; empty while it is too early, and from then on."""
        elapsed = time.monotonic() - self._start
        if self._told or step == self._step or elapsed < WATCHED:
            return ""
        self._told = True
        each, others, threads = elapsed / (step - self._step), self._others.cores(), torch.get_num_threads()
        left = steps - step
        line = f"{each:.3g} s a step: {duration(each * left)} for the other {left:,} of {steps:,} steps"
        ours = multiprocessing.active_children()  # workers, whose time others would be blamed for
        if others < CROWDED or ours or torch.cuda.is_available() or torch.distributed.is_initialized():
            return line
        line += f". Other programs take {others:.1f} of {cores()} cores"
        # Threads that share a step wait for the one whose core another program has.
        return f"{line}; with OMP_NUM_THREADS=1 they slow it down less" if threads > 1 else line


class EpochProgress(lightning.Callback):
    """A bar for reading and one for training, with the last losses; on no terminal, one line an epoch."""

    def __init__(self, *, quiet: bool = False, reading: str = "reading", training: str = "pretraining") -> None:
        self.quiet = quiet
        self.label = reading
        self.training = training
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=CONSOLE,
            disable=quiet or not CONSOLE.is_terminal,
        )
        self._reading: Any = None
        self._training: Any = None
        self._forecast: Forecast | None = None
        self._epoch_start = 0.0

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def headline(self, line: str) -> None:
        """What begins now."""
        if not self.quiet:
            say(line)

    def reading(self, done: int, total: int) -> None:
        """Files read so far."""
        if self._reading is None:
            self._reading = self.bars.add_task(self.label, total=total, losses="")
        self.bars.update(self._reading, completed=done)

    def on_train_start(self, trainer: lightning.Trainer, learner: lightning.LightningModule) -> None:
        """Say where a run that was interrupted goes on: the checkpoint is read by now."""
        done, steps, epochs = trainer.global_step, math.ceil(trainer.estimated_stepping_batches), trainer.max_epochs
        if done and epochs and not self.quiet:
            say(f"going on from step {done:,} of {steps:,}, epoch {done * epochs // steps + 1} of {epochs}")

    def on_train_epoch_start(self, trainer: lightning.Trainer, learner: lightning.LightningModule) -> None:
        self._epoch_start = time.monotonic()
        if self._training is None:
            self._training = self.bars.add_task(self.training, total=trainer.estimated_stepping_batches, losses="")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, learner: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.bars.update(self._training, completed=trainer.global_step, losses=_losses(learner))
        if self._forecast is None:  # the first step, which may compile, tells nothing
            self._forecast = Forecast(trainer.global_step)
        line = self._forecast.tell(trainer.global_step, math.ceil(trainer.estimated_stepping_batches))
        if line and not self.quiet:
            say(line)

    def on_train_epoch_end(self, trainer: lightning.Trainer, learner: lightning.LightningModule) -> None:
        assert isinstance(learner, Learner)
        learner.read_terms()
        if not self.quiet and not CONSOLE.is_terminal:
            seconds = time.monotonic() - self._epoch_start
            say(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {_losses(learner)}  {seconds:.1f} s")


def _losses(learner: lightning.LightningModule) -> str:
    assert isinstance(learner, Learner)
    return "  ".join(
        f"{name} {100 * value:.1f} %" if name == "online" else f"{name} {value:.3f}"
        for name, value in learner.last.items()
    )
