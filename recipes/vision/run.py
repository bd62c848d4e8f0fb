"""One pretraining run: a folder with its configuration, logs and checkpoints, which can be taken up again."""

import dataclasses
import json
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from recipes import records
from recipes.metrics import MetricsFile
from recipes.progress import EpochProgress, say
from recipes.vision import inputs, networks
from recipes.vision.presets import Config, method
from stec.core.batches import EpochBatches
from stec.core.checkpoints import load_checkpoint, load_weights
from stec.core.learner import Learner
from stec.core.optim import LARS, by_kind, by_name
from stec.core.probe import OnlineProbe
from stec.vision.data import ImageSet, ResidentLoader
from stec.vision.folder import ImageFiles
from stec.vision.streaming import CroppedPairs, streaming_loader
from stec.vision.views import Augmentation


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


def to_plain(config: Config) -> dict[str, Any]:
    """A configuration as plain values, for checkpoints and records; where the data lay is left out."""
    plain = dataclasses.asdict(dataclasses.replace(config, root=None))
    return {key: _plain(value) for key, value in plain.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def from_plain(plain: dict[str, Any], root: Path | None) -> Config:
    """The configuration that `to_plain` wrote. ValueError where a field is unknown or missing."""
    try:
        law: dict[str, Any] = plain["augmentation"]
        tuples: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in law.items()}
        return Config(**{**plain, "augmentation": Augmentation(**tuples), "root": root})
    except (TypeError, KeyError) as error:
        raise ValueError(f"this configuration is of another version of stec: {error}") from error


def record_of(
    config: Config,
    results: Sequence[records.Result],
    *,
    seconds: float | None,
    name: str | None = None,
    stage: str = "evaluate",
    resumed: bool = False,
) -> records.Record:
    """The record of a run's numbers with its settings; `seconds` are those of the last leg where it was resumed."""
    return records.record(
        method=name or method(config),
        preset=config.preset,
        data=config.data,
        seed=config.seed,
        seconds=seconds,
        results=results,
        settings={**to_plain(config), "resumed": resumed},
        stage=stage,
    )


def optimizer_factory(config: Config) -> Callable[[list[dict[str, Any]]], torch.optim.Optimizer]:
    """The optimiser by its name, at the configured peak learning rate."""
    builders: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
        "lars": lambda groups: LARS(groups, lr=config.lr),
        "sgd": lambda groups: torch.optim.SGD(groups, lr=config.lr, momentum=0.9),
        "adamw": lambda groups: torch.optim.AdamW(groups, lr=config.lr),
    }
    return builders[config.optimizer]


@dataclasses.dataclass
class Outcome:
    """What a finished run leaves in memory."""

    learner: Learner
    checkpoint: Path
    seconds: float
    steps_per_epoch: int


def build_learner(
    config: Config, image_size: tuple[int, int], classes: int, *, batches: EpochBatches | None
) -> Learner:
    """Networks, objective and views of a configuration, ready to train on images of that size and those classes.

    Without `batches` the networks alone are of use.
    """
    steps_per_epoch = len(batches) if batches else 1
    lightning.seed_everything(config.seed, verbose=False)
    network = networks.encoder(config)
    feature_dim = int(network.feature_dim)  # type: ignore[arg-type]
    return Learner(
        network,
        networks.objective(config, feature_dim, image_size),
        views=networks.views(config),
        optimizer=optimizer_factory(config),
        adapt={"kind": by_kind, "name": by_name}[config.adapt],
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_epochs * steps_per_epoch,
        total_steps=config.epochs * steps_per_epoch,
        seed=config.seed,
        probe=OnlineProbe(feature_dim, classes) if classes > 1 else None,
        probe_lr=min(config.lr, 0.04),  # of the released code's linear fit: LARS's rates would blow plain SGD up
        channels_last=True,
        check_every=config.check_every,
        compiled=config.compiled,
        record={
            "config": to_plain(config),
            "image_size": list(image_size),
            "classes": classes,
            "batches": batches.state_dict() if batches else {},
        },
    )


class LastEpoch(lightning.Callback):
    """Saves the end of training, where `checkpoint_every` would leave it out."""

    def on_train_end(self, trainer: lightning.Trainer, learner: lightning.LightningModule) -> None:
        saver = trainer.checkpoint_callback
        assert isinstance(saver, ModelCheckpoint)
        if saver._last_global_step_saved != trainer.global_step:
            path = Path(str(saver.dirpath)) / f"step={trainer.global_step}.ckpt"
            trainer.save_checkpoint(path)
            saver.best_model_path = str(path)


def loader(config: Config, source: inputs.Inputs, batches: EpochBatches) -> Any:
    """Batches of the source: indexed in memory, on the GPU where there is one, or decoded and cropped by workers."""
    if isinstance(source.images, ImageSet):
        device = "cuda" if torch.cuda.is_available() and config.devices == 1 else "cpu"
        return ResidentLoader(source.images.to(device), batches)
    files: ImageFiles = source.images
    law = config.augmentation
    if law.size is None:
        raise ValueError("streamed images need a size for their views: give --size")
    pairs = CroppedPairs(files, law.size, scale=law.scale, ratio=law.ratio, p_flip=law.p_flip)
    return streaming_loader(pairs, batches, workers=config.workers, pin_memory=torch.cuda.is_available())


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


def read_config(folder: Path) -> Config:
    """The configuration of a run folder. ValueError where the folder holds no run."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no run (no config.json); give the folder that a pretraining run made")
    try:
        raw = json.loads(path.read_text())
        root = raw.pop("root")
    except (json.JSONDecodeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is torn or of another version ({error}); the checkpoints are unharmed") from error
    return from_plain(raw, Path(root) if root else None)


def pretrain(config: Config, folder: Path, *, resume: bool = False, quiet: bool = False) -> Outcome:
    """Train to the end, from the start or from the last checkpoint of `folder`."""
    quieten()
    for name in ("epochs", "checkpoint_every", "check_every"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; need at least 1")
    if config.warmup_epochs >= config.epochs:
        raise ValueError(
            f"{config.warmup_epochs} warm-up epochs of {config.epochs}: lower --warmup-epochs or train longer"
        )
    first = getattr(rank_zero_only, "rank", 0) == 0  # of several processes, each of which runs this command
    if first and not resume:
        check_output(folder)
    with EpochProgress(quiet=quiet or not first) as progress:
        source = inputs.training_images(config, progress.reading)
        batches = EpochBatches(len(source.images), batch_size=config.batch_size, seed=config.seed)
        image_size = source.image_size(config.augmentation.size or 224)
        learner = build_learner(config, image_size, len(source.images.classes), batches=batches)
        checkpoint = last_checkpoint(folder) if resume else None
        done = 0
        if checkpoint:
            read = load_checkpoint(checkpoint)
            done = read.step
            batches.load_state_dict(read.record["batches"])
            here, there = to_plain(config), read.record["config"]
            if other := [f"{k} {there.get(k)} there, {here[k]} here" for k in here if here[k] != there.get(k)]:
                raise ValueError(f"{checkpoint.name} was made with other settings: {'; '.join(other)}")
        if first and not resume:
            root = str(config.root) if config.root else None
            (folder / "config.json").write_text(json.dumps({**to_plain(config), "root": root}, indent=1) + "\n")
        progress.headline(
            f"{method(config)} ({config.preset}): {source.note}; {config.arch} width {config.width}, "
            f"batch {config.batch_size}, {config.epochs} epochs of {len(batches)} steps, {config.precision}"
        )
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
            precision=config.precision,
            max_epochs=config.epochs,
            logger=[
                MetricsFile(folder / "logs" / "metrics.csv", step=done),
                TensorBoardLogger(folder, name="", version="logs", purge_step=done + 1 if resume else None),
            ],
            callbacks=[saver, LastEpoch(), progress],
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
        )
        batches.steps_done = lambda: trainer.global_step
        start = time.monotonic()
        try:
            trainer.fit(learner, loader(config, source, batches), ckpt_path=checkpoint, weights_only=True)
        except SystemExit:  # what lightning makes of Ctrl+C
            raise KeyboardInterrupt(f"interrupted; go on with --resume {folder}") from None
        seconds = time.monotonic() - start
    return Outcome(learner, Path(saver.best_model_path), seconds, len(batches))


def load_learner(path: Path) -> tuple[Learner, Config, dict[str, Any]]:
    """The networks of a checkpoint with their weights, its configuration, and all that the record holds."""
    checkpoint = load_checkpoint(path)
    record = checkpoint.record
    config = from_plain(record["config"], None)
    learner = build_learner(config, tuple(record["image_size"]), record["classes"], batches=None)
    load_weights(learner, checkpoint.weights, source=path)
    return learner, config, record
