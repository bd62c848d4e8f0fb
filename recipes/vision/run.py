"""Pretraining on images: the learner, the loader and the run of a Config."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch

from recipes import records
from recipes.progress import EpochProgress
from recipes.ranks import cores, is_first
from recipes.run import Outcome, check_schedule, fit, quieten
from recipes.run_folder import check_output, plain, read_settings
from recipes.settings import fits, typed
from recipes.vision import inputs, networks
from recipes.vision.config import Config, method
from recipes.vision.measure import chance_of
from stec.core.batches import EpochBatches
from stec.core.checkpoints import load_checkpoint, load_weights
from stec.core.learner import Learner
from stec.core.optim import LARS, by_kind, by_name
from stec.core.probe import OnlineProbe
from stec.core.shards import ShardBatches
from stec.vision.data import ImageSet, ResidentLoader
from stec.vision.encoders import prefers_channels_last
from stec.vision.shards import ShardedImages
from stec.vision.streaming import CroppedPairs, streaming_loader
from stec.vision.views import Augmentation


def to_plain(config: Config) -> dict[str, Any]:
    """A configuration as plain values, for checkpoints and records; where the data lay is left out."""
    settings: dict[str, Any] = plain(dataclasses.replace(config, root=None))
    return settings


def from_plain(settings: Any, root: Path | None, *, source: Path) -> Config:
    """The configuration that `to_plain` wrote. ValueError names `source`, and a field that is unknown or missing."""
    law = settings.get("augmentation") if isinstance(settings, dict) else None
    if not isinstance(law, dict):
        raise ValueError(f"{source} holds no settings of images, or those of another version of stec: no augmentation")
    augmentation = typed(Augmentation, law, source=source)
    return typed(Config, {**settings, "augmentation": augmentation, "root": root}, source=source)


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
        settings={**to_plain(config), "root": config.root and records.place(str(config.root)), "resumed": resumed},
        stage=stage,
    )


def optimizer_factory(config: Config) -> Callable[[list[dict[str, Any]]], torch.optim.Optimizer]:
    """The optimiser by its name, at the configured peak learning rate; the predictor at a multiple of it."""
    if config.optimizer == "lars" and not config.weight_decay > 0:
        raise ValueError(
            f"weight_decay is {config.weight_decay}; LARS adapts only what it decays: "
            "give --weight-decay 1e-6, say, or --optimizer sgd"
        )
    builders: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
        "lars": lambda groups: LARS(groups, lr=config.lr),
        "sgd": lambda groups: torch.optim.SGD(groups, lr=config.lr, momentum=0.9),
        "adamw": lambda groups: torch.optim.AdamW(groups, lr=config.lr),
    }
    build = builders[config.optimizer]
    return lambda groups: build([part for group in groups for part in _by_rate(group, config)])


def _by_rate(group: dict[str, Any], config: Config) -> list[dict[str, Any]]:
    """A group of parameters as it is, or in two where the predictor has a rate of its own (Grill et al. 2020)."""
    own = [".predictor." in name for name in group["names"]]
    if config.predictor_rate == 1.0 or not any(own):
        return [group]
    parts = []
    for mine in (False, True):
        chosen = {key: [v for v, o in zip(group[key], own) if o == mine] for key in ("params", "names")}
        rate = {"lr": config.lr * config.predictor_rate, "name": f"{group['name']} predictor"} if mine else {}
        parts.append({**group, **chosen, **rate})
    return [part for part in parts if part["params"]]


def build_learner(
    config: Config, image_size: tuple[int, int], classes: int, *, batches: EpochBatches | None, trainable: bool = True
) -> Learner:
    """Networks, objective and views of a configuration, ready to train on images of that size and those classes.

    Without `batches` the networks alone are of use; then with `trainable=False` it does not matter whether we could
    train so: the released code has LARS without weight decay, which `optimizer_factory` refuses.
    """
    steps_per_epoch = len(batches) if batches else 1
    lightning.seed_everything(config.seed, verbose=False)
    network = networks.encoder(config)
    feature_dim = int(network.feature_dim)  # type: ignore[arg-type]
    return Learner(
        network,
        networks.objective(config, feature_dim, image_size),
        views=networks.views(config),
        optimizer=optimizer_factory(config) if trainable else lambda groups: optimizer_factory(config)(groups),
        adapt={"kind": by_kind, "name": by_name}[config.adapt],
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_epochs * steps_per_epoch,
        total_steps=config.epochs * steps_per_epoch,
        seed=config.seed,
        target_momentum=config.momentum,
        probe=OnlineProbe(feature_dim, classes) if classes > 1 else None,
        probe_lr=min(config.lr, 0.04),  # of the released code's linear fit: LARS's rates would blow plain SGD up
        channels_last=prefers_channels_last(network),
        check_every=config.check_every,
        compiled=config.compiled,
        micro_batch=config.micro_batch,
        statistics=config.statistics,
        record={
            "config": to_plain(config),
            "image_size": list(image_size),
            "classes": classes,
            "batches": batches.state_dict() if batches else {},
        },
    )


def order(config: Config, source: inputs.Inputs) -> EpochBatches:
    """The batches of a run: any images of an epoch together, or those of few shards."""
    images = source.images
    if isinstance(images, ShardedImages):
        return ShardBatches(images.shard, batch_size=config.batch_size, seed=config.seed)
    return EpochBatches(len(images), batch_size=config.batch_size, seed=config.seed, checksum=images.checksum())


def loader(config: Config, source: inputs.Inputs, batches: EpochBatches) -> Any:
    """Batches of the source: indexed in memory, on the GPU where there is one, or decoded and cropped by workers."""
    if isinstance(source.images, ImageSet):
        device = "cuda" if torch.cuda.is_available() and config.devices == 1 else "cpu"
        return ResidentLoader(source.images.to(device), batches)
    law = config.augmentation
    if law.size is None:
        raise ValueError("streamed images need a size for their views: give --size")
    pairs = CroppedPairs(source.images, law.size, scale=law.scale, ratio=law.ratio, p_flip=law.p_flip)
    workers = min(config.workers, cores())  # more would only wait for each other; the batches are the same
    return streaming_loader(pairs, batches, workers=workers, pin_memory=torch.cuda.is_available())


def chance(config: Config, images: Any, image_size: tuple[int, int]) -> str:
    """The manipulation loss of a model blind to the views, with which the loss is to be compared, for the headline."""
    if not config.lambda_manip or config.manipulation != "binned" or networks.many_views(config):
        return ""
    if isinstance(images, ShardedImages):  # whose sizes are known only once they are decoded
        return ""
    level = chance_of(config, networks.action_bins(config, image_size), images)
    return f"; chance of manipulation is {float(level.nll.mean()):.3f} nats"


def read_config(folder: Path) -> Config:
    """The configuration of a run folder. ValueError where the folder holds no run."""
    settings = read_settings(folder)
    file, root = folder / "config.json", settings.get("root")
    if not fits(root, str | None):
        raise ValueError(f"{file} has no folder under root; it is damaged")
    return from_plain(settings, Path(root) if root else None, source=file)


def pretrain(
    config: Config,
    folder: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    checkpoint_minutes: float | None = None,
    callbacks: Sequence[lightning.Callback] = (),
) -> Outcome:
    """Train to the end, from the start or from the last checkpoint of `folder`; `callbacks` look on."""
    quieten()
    check_schedule(config)
    if is_first() and not resume:
        check_output(folder)
    with EpochProgress(quiet=quiet or not is_first(), reading="reading images") as progress:
        source = inputs.training_images(config, progress.reading)
        batches = order(config, source)
        image_size = source.image_size(config.augmentation.size or 224)
        classes = source.images.classes
        learner = build_learner(config, image_size, len(classes), batches=batches)
        learner.record["class_names"] = list(classes)  # what the online head's outputs stand for
        progress.headline(
            f"{method(config)} ({config.preset}): {source.note}; {config.arch} width {config.width}, "
            f"batch {config.batch_size}, {config.epochs} epochs of {len(batches)} steps, {config.precision}"
            f"{chance(config, source.images, image_size)}"
        )
        checkpoint, seconds = fit(
            learner,
            loader(config, source, batches),
            batches,
            folder,
            config=config,
            precision=config.precision,
            paths={"root": config.root},
            progress=progress,
            resume=resume,
            checkpoint_minutes=checkpoint_minutes,
            callbacks=callbacks,
        )
    return Outcome(learner, checkpoint, seconds, len(batches))


def load_learner(path: Path) -> tuple[Learner, Config, dict[str, Any]]:
    """The networks of a checkpoint with their weights, its configuration, and all that the record holds."""
    checkpoint = load_checkpoint(path)
    record = checkpoint.record
    if "image_size" not in record:
        raise ValueError(f"{path} is no checkpoint of images; give one of recipes.vision.pretrain")
    config = from_plain(record.get("config"), None, source=path)
    if not fits(record["image_size"], tuple[int, int]) or not fits(record.get("classes"), int):
        raise ValueError(f"{path} does not tell the size of its images and its classes; it is damaged")
    learner = build_learner(config, tuple(record["image_size"]), record["classes"], batches=None, trainable=False)
    load_weights(learner, checkpoint.weights, source=path)
    return learner, config, record
