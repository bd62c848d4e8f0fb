"""How a run ends before its end: asked by a signal, put back into SLURM's queue, without its disk or its processes."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any, Self

import lightning

from recipes.ranks import end_others, lost_another
from recipes.terminal import say
from stec.core.learner import NonFiniteLoss

_GO_ON: ContextVar[str | None] = ContextVar("go_on", default=None)


@contextlib.contextmanager
def going_on_by(words: str) -> Iterator[None]:
    """Within it, trainings that end early say `words`, such as "the same command goes on", of how to go on.

    For commands that train more than one run, or in a way that `--resume FOLDER` of another one does not know: whoever
    trains knows the folder, and the command alone how a person goes on with it.
    """
    token = _GO_ON.set(words)
    try:
        yield
    finally:
        _GO_ON.reset(token)


def _go_on(folder: Path) -> str:
    return _GO_ON.get() or f"go on with --resume {folder}"


class Stopped(SystemExit):
    """Asked to stop by a signal, and saved; the process ends with 128 + the signal's number, as is custom."""

    def __init__(self, received: signal.Signals, step: int) -> None:
        super().__init__(128 + received)
        self.received = received
        self.step = step


class Signals:
    """SIGTERM, and SIGUSR1 in a SLURM job, are kept in mind until a step is finished, in place of ending it."""

    def __init__(self) -> None:
        self.received = 0
        self._kinds = [signal.SIGTERM, *([signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else [])]
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other may
            self._before = {kind: signal.signal(kind, self._note) for kind in self._kinds}
        return self

    def keep_from(self, trainer: lightning.Trainer) -> None:
        """Leave them to us: lightning would save within a step, in a place of its own, and ask others within theirs."""
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def _note(self, received: int, frame: FrameType | None) -> None:
        self.received = received


@contextlib.contextmanager
def endings(folder: Path, trainer: lightning.Trainer) -> Iterator[None]:
    """Say of a training that ends early what is kept and how to go on, and end the processes that it started."""
    try:
        yield
    except Stopped as stop:
        if not trainer.is_global_zero:
            raise SystemExit(0) from None  # the first process tells; a code of another would count as its death
        queued = f"{requeue()}; " if stop.received == signal.SIGUSR1 else ""
        say(f"{stop.received.name}: step {stop.step} is saved; {queued}{_go_on(folder)}")
        raise
    except SystemExit:  # what lightning makes of Ctrl+C
        saved = any((folder / "checkpoints").glob("*.ckpt"))
        cure = _go_on(folder) if saved else _GO_ON.get() or "before the first checkpoint: start again"
        raise KeyboardInterrupt(f"interrupted; {cure}") from None
    except RuntimeError as error:
        if trainer.world_size == 1 or isinstance(error, NonFiniteLoss) or not lost_another(error):
            end_others(trainer, wait=0)
            raise
        died = "; ".join(end_others(trainer, wait=1)) or "another process of this run died or fell silent"
        reason = str(error).splitlines()[0][:120]
        raise RuntimeError(f"{died} (seen by process {trainer.global_rank}: {reason}). {kept(folder)}") from error
    except Exception:
        end_others(trainer, wait=0)
        raise


@contextlib.contextmanager
def disk_failures(folder: Path) -> Iterator[None]:
    """RuntimeError in place of an OSError: what could not be written or read, what is kept, and how to go on."""
    try:
        yield
    except OSError as error:
        name = error.filename or "a file of the run"
        raise RuntimeError(f"{name}: {error.strerror or error}. The run stopped. {kept(folder)}") from error


def kept(folder: Path) -> str:
    """What a run that failed leaves to go on from, for a person."""
    names = []
    with contextlib.suppress(OSError):
        names = sorted((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    what = f"{names[-1].name} is kept" if names else f"There is no checkpoint in {folder}"
    return f"{what}; once the cause is mended, {_go_on(folder)}"


def requeue() -> str:
    """Put this SLURM job, or this task of its array, back into the queue; what came of it, for a person."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"job {job} could not be put back into the queue ({error})"
    if done.returncode:
        return f"job {job} could not be put back into the queue ({(done.stderr or done.stdout).strip()})"
    return f"job {job} is back in the queue"
