"""What a pretraining run is, whatever the modality: training into a folder, taken up again where it ended."""

import dataclasses
import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy

from recipes.differing import differing
from recipes.metrics import Events, MetricsFile
from recipes.progress import EpochProgress
from recipes.ranks import TIMEOUT, JointStatistics, OrderedGradients, is_first, machines
from recipes.run_folder import (
    check_output,
    holds_checkpoints,
    last_checkpoint,
    only_run,
    plain,
    read_json,
    sweep,
    write_json,
)
from recipes.saving import MINUTES, Saver, WholeFiles
from recipes.stopping import Signals, disk_failures, endings
from stec.core.checkpoints import load_checkpoint
from stec.core.learner import Learner
from stec.core.memory import keep_freed_memory, return_freed_memory


class Batches(Protocol):
    """The order of the data, which goes on where `steps_done` says."""

    steps_done: Any

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Schedule(Protocol):
    """What every configuration says of how long and on what a run trains."""

    @property
    def epochs(self) -> int: ...
    @property
    def warmup_epochs(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...
    @property
    def check_every(self) -> int: ...
    @property
    def devices(self) -> int: ...


@dataclasses.dataclass
class Outcome:
    """What a finished run leaves in memory."""

    learner: Learner
    checkpoint: Path
    seconds: float
    steps_per_epoch: int


def quieten() -> None:
    """Keep lightning's greetings, and warnings that concern its own code, off the terminal."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        r".*isinstance\(treespec, LeafSpec\).*",
        "The number of training batches",
        "You're resuming from a checkpoint that ended before the epoch ended",  # our loaders go on where it ended
        "Be aware that when using `ckpt_path`",  # checkpoints of before had another callback that wrote them
        ".*does not have many workers",
        "TensorFloat32 tensor cores",  # of views and losses all digits count; convolutions use them already
    ):
        warnings.filterwarnings("ignore", message)


def check_schedule(config: Schedule) -> None:
    """ValueError where the lengths of a run make no sense."""
    for name in ("epochs", "checkpoint_every", "check_every"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; need at least 1")
    if config.warmup_epochs >= config.epochs:
        raise ValueError(
            f"{config.warmup_epochs} warm-up epochs of {config.epochs}: lower --warmup-epochs or train longer"
        )


def _take_up(settings: Mapping[str, Any], batches: Batches, folder: Path) -> tuple[Path, int]:
    """The checkpoint to go on from, and its step. ValueError where it was made with other settings or data."""
    checkpoint = last_checkpoint(folder)
    read = load_checkpoint(checkpoint)
    there, order = read.record.get("config"), read.record.get("batches")
    if not isinstance(there, dict) or not isinstance(order, dict):
        raise ValueError(f"{checkpoint} does not tell its settings and its data; use another one, or start again")
    batches.load_state_dict(order)
    # What an older version did not have yet stands at its default.
    shared = {name: value for name, value in settings.items() if name in there}
    if other := differing(there, shared):
        raise ValueError(f"{checkpoint} was made with other settings: {'; '.join(other)}. Give those, or another --out")
    return checkpoint, read.step


def fit(
    learner: Learner,
    loader: Any,
    batches: Batches,
    folder: Path,
    *,
    config: Schedule,
    precision: Any,
    paths: Mapping[str, Path | None],
    progress: EpochProgress,
    resume: bool,
    checkpoint_minutes: float | None = None,
    callbacks: Sequence[lightning.Callback] = (),
) -> tuple[Path, float]:
    """Train to the end, from the start or from the last checkpoint of `folder`: the last checkpoint, and the seconds.

    To resume a run that was stopped before its first checkpoint is to start it. `learner.record["config"]` holds the
    settings, which a resumed run must share with its checkpoint; `paths`, where the data lie, and `checkpoint_minutes`
    (None: those of config.json, or 15) are kept in config.json alone. ValueError where the checkpoint was made with
    other settings, RuntimeError where the disk or another process fails, SystemExit `Stopped` where a signal asks for
    it; each says what is kept, and how to go on.
    """
    settings: dict[str, Any] = learner.record["config"]
    nodes = machines(config.devices)
    several = nodes * config.devices > 1
    if not torch.cuda.is_available():  # micro-batches are for where there is little of it
        (keep_freed_memory if settings.get("micro_batch") is None else return_freed_memory)()
    start = time.monotonic()
    with disk_failures(folder), only_run(folder), Signals() as signals:
        if not resume and is_first():
            check_output(folder)  # again: another run may have ended in it while this one waited
        checkpoint, done = _take_up(settings, batches, folder) if resume and holds_checkpoints(folder) else (None, 0)
        if checkpoint_minutes is None:
            there = read_json(folder) if resume and (folder / "config.json").is_file() else {}
            checkpoint_minutes = float(there.get("checkpoint_minutes", MINUTES))
        if is_first():
            sweep(folder)
            if checkpoint is None:
                where = {name: path and path.absolute() for name, path in paths.items()}  # to go on from any folder
                write_json({**settings, **plain(where), "checkpoint_minutes": checkpoint_minutes}, folder)
        every, check_every = config.checkpoint_every, config.check_every
        saver = Saver(folder, every=every, minutes=checkpoint_minutes, check_every=check_every, signals=signals)
        trainer = lightning.Trainer(
            accelerator="auto",
            devices=config.devices,
            num_nodes=nodes,
            strategy=DDPStrategy(timeout=TIMEOUT) if several else "auto",
            plugins=[WholeFiles(), *([JointStatistics()] if several and not torch.cuda.is_available() else [])],
            sync_batchnorm=several and torch.cuda.is_available(),
            precision=precision,
            max_epochs=config.epochs,
            logger=[
                MetricsFile(folder / "logs" / "metrics.csv", step=done),
                Events(folder, name="", version="logs", purge_step=done + 1 if checkpoint else None),
            ],
            callbacks=[*callbacks, OrderedGradients(), saver, progress],
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,  # where lightning looks for what another of its programs left in a SLURM job
        )
        signals.keep_from(trainer)
        batches.steps_done = lambda: trainer.global_step
        with endings(folder, trainer):
            trainer.fit(learner, loader, ckpt_path=checkpoint, weights_only=True)
    # Not the saver's own word: a run that was finished before has saved nothing now.
    return last_checkpoint(folder), time.monotonic() - start
