"""Small trainings in processes of their own, which tests stop in every way, and what must be equal afterwards.

Processes are forked from one that has imported what they need: each begins in a moment.
"""

import importlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.plugins import MixedPrecision
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
    "fp16": ("recipes.vision.pretrain", IMAGES.replace("32-true", "16-mixed")),  # with `HalfPrecision`
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
    before = HalfPrecision(before) if kind == "fp16" else before
    process = CONTEXT.Process(target=command, args=(module, argv, folder.with_suffix(".log"), before))
    process.start()
    return process


def log_of(folder: Path) -> str:
    """What the commands on a folder said, in one line."""
    return folder.with_suffix(".log").read_text().replace("\n", " ")


def await_rows(folder: Path, n: int, alive: Callable[[], bool]) -> None:
    """Wait until the log of the losses has n rows."""
    log = folder / "logs" / "metrics.csv"
    while not log.is_file() or len(log.read_text().splitlines()) <= n:
        assert alive(), log_of(folder)
        time.sleep(0.002)


def finish(kind: str, folder: Path, *more: str, resume: bool = False) -> None:
    """Train to the end."""
    process = start(kind, folder, *more, resume=resume)
    process.join(240)
    assert process.exitcode == 0, log_of(folder)[-2000:]


def elastic(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun --nproc-per-node WORLD tells each process."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    numbers |= {"GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1, "MASTER_PORT": port}
    place = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "none"}
    return {**{name: str(value) for name, value in numbers.items()}, **place}


def free_port() -> int:
    """A port of the loopback that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def start_several(
    kind: str, folder: Path, *more: str, world: int = 2, before: Mapping[int, Callable[[], None]] | None = None
) -> list[ForkServerProcess]:
    """Begin a training by several processes, as torchrun does, or go on with it; `before` prepares some of them."""
    port = free_port()
    return [
        start(
            kind,
            folder,
            "--devices",
            str(world),
            *more,
            before=Prepared(elastic(rank, world, port), (before or {}).get(rank)),
        )
        for rank in range(world)
    ]


def finish_several(kind: str, folder: Path, *more: str, world: int = 2) -> None:
    """Train to the end by several processes."""
    processes = start_several(kind, folder, *more, world=world)
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == world * [0], log_of(folder)[-2000:]


def slurm(folder: Path, *, rank: int = 0, world: int = 1, code: int = 0) -> dict[str, str]:
    """The environment of a task of a SLURM job whose `scontrol` writes down in FOLDER/calls how it is called."""
    tool = folder / "bin" / "scontrol"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\necho no such job >&2\nexit {code}\n')
    tool.chmod(0o755)
    job = {"SLURM_JOB_ID": "1234", "SLURM_NTASKS": world, "SLURM_NTASKS_PER_NODE": world, "SLURM_NNODES": 1}
    place = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": 0, "SLURM_JOB_NAME": "stec"}
    return {
        **{name: str(value) for name, value in {**job, **place}.items()},
        "PATH": f"{tool.parent}:{os.environ['PATH']}",
    }


class Prepared:
    """Gives the process an environment, which a new process would have read when it imported; picklable."""

    def __init__(self, environment: Mapping[str, str], then: Callable[[], None] | None = None) -> None:
        self.environment, self.then = dict(environment), then

    def __call__(self) -> None:
        os.environ.update(self.environment)
        ranks = (os.environ[name] for name in ("RANK", "SLURM_PROCID") if name in os.environ)
        rank_zero_only.rank = int(next(ranks, "0"))  # type: ignore[attr-defined]
        if self.then:
            self.then()


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


class HalfPrecision:
    """Trains in fp16 with a gradient scaler, which lightning has on GPUs alone; picklable, as above.

    The scale starts too high for fp16, and rises after three good steps: both its numbers change all the time.
    """

    def __init__(self, then: Callable[[], None] | None = None) -> None:
        self.then = then

    def __call__(self) -> None:
        plain = lightning.Trainer

        def trainer(*, precision: str, plugins: list[Any], **more: Any) -> lightning.Trainer:
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=3)  # type: ignore[attr-defined]
            return plain(plugins=[*plugins, MixedPrecision("16-mixed", "cpu", scaler)], **more)

        lightning.Trainer = trainer  # type: ignore[assignment, misc]
        if self.then:
            self.then()


class SignalsItself:
    """Sends the process a signal within the step after `step` steps; picklable, as above."""

    def __init__(self, received: signal.Signals, step: int) -> None:
        self.received, self.step = received, step

    def __call__(self) -> None:
        from stec.core.learner import Learner

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
    names = ("global_step", "epoch", "state_dict", "optimizer_states", "lr_schedulers", "stec", "MixedPrecision")
    return {name: content[name] for name in names if name in content}  # the last is the gradient scaler's


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
