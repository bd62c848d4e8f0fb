"""What a pretraining run is, whatever the modality: a folder with settings, logs and checkpoints; taken up again."""

import dataclasses
import json
import logging
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from recipes.metrics import MetricsFile
from recipes.progress import EpochProgress
from recipes.terminal import say
from stec.core.checkpoints import load_checkpoint
from stec.core.learner import Learner


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
        "Checkpoint directory .* exists and is not empty",
        ".*does not have many workers",
    ):
        warnings.filterwarnings("ignore", message)


def plain(value: Any) -> Any:
    """Dictionaries, lists, strings and numbers in place of dataclasses, tuples and paths."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def is_first() -> bool:
    """Whether this is the first of the processes that run this command together."""
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


def check_schedule(config: Schedule) -> None:
    """ValueError where the lengths of a run make no sense."""
    for name in ("epochs", "checkpoint_every", "check_every"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; need at least 1")
    if config.warmup_epochs >= config.epochs:
        raise ValueError(
            f"{config.warmup_epochs} warm-up epochs of {config.epochs}: lower --warmup-epochs or train longer"
        )


def check_output(folder: Path) -> None:
    """ValueError where a run cannot write to `folder`, or would overwrite another run."""
    if any((folder / "checkpoints").glob("*.ckpt")):  # without one there is nothing to lose
        raise ValueError(f"{folder} holds a run already; go on with --resume {folder}, or choose another --out")
    check_writable(folder)


def check_writable(folder: Path) -> None:
    """Make the folder if need be; ValueError where nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}); choose another --out") from error


def make_folder(folder: Path, *, mark: str, own: Sequence[str]) -> None:
    """An empty folder, which one with the file `mark` and nothing but `own` may become.

    ValueError where it holds anything else.
    """
    if folder.exists() and any(folder.iterdir()):
        strangers = sorted(entry.name for entry in folder.iterdir() if entry.name not in (mark, *own))
        if not (folder / mark).is_file() or strangers:
            raise ValueError(f"{folder} holds what quickstart did not write ({', '.join(strangers[:3])}); name another")
        for name in own:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / mark).write_text("made by a quickstart, which empties this folder when it runs again\n")


def last_checkpoint(folder: Path) -> Path:
    """The newest readable checkpoint of a run folder. ValueError where there is none."""
    found = sorted((folder / "checkpoints").glob("*.ckpt"), key=lambda p: p.stat().st_mtime, reverse=True)
    torn = []
    for path in found:
        try:
            load_checkpoint(path)
        except ValueError as error:
            torn.append(str(error))
        else:
            for complaint in torn:
                say(f"{complaint}; going on from {path.name}")
            return path
    raise ValueError(f"{folder} has no readable checkpoint; start again with another --out" + "".join(torn))


def read_settings(folder: Path) -> dict[str, Any]:
    """What config.json of a run folder holds. ValueError where the folder holds no run."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no run (no config.json); give the folder that a pretraining run made")
    try:
        settings = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is torn ({error}); the checkpoints are unharmed") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is torn or of another version; the checkpoints are unharmed")
    return settings


class LastEpoch(lightning.Callback):
    """Saves the end of training, where `checkpoint_every` would leave it out."""

    def on_train_end(self, trainer: lightning.Trainer, learner: lightning.LightningModule) -> None:
        saver = trainer.checkpoint_callback
        assert isinstance(saver, ModelCheckpoint)
        if saver._last_global_step_saved != trainer.global_step:
            path = Path(str(saver.dirpath)) / f"step={trainer.global_step}.ckpt"
            trainer.save_checkpoint(path)
            saver.best_model_path = str(path)


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
    callbacks: Sequence[lightning.Callback] = (),
) -> tuple[Path, float]:
    """Train to the end, from the start or from the last checkpoint of `folder`: the last checkpoint, and the seconds.

    `learner.record["config"]` holds the settings, which a resumed run must share with its checkpoint; `paths`, where
    the data lie, are kept in config.json alone. ValueError where the checkpoint was made with other settings.
    """
    settings: dict[str, Any] = learner.record["config"]
    checkpoint = last_checkpoint(folder) if resume else None
    done = 0
    if checkpoint:
        read = load_checkpoint(checkpoint)
        done = read.step
        batches.load_state_dict(read.record["batches"])
        there = read.record["config"]
        if other := [f"{k} {there.get(k)} there, {settings[k]} here" for k in settings if settings[k] != there.get(k)]:
            raise ValueError(f"{checkpoint.name} was made with other settings: {'; '.join(other)}")
    elif is_first():
        (folder / "config.json").write_text(json.dumps({**settings, **plain(dict(paths))}, indent=1) + "\n")
    saver = ModelCheckpoint(
        dirpath=folder / "checkpoints",
        filename="{step}",
        monitor="step",
        mode="max",
        save_top_k=2,  # the one before the last stays, should the last be torn
        every_n_epochs=config.checkpoint_every,
        save_on_train_epoch_end=True,
        enable_version_counter=False,  # a torn file of the same step is replaced
    )
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=config.devices,
        strategy="auto" if config.devices == 1 else "ddp",
        sync_batchnorm=config.devices > 1 and torch.cuda.is_available(),  # it has no CPU form
        precision=precision,
        max_epochs=config.epochs,
        logger=[
            MetricsFile(folder / "logs" / "metrics.csv", step=done),
            TensorBoardLogger(folder, name="", version="logs", purge_step=done + 1 if resume else None),
        ],
        callbacks=[*callbacks, saver, LastEpoch(), progress],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    batches.steps_done = lambda: trainer.global_step
    start = time.monotonic()
    try:
        trainer.fit(learner, loader, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # what lightning makes of Ctrl+C
        kept = any((folder / "checkpoints").glob("*.ckpt"))
        cure = f"go on with --resume {folder}" if kept else "before the first checkpoint: start again"
        raise KeyboardInterrupt(f"interrupted; {cure}") from None
    # Not the saver's own word: after a run that was finished before, it names the last but one.
    return last_checkpoint(folder), time.monotonic() - start
