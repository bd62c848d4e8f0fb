"""When a run writes a checkpoint and how: whole files, on the disk; within an epoch; and when it is asked to stop."""

import re
import signal
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from recipes.metrics import MetricsFile
from recipes.progress import EpochProgress
from recipes.ranks import Agreement
from recipes.stopping import Signals, Stopped
from stec.core.files import whole

KEPT = 2  # checkpoints: the one before the last stays, should the last be torn
MINUTES = 15.0  # between two checkpoints, where epochs are longer


class WholeFiles(TorchCheckpointIO):
    """Lightning's checkpoint files, written whole or not at all; its own pass through another file system."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write to a folder that is there: one that vanished is not made again under a mount's empty place."""
        with whole(path) as file:
            torch.save(checkpoint, file)


class Saver(Checkpoint):
    """Writes `folder`/checkpoints/step=N.ckpt: after epochs, within long ones, at the end, and when asked to stop.

    That is after every `every` epochs, and `minutes` after the last one at a read of the losses, which come every
    `check_every` steps. The last `KEPT` stay. A signal that `signals` has received ends the training after the step:
    SystemExit `Stopped`.
    """

    def __init__(self, folder: Path, *, every: int, minutes: float, check_every: int, signals: Signals) -> None:
        self.dirpath = folder / "checkpoints"
        self.every = every
        self.minutes = minutes
        self.check_every = check_every
        self.signals = signals
        self.saved = 0  # the step of the last checkpoint
        self._last_time = 0.0
        self._agreement: Agreement | None = None
        self._asked = 0  # the signal and whether it is time, as all processes know since the last step
        self._due = 0

    def on_train_start(self, trainer: lightning.Trainer, learner: lightning.LightningModule) -> None:
        self._agreement = Agreement()
        self._agreement.check_same(trainer.global_step)
        self.saved = trainer.global_step
        self._last_time = time.monotonic()
        if trainer.is_global_zero:
            self.dirpath.mkdir(parents=True, exist_ok=True)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EpochProgress) and trainer.global_step:
                callback.on_train_epoch_start(trainer, learner)  # lightning leaves it out within an epoch

    def on_train_batch_end(
        self, trainer: lightning.Trainer, learner: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._agreement is not None
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        late = time.monotonic() - self._last_time >= 60 * self.minutes
        due = late and (last or trainer.global_step % self.check_every == 0)
        self._asked, self._due = self._agreement.largest([self.signals.received, int(due)])
        if not last:  # then the end of the epoch follows at once, and has its own place in lightning's state
            self._save_and_stop(trainer, due=False)

    def on_train_epoch_end(self, trainer: lightning.Trainer, learner: lightning.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch != trainer.max_epochs:  # then the end of training follows, and the record of the run
            self._save_and_stop(trainer, due=epoch % self.every == 0)

    def _save_and_stop(self, trainer: lightning.Trainer, *, due: bool) -> None:
        if due or self._due or self._asked:
            self.save(trainer)
        if self._asked:
            raise Stopped(signal.Signals(self._asked), trainer.global_step)

    def on_train_end(self, trainer: lightning.Trainer, learner: lightning.LightningModule) -> None:
        self.save(trainer)

    def save(self, trainer: lightning.Trainer) -> None:
        """Write the state after this step, unless it is written, and remove the oldest."""
        if self.saved == trainer.global_step:
            return
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.sync()
        trainer.save_checkpoint(self.dirpath / f"step={trainer.global_step}.ckpt")
        self.saved, self._last_time = trainer.global_step, time.monotonic()
        if trainer.is_global_zero:
            # A torn one of a later step is no good state, and is replaced when its step comes again.
            there = [path for path in checkpoints(self.dirpath) if 0 <= step_of(path) <= trainer.global_step]
            for path in there[KEPT:]:
                path.unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, that of the last step first; of others than ours, the newest first."""
    return sorted(folder.glob("*.ckpt"), key=lambda path: (step_of(path), _written(path)), reverse=True)


def _written(path: Path) -> float:
    """When; 0 where the first process has removed it since."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def step_of(path: Path) -> int:
    """The step that a checkpoint's name tells; -1 for none."""
    found = re.fullmatch(r"step=(\d+)", path.stem)
    return int(found[1]) if found else -1
