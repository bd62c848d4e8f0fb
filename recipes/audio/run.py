"""Pretraining on speech: the learner, the loader and the run of a Config."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch

from recipes import records
from recipes.audio import networks
from recipes.audio.labelled import LabelledPairs, LabelledWindows, count_classes
from recipes.audio.presets import PATHS, Config, Precision, method
from recipes.progress import EpochProgress
from recipes.ranks import is_first, machines
from recipes.run import Outcome, check_schedule, fit, quieten
from recipes.run_folder import check_output, plain, read_settings
from recipes.settings import fits, typed
from stec.audio.alignment import Alignment
from stec.audio.corpus import Corpus
from stec.audio.cpc_labels import read_cpc_labels
from stec.audio.shards import SpeechShards, open_speech
from stec.audio.splits import read_split, select
from stec.audio.views import SpeechPairs
from stec.audio.windows import WindowBatches, WindowLoader
from stec.core.checkpoints import load_checkpoint, load_weights
from stec.core.learner import Learner
from stec.core.optim import Schedule, by_kind, warmup_constant, warmup_cosine

SCHEDULES: dict[str, Schedule] = {"constant": warmup_constant, "cosine": warmup_cosine}


def to_plain(config: Config) -> dict[str, Any]:
    """A configuration as plain values, for checkpoints and records; where things lay is left out."""
    return {key: None if key in PATHS else value for key, value in plain(config).items()}


def from_plain(settings: Any, *, source: Path) -> Config:
    """The configuration that `to_plain` wrote. ValueError names `source`, and a field that is unknown or missing."""
    if not isinstance(settings, dict) or "augmentation" in settings:
        raise ValueError(f"{source} is not of speech: it holds other settings")
    if wrong := [name for name in PATHS if not fits(settings.get(name), str | None)]:
        raise ValueError(f"{source} has no path under {', '.join(wrong)}; it is damaged")
    paths = {name: Path(settings[name]) if settings.get(name) else None for name in PATHS}
    return typed(Config, {**settings, **paths}, source=source)


def read_config(folder: Path) -> Config:
    """The configuration of a run folder. ValueError where the folder holds no run."""
    return from_plain(read_settings(folder), source=folder / "config.json")


def record_of(
    config: Config,
    results: Sequence[records.Result],
    *,
    seconds: float | None,
    name: str | None = None,
    stage: str = "evaluate",
    resumed: bool = False,
    data: str | None = None,
) -> records.Record:
    """The record of a run's numbers with its settings; `seconds` are those of the last leg where it was resumed."""
    return records.record(
        method=name or method(config),
        preset=config.preset,
        data=data or (config.corpus.name if config.corpus else "unknown"),
        seed=config.seed,
        seconds=seconds,
        results=results,
        settings={**to_plain(config), "resumed": resumed},
        stage=stage,
    )


def precision(config: Config) -> Precision:
    """The precision that "auto" stands for here: bf16 where the processor or the GPU computes in it."""
    if config.precision != "auto":
        return config.precision
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.is_file() else ""
    return "bf16-mixed" if "avx512_bf16" in flags or "amx_bf16" in flags else "32-true"


def chance(config: Config) -> str:
    """The surprise of a blank context, where it does not depend on who speaks: what the loss is to be compared with."""
    if config.supervised or config.negatives == "same group" or not config.own_sequence:
        return ""
    windows = {"sequence": 1, "batch group": min(config.batch_group, config.batch_size), "all": config.batch_size}
    frames = networks.encoder(config).frames(config.window)
    candidates = windows[config.negatives] * frames if config.samples is None else 1 + config.samples
    return f"; chance is log {candidates} = {math.log(candidates):.3f} nats"


def open_corpus(config: Config, labels: dict[str, np.ndarray] | None) -> tuple[Corpus, str]:
    """The utterances to train on, and a line on them. ValueError where there are none."""
    if config.corpus is None:
        raise ValueError("where is the speech? give --corpus CACHE, made by python -m recipes.audio.prepare")
    corpus = open_speech(config.corpus)
    note = f"{len(corpus):,} utterances, {corpus.hours:.2f} h"
    if isinstance(corpus, SpeechShards):
        note += f" in {len(corpus.source.index.shards)} shards"
    if config.split is None and labels is None:
        return corpus, note
    split = read_split(config.split) if config.split else corpus.utterances
    chosen = select(split, corpus=corpus.utterances, labels=labels)
    corpus = corpus.subset(chosen.names)
    return corpus, f"{chosen} of {config.split.name if config.split else 'the corpus'}, {corpus.hours:.2f} h"


def check_config(config: Config) -> None:
    """ValueError for settings that make no sense together, or that would be ignored."""
    check_schedule(config)
    if config.labels and not config.supervised:
        raise ValueError("--labels are learnt from by the supervised baseline alone: leave them out, or --supervised")
    if config.supervised:
        return
    plain_cpc = Config(preset="", epochs=1)
    unread = [
        f"--{name.replace('_', '-')}"
        for name in ("positives", "object", "others", "part", "pooling", "temperature")
        if config.time_insensitive == "none" and getattr(config, name) != getattr(plain_cpc, name)
    ]
    if unread:
        raise ValueError(f"{', '.join(unread)} belong to the second model: name its form with --time-insensitive")
    frames = networks.encoder(config).frames(config.window)
    if not 1 <= config.steps < frames:
        raise ValueError(
            f"{config.steps} steps ahead in windows of {config.window} samples, which are {frames} frames: "
            "choose fewer --steps, at least 1, or a longer --window"
        )
    each = config.batch_size // (processes := machines(config.devices) * config.devices)
    if each % min(config.batch_group, config.batch_size):
        raise ValueError(
            f"a batch of {config.batch_size} is {each} windows for each of {processes} processes, no multiple of "
            f"--batch-group {config.batch_group}: choose a --batch-size or a group that gives whole groups to each"
        )
    same = "same group" in (config.negatives, config.others if config.time_insensitive != "none" else "")
    if same and config.together != "speaker":
        raise ValueError('negatives of the "same group" need windows of one speaker side by side: --together speaker')
    if config.time_insensitive != "none" and config.together in ("utterance", config.object):
        one_group = config.batch_group >= config.batch_size or config.time_insensitive == "frames"
        if one_group or config.others == "same group":
            raise ValueError(
                f"with --together {config.together} the windows of a group are all of one {config.object}: the second "
                "model would have no negatives; choose --together uniform"
            )


def check_speakers(config: Config, corpus: Corpus) -> None:
    """ValueError where the models ask who speaks, or in which chapter, and the corpus does not know."""
    chapters = {corpus.chapters[i] for i in corpus.chapter.unique().tolist()}
    speakers = {corpus.speakers[i] for i in corpus.speaker.unique().tolist()}
    insensitive = config.time_insensitive != "none" and not config.supervised
    asked = [
        (insensitive and config.object == "speaker", "--object speaker", speakers),
        (insensitive and config.object == "chapter", "--object chapter", chapters),
        (insensitive and config.others != "all", f"--others {config.others!r}", speakers),
        (config.negatives == "same group" and not config.supervised, "--negatives 'same group'", speakers),
    ]
    for wanted, option, names in asked:
        if wanted and "" in names:
            raise ValueError(
                f"{option} needs to know the speaker or chapter of every utterance, and {corpus.path} does not; "
                "prepare it with --speaker folder from a folder for each, or choose another option"
            )


def make_optimizer(config: Config, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Adam or AdamW over a learner's groups."""
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.lr, fused=True)
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def build_learner(config: Config, *, corpus: Corpus | None, batches: WindowBatches | None, classes: int) -> Learner:
    """Networks, objective and views of a configuration. Without corpus and batches the networks alone are of use."""
    steps_per_epoch = len(batches) if batches else 1
    lightning.seed_everything(config.seed, verbose=False)
    network = networks.encoder(config)
    return Learner(
        network,
        networks.objective(config, classes),
        views=SpeechPairs(object=config.object) if not config.supervised else LabelledPairs(),
        optimizer=functools.partial(make_optimizer, config),
        adapt=by_kind,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_epochs * steps_per_epoch,
        total_steps=config.epochs * steps_per_epoch,
        schedule=SCHEDULES[config.schedule],
        seed=config.seed,
        check_every=config.check_every,
        compiled=config.compiled,
        micro_batch=config.micro_batch,
        statistics=config.statistics,
        record={
            "config": to_plain(config),
            "classes": classes,
            "utterances": list(corpus.utterances) if corpus else [],
            "speakers": [corpus.speakers[int(i)] for i in corpus.speaker] if corpus else [],
            "batches": batches.state_dict() if batches else {},
        },
    )


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
    config = dataclasses.replace(config, precision=precision(config))
    check_config(config)
    if is_first() and not resume:
        check_output(folder)
    with EpochProgress(quiet=quiet or not is_first()) as progress:
        labels = None
        if config.supervised:
            if config.labels is None:
                raise ValueError("the supervised baseline learns from phone labels: give --labels FILE")
            labels = read_cpc_labels(config.labels)
        corpus, note = open_corpus(config, labels)
        check_speakers(config, corpus)
        batches = WindowBatches(
            corpus,
            batch_size=config.batch_size,
            seed=config.seed,
            window=config.window,
            sampling=config.sampling,
            together=config.together,
            group=config.batch_group,
            pairs=config.time_insensitive != "none" and config.positives == "windows",
        )
        classes = count_classes(labels, corpus.utterances) if labels else 0
        learner = build_learner(config, corpus=corpus, batches=batches, classes=classes)
        if config.resident and not torch.cuda.is_available():
            raise ValueError("there is no GPU to hold the corpus on: leave --resident out")
        device = "cuda" if config.resident else None
        loader: Any = WindowLoader(corpus, batches, device=device)
        if labels is not None:
            network = networks.encoder(config)
            alignment = Alignment.nearest(frame_centre=network.centre)
            loader = LabelledWindows(loader, labels, frames=network.frames(config.window), alignment=alignment)
        short = f", {batches.too_short} too short for a window" if batches.too_short else ""
        progress.headline(
            f"{method(config)} ({config.preset}): {note}{short}; {config.channels} channels, "
            f"batch {config.batch_size}, {config.epochs} epochs of {len(batches)} steps, "
            f"{config.epochs * len(batches):,} updates, {config.precision}{chance(config)}"
        )
        checkpoint, seconds = fit(
            learner,
            loader,
            batches,
            folder,
            config=config,
            precision=config.precision,
            paths={name: getattr(config, name) for name in PATHS},
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
    if "utterances" not in record:
        raise ValueError(f"{path} is no checkpoint of speech; give one of recipes.audio.pretrain")
    config = from_plain(record.get("config"), source=path)
    if not fits(record.get("classes"), int):
        raise ValueError(f"{path} does not tell its classes; it is damaged")
    learner = build_learner(config, corpus=None, batches=None, classes=record["classes"])
    load_weights(learner, checkpoint.weights, source=path)
    return learner, config, record
