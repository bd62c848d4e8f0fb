"""Small trainings in processes of their own, which tests stop in every way, and what must be equal afterwards.

Processes are forked from one that has imported what they need: each begins in a moment.
"""

import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["recipes.vision.pretrain", "recipes.audio.pretrain"])

IMAGES = (
    "quickstart --width 4 --limit 64 --batch-size 16 --epochs 5 --warmup-epochs 1 --check-every 3 --precision 32-true "
    "--projection-hidden 16 --projection-out 8 --manipulation-hidden 16"
)
SPEECH = (
    "cpc --epochs 5 --channels 8 --context-dim 8 --window 5120 --batch-size 8 --batch-group 4 --projection-hidden 8 "
    "--projection-out 4 --normalisation channel --lr 1e-3 --precision 32-true --no-compiled --check-every 2"
)
# Speech takes its --corpus beside these.
KINDS = {
    "images": ("recipes.vision.pretrain", IMAGES),
    "queue": ("recipes.vision.pretrain", f"{IMAGES} --identity moco --momentum 0.9 --queue 48"),
    "momentum": ("recipes.vision.pretrain", f"{IMAGES} --identity byol --momentum 0.9 --predictor-hidden 16"),
    "speech": ("recipes.audio.pretrain", SPEECH),
}


def command(module: str, argv: list[str], log: Path, before: Callable[[], None] | None = None) -> None:
    """A program as a shell runs it, its output in a file; `before` prepares the process."""
    descriptor = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    if before:
        before()
    try:
        importlib.import_module(module).main(argv)
    except (ValueError, RuntimeError) as mistake:
        sys.exit(f"error: {mistake}")


def start(
    kind: str, folder: Path, *more: str, before: Callable[[], None] | None = None, resume: bool = False
) -> ForkServerProcess:
    """Begin the training of a kind, or go on with it, by one command; its output is added to FOLDER.log."""
    module, settings = KINDS[kind]
    argv = ["--resume", str(folder)] if resume else [*settings.split(), "--out", str(folder), "--go-on", *more]
    process = CONTEXT.Process(target=command, args=(module, argv, folder.with_suffix(".log"), before))
    process.start()
    return process


def log_of(folder: Path) -> str:
    """What the commands on a folder said, in one line."""
    return folder.with_suffix(".log").read_text().replace("\n", " ")


def finish(kind: str, folder: Path, *more: str, resume: bool = False) -> None:
    """Train to the end."""
    process = start(kind, folder, *more, resume=resume)
    process.join(240)
    assert process.exitcode == 0, log_of(folder)[-2000:]


class KillsItself:
    """Ends the process by SIGKILL in its nth writing of a file, when all bytes are there but not the name.

    Picklable, to be prepared in the process.
    """

    def __init__(self, nth: int) -> None:
        self.left = nth

    def __call__(self) -> None:
        os.fsync = self.count  # type: ignore[assignment]

    def count(self, descriptor: int) -> None:
        target = os.readlink(f"/proc/self/fd/{descriptor}")
        self.left -= ".ckpt" in target and target.endswith(".part")
        if self.left == 0:
            os.ftruncate(descriptor, 5_000)
            os.kill(os.getpid(), signal.SIGKILL)


class SignalsItself:
    """Sends the process a signal within the step after `step` steps, in an environment; picklable, as above."""

    def __init__(self, received: signal.Signals, step: int, environment: Mapping[str, str] | None = None) -> None:
        self.received, self.step, self.environment = received, step, dict(environment or {})

    def __call__(self) -> None:
        from stec.core.learner import Learner

        os.environ.update(self.environment)
        rank_zero_only.rank = int(os.environ.get("RANK", "0"))  # which a new process would have read when it imported
        plain = Learner.training_step

        def training_step(learner: Learner, batch: Any, batch_idx: int) -> torch.Tensor:
            if learner.global_step == self.step:
                os.kill(os.getpid(), self.received)
            return plain(learner, batch, batch_idx)

        Learner.training_step = training_step  # type: ignore[method-assign]


def state(folder: Path) -> dict[str, Any]:
    """The step and all state in the last checkpoint that decides on what follows."""
    path = max((folder / "checkpoints").glob("*.ckpt"), key=lambda p: int(p.stem.removeprefix("step=")))
    content = torch.load(path, weights_only=True)
    names = ("global_step", "epoch", "state_dict", "optimizer_states", "lr_schedulers", "stec")
    return {name: content[name] for name in names}


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two nested states differ, in any bit of a tensor."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return [] if same and one.numpy().tobytes() == other.numpy().tobytes() else [where]
    if isinstance(one, dict) and isinstance(other, dict):
        found = [] if list(one) == list(other) else [f"{where}: {list(one)} and {list(other)}"]
        return found + [d for key in one if key in other for d in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        found = [] if len(one) == len(other) else [f"{where}: {len(one)} and {len(other)}"]
        return found + [d for i, (a, b) in enumerate(zip(one, other)) for d in differences(a, b, f"{where}/{i}")]
    return [] if one == other else [f"{where}: {one} and {other}"]


def check_equal(folder: Path, unbroken: Path) -> None:
    """The rows of the losses and all state are those of the unbroken run."""
    assert (folder / "logs" / "metrics.csv").read_text() == (unbroken / "logs" / "metrics.csv").read_text()
    assert differences(state(folder), state(unbroken)) == []
    assert not list(folder.rglob("*.part"))
