"""Every setting of a run on speech reaches what it is the setting of, and heads see no test utterance in training."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tones import Speech, make_speech, tiny, write_split
from torch import nn

from recipes.audio import networks, run
from recipes.audio.measure import Frames, probe_phones
from recipes.audio.presets import Config
from recipes.audio.run import build_learner
from recipes.audio.run import pretrain as train
from stec.audio.encoders import CPCEncoder
from stec.audio.frame_features import FrameFeatures
from stec.audio.windows import WindowBatches, WindowLoader
from stec.core.checkpoints import load_checkpoint
from stec.core.learner import Learner
from stec.core.objective import STECObjective
from stec.core.optim import warmup_constant, warmup_cosine
from stec.core.sequence import (
    FrameIdentity,
    LinearPredictor,
    MLPPredictor,
    PooledIdentity,
    SwitchIdentity,
    TransformerPredictor,
)

BASE = Config(
    preset="cpc",
    epochs=2,
    channels=8,
    context_dim=8,
    window=5_120,
    projection_hidden=6,
    projection_out=4,
    compiled=False,
)
FORMS = {"pooled": PooledIdentity, "frames": FrameIdentity, "switch": SwitchIdentity}
POOLED, FRAMES, SWITCH = ({"time_insensitive": form} for form in FORMS)
WIDE_CONTEXT = {"context_dim": 16}  # where both are 8, one may stand for the other

Read = Callable[[CPCEncoder, STECObjective], object]


def path(where: str) -> Read:
    """What lies at "encoder.mean", "cpc.predictor.steps", "other.temperature" or "weights.time_sensitive"."""

    def read(encoder: CPCEncoder, objective: STECObjective) -> object:
        first, *names = where.split(".")
        if first == "weights":
            return objective.weights[names[0]]
        key = {"cpc": "time_sensitive", "other": "time_insensitive"}.get(first, "")
        found: Any = encoder if first == "encoder" else objective.models[key]
        for name in names:
            found = getattr(found, name)
        return tuple(found.shape) if isinstance(found, torch.Tensor) else found

    return read


def kinds(*where: str) -> Read:
    """The types of what lies there."""
    return lambda encoder, objective: tuple(type(path(one)(encoder, objective)) for one in where)


def models(encoder: CPCEncoder, objective: STECObjective) -> object:
    return {name: type(model) for name, model in objective.models.items()}.get("time_insensitive")


# Field, its other value, what else is set, what is read, what it is then. With the base's value it must be another.
NETWORKS: list[tuple[str, object, dict[str, Any], Read, object]] = [
    ("channels", 16, {}, path("encoder.convolutions.conv_0.weight"), (16, 1, 1, 10)),
    ("channels", 16, {}, path("encoder.convolutions.conv_4.weight"), (16, 16, 1, 4)),
    ("channels", 16, {}, path("cpc.predictor.weight"), (12, 16, 8)),
    ("channels", 16, {"predictor": "mlp"}, path("cpc.predictor.output.weight"), (12 * 16, 8)),
    ("channels", 16, {"predictor": "transformer"}, path("cpc.predictor.outputs.11.weight"), (16, 8)),
    ("channels", 16, FRAMES, path("other.latent_head.weight"), (4, 16)),
    ("channels", 16, SWITCH, path("other.latent_head.weight"), (4, 16)),
    ("channels", 16, {**POOLED, "part": "latents"}, path("other.projector.hidden_0.weight"), (6, 16)),
    ("context_dim", 16, {}, path("encoder.recurrence.weight_hh_l0"), (3 * 16, 16)),
    ("context_dim", 16, {}, path("cpc.predictor.weight"), (12, 8, 16)),
    ("context_dim", 16, {"predictor": "mlp"}, path("cpc.predictor.hidden.weight"), (16, 16)),
    ("context_dim", 16, {"predictor": "transformer"}, path("cpc.predictor.outputs.11.weight"), (8, 16)),
    ("context_dim", 16, FRAMES, path("other.context_head.weight"), (4, 16)),
    ("context_dim", 16, SWITCH, path("other.context_head.weight"), (4, 16)),
    ("context_dim", 16, POOLED, path("other.projector.hidden_0.weight"), (6, 16)),
    ("paddings", "gim", {}, path("encoder.centre"), 20.5),
    ("paddings", "none", {}, path("encoder.convolutions.conv_1.padding"), (0, 0)),
    ("normalisation", "channel", {}, path("encoder.convolutions.norm_4.weight"), (8,)),
    ("normalisation", "batch", {}, kinds("encoder.convolutions.norm_0"), (nn.BatchNorm2d,)),
    ("recurrence", "lstm", {}, kinds("encoder.recurrence"), (nn.LSTM,)),
    ("input_mean", 0.25, {}, path("encoder.mean"), 0.25),
    ("input_std", 0.5, {}, path("encoder.std"), 0.5),
    ("lambda_time_sensitive", 0.25, {}, path("weights.time_sensitive"), 0.25),
    ("steps", 5, {}, path("cpc.predictor.weight"), (5, 8, 8)),
    ("steps", 5, {"predictor": "mlp"}, path("cpc.predictor.steps"), 5),
    ("steps", 5, {"predictor": "transformer"}, path("cpc.predictor.steps"), 5),
    ("predictor", "mlp", {}, kinds("cpc.predictor"), (MLPPredictor,)),
    ("predictor", "transformer", {}, kinds("cpc.predictor"), (TransformerPredictor,)),
    # One over the latents' dimensions, not the context's.
    *(("score", "mean", {**WIDE_CONTEXT, "predictor": one}, path("cpc.predictor.scale"), 1 / 8)
      for one in ("linear", "mlp", "transformer")),
    ("negatives", "sequence", {}, path("cpc.negatives"), "sequence"),
    ("negatives", "all", {}, path("cpc.negatives"), "all"),
    ("batch_group", 2, {}, path("cpc.batch_group"), 2),
    ("batch_group", 2, FRAMES, path("other.batch_group"), 2),
    ("own_sequence", False, {}, path("cpc.own_sequence"), False),
    ("samples", 3, {}, path("cpc.samples"), 3),
    *(("time_insensitive", form, {}, models, kind) for form, kind in FORMS.items()),
    *(("lambda_time_insensitive", 0.75, {"time_insensitive": form}, path("weights.time_insensitive"), 0.75)
      for form in FORMS),
    *(("others", value, {"time_insensitive": form}, path("other.others"), value)
      for form in FORMS for value in ("other groups", "same group")),
    ("part", "latents", POOLED, path("other.part"), "latents"),
    ("part", "latents", {**POOLED, **WIDE_CONTEXT}, path("other.projector.hidden_0.in_features"), 8),
    ("pooling", "last", POOLED, path("other.pooling"), "last"),
    ("temperature", 0.5, POOLED, path("other.temperature"), 0.5),
    ("projection_hidden", 10, POOLED, path("other.projector.hidden_0.weight"), (10, 8)),
    ("projection_out", 10, POOLED, path("other.projector.output.weight"), (10, 6)),
    *(("projection_out", 10, {"time_insensitive": form}, path(f"other.{head}.weight"), (10, 8))
      for form in ("frames", "switch") for head in ("context_head", "latent_head")),
]  # fmt: skip


def built(config: Config) -> tuple[CPCEncoder, STECObjective]:
    return networks.encoder(config), networks.objective(config, 0)


@pytest.mark.parametrize(("field", "given", "more", "read", "expected"), NETWORKS)
def test_a_setting_reaches_the_networks(
    field: str, given: object, more: dict[str, Any], read: Read, expected: object
) -> None:
    before = dataclasses.replace(BASE, **more)
    assert read(*built(dataclasses.replace(before, **{field: given}))) == expected  # type: ignore[arg-type]
    try:
        assert read(*built(before)) != expected
    except AttributeError:
        assert field == "normalisation"  # there are no such modules without


def test_the_base_has_a_linear_predictor_and_a_gru() -> None:
    encoder, objective = built(BASE)
    assert kinds("cpc.predictor", "encoder.recurrence")(encoder, objective) == (LinearPredictor, nn.GRU)
    assert tuple(objective.models) == ("time_sensitive",)


def moved(learner: Learner) -> torch.optim.Optimizer:
    return learner.make_optimizer([{"params": [nn.Parameter(torch.zeros(1))]}])


LEARNER: list[tuple[str, object, Callable[[Learner], object], object]] = [
    ("object", "chapter", lambda learner: vars(learner.views)["object"], "chapter"),
    ("object", "speaker", lambda learner: vars(learner.views)["object"], "speaker"),
    ("optimizer", "adamw", lambda learner: type(moved(learner)), torch.optim.AdamW),
    ("lr", 0.125, lambda learner: moved(learner).param_groups[0]["lr"], 0.125),
    ("schedule", "cosine", lambda learner: learner.schedule, warmup_cosine),
    ("warmup_epochs", 1, lambda learner: learner.warmup_steps, 1),
    ("epochs", 7, lambda learner: learner.total_steps, 7),
    ("weight_decay", 0.5, lambda learner: learner.weight_decay, 0.5),
    ("check_every", 3, lambda learner: learner.check_every, 3),
    ("seed", 3, lambda learner: learner.seed, 3),
]


@pytest.mark.parametrize(("field", "given", "read", "expected"), LEARNER)
def test_a_setting_reaches_the_learner(
    field: str, given: object, read: Callable[[Learner], object], expected: object
) -> None:
    config = dataclasses.replace(BASE, **{field: given})  # type: ignore[arg-type]
    assert read(build_learner(config, corpus=None, batches=None, classes=0)) == expected
    assert read(build_learner(BASE, corpus=None, batches=None, classes=0)) != expected


def test_the_rate_reaches_either_optimizer() -> None:
    for optimizer in ("adam", "adamw"):
        config = dataclasses.replace(BASE, optimizer=optimizer, lr=0.125)
        learner = build_learner(config, corpus=None, batches=None, classes=0)
        assert moved(learner).param_groups[0]["lr"] == 0.125
        assert learner.schedule is warmup_constant


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    return make_speech(tmp_path_factory.mktemp("speech"))


def fitted(config: Config, folder: Path) -> tuple[Learner, WindowLoader, WindowBatches]:
    """What a run would train: the learner, the loader and the batches that `pretrain` makes."""
    seen: list[Any] = []

    def fit(learner: Learner, loader: WindowLoader, batches: WindowBatches, *rest: object, **more: object) -> Any:
        seen.extend((learner, loader, batches))
        return folder / "step=0.ckpt", 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "fit", fit)
        train(config, folder, quiet=True)
    learner, loader, batches = seen
    return learner, loader, batches


BATCHES: list[tuple[str, object, dict[str, Any], str, object]] = [
    ("window", 4_800, {}, "window", 4_800),
    ("sampling", "all", {}, "sampling", "all"),
    ("together", "speaker", {}, "together", "speaker"),
    ("together", "utterance", {}, "together", "utterance"),
    ("batch_group", 2, {"together": "speaker"}, "group", 2),
    ("batch_size", 4, {}, "batch_size", 4),
    ("seed", 3, {}, "seed", 3),
    *(("positives", "windows", {"time_insensitive": form}, "pairs", True) for form in FORMS),
]  # fmt: skip


@pytest.mark.parametrize(("field", "given", "more", "attribute", "expected"), BATCHES)
def test_a_setting_reaches_the_batches(
    field: str, given: object, more: dict[str, Any], attribute: str, expected: object, speech: Speech, tmp_path: Path
) -> None:
    _, loader, batches = fitted(tiny(speech, **more, **{field: given}), tmp_path / "other")
    assert loader.batches is batches
    assert getattr(batches, attribute) == expected
    assert getattr(fitted(tiny(speech, **more), tmp_path / "base")[2], attribute) != expected


def test_pairs_are_of_the_configured_windows_and_objects(speech: Speech, tmp_path: Path) -> None:
    """What the models get, from the loader through the views: length, second window, and who is whose object."""
    config = tiny(speech, time_insensitive="pooled", positives="windows", object="chapter", window=4_800)
    learner, loader, _ = fitted(config, tmp_path / "windows")
    windows = next(iter(loader))
    pair = learner.make_pair(windows, 0)
    assert pair.x.shape == (8, 4_800)
    assert pair.x_prime is not None
    assert pair.x_prime.shape == (8, 4_800)
    assert not torch.equal(pair.x, pair.x_prime)
    assert pair.object is not None
    assert torch.equal(pair.object, windows.chapter)

    # Windows without a model that compares them would cost twice for nothing.
    _, loader, batches = fitted(tiny(speech), tmp_path / "cpc")
    assert not batches.pairs
    assert next(iter(loader)).x_prime is None


# --- heads -----------------------------------------------------------------------------------------------------------


def test_heads_do_not_learn_from_test_utterances() -> None:
    """Test utterances contradict the training ones, 6 to 2: read as trained none is right, learnt from most would be.

    A class shows in one of 4 features beside random ones; in test utterances the class after it bears the label.
    """
    random = np.random.default_rng(0)
    train_on, test_on = [f"a{i}" for i in range(2)], [f"b{i}" for i in range(6)]
    names = [*test_on[:3], *train_on, *test_on[3:]]
    t, classes = 120, 4
    labels, values = {}, []
    for name in names:
        shown = random.integers(classes, size=t)
        noise = 0.1 * random.standard_normal((t, 8))
        values.append(torch.tensor(np.hstack((np.eye(classes)[shown], noise)), dtype=torch.float32))
        labels[name] = shown if name in train_on else (shown + 1) % classes
    lengths = torch.full((len(names),), t)
    features = FrameFeatures(torch.cat(values), tuple(names), t * torch.arange(len(names)), lengths)

    def accuracies(train_names: list[str], test_names: list[str]) -> dict[str, float]:
        probe = probe_phones(
            Frames({"context": features}, 200.0),  # centred as the labels are: frame and label have one index
            labels,
            train_names,
            test_names,
            classes=classes,
            offsets=(0,),
            hidden=(8,),
            protocol="stec",
            seed=0,
        )
        return {r.protocol: r.value for r in probe.results}

    found = accuracies(train_on, test_on)
    assert set(found) == {"linear", "hidden 8"}
    assert max(found.values()) < 0.02
    assert min(accuracies(train_on, train_on).values()) > 0.98  # they did learn
    assert min(accuracies(names, test_on).values()) > 0.9  # and this is what learning from test utterances would give


# --- one object ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_one_object_train_to_finite_weights(form: str, speech: Speech, tmp_path: Path) -> None:
    """Of one speaker, whom the second model takes for the object, no row has a negative."""
    names = [name for name in speech.phones() if name.startswith("1-")]
    config = tiny(
        speech,
        split=write_split(tmp_path / "split.txt", names),
        time_insensitive=form,
        object="speaker",
        batch_size=4,
    )
    outcome = train(config, tmp_path / "run", quiet=True)
    assert np.isfinite(list(outcome.learner.last.values())).all()
    assert all(bool(value.isfinite().all()) for value in load_checkpoint(outcome.checkpoint).weights.values())
