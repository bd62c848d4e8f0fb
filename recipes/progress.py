"""What a person sees of long work: bars on a terminal, a line an epoch elsewhere."""

import time
from types import TracebackType
from typing import Any, Self

import lightning
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from recipes.terminal import CONSOLE, say
from stec.core.learner import Learner


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

    def on_train_epoch_start(self, trainer: lightning.Trainer, learner: lightning.LightningModule) -> None:
        self._epoch_start = time.monotonic()
        if self._training is None:
            self._training = self.bars.add_task(self.training, total=trainer.estimated_stepping_batches, losses="")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, learner: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.bars.update(self._training, completed=trainer.global_step, losses=_losses(learner))

    def on_train_epoch_end(self, trainer: lightning.Trainer, learner: lightning.LightningModule) -> None:
        assert isinstance(learner, Learner)
        learner.read_terms()
        if not self.quiet and not CONSOLE.is_terminal:
            seconds = time.monotonic() - self._epoch_start
            say(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {_losses(learner)}  {seconds:.1f} s")


def _losses(learner: lightning.LightningModule) -> str:
    assert isinstance(learner, Learner)
    return "  ".join(f"{name} {value:.3f}" for name, value in learner.last.items())
