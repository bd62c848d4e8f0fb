"""The Learner on a modality that core does not know: vectors seen from shifted places."""

import math
import warnings
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn

from stec.core.actions import Bins, ViewPair
from stec.core.batches import EpochBatches
from stec.core.checkpoints import load_checkpoint, load_weights
from stec.core.diagnostics import CollapsedFeatures, describe
from stec.core.identity import SimCLR
from stec.core.learner import Learner, NonFiniteLoss
from stec.core.manipulation import BinnedActions
from stec.core.networks import MomentumEncoder, mlp
from stec.core.objective import Features, InverseModel, STECObjective
from stec.core.optim import LARS, by_kind, warmup_cosine
from stec.core.probe import OnlineProbe

N, BATCH, EPOCHS = 64, 16, 3
STEPS = N // BATCH * EPOCHS


class Loader:
    """Rows of a matrix by the indices of EpochBatches."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows = torch.randn(N, 8, generator=generator)
        self.labels = torch.randint(3, (N,), generator=generator)
        self.batches = EpochBatches(N, batch_size=BATCH, seed=4)
        self.state_dict, self.load_state_dict = self.batches.state_dict, self.batches.load_state_dict

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        for index in self.batches:
            yield self.rows[index], self.labels[index]


def shifted(batch: tuple[Tensor, Tensor], generator: torch.Generator) -> ViewPair:
    rows, labels = batch
    to_x, to_x_prime = torch.randn(2, len(rows), 1, generator=generator)
    valid = torch.rand(len(rows), generator=generator) < 0.8
    return ViewPair(rows + to_x, rows + to_x_prime, to_x_prime - to_x, valid, labels)


class NormalIdentity(InverseModel):
    """A model with a momentum encoder, as BYOL has."""

    needs_target = True

    def __init__(self) -> None:
        super().__init__()
        self.predictor = nn.Linear(6, 6)

    def forward(self, online: Features, target: Features | None, pair: ViewPair) -> Tensor:
        assert target is not None
        return (self.predictor(online.x) - target.x_prime).square().mean()


class Recording(Learner):
    """Keeps every step's terms."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.seen: list[dict[str, float]] = []
        self.described: list[dict[str, float]] = []

    def read_terms(self) -> None:
        fresh = bool(self._trace)
        super().read_terms()
        if fresh:
            self.seen.append(dict(self.last))
            self.described.append(dict(self.diagnostics))


def a_learner(
    *,
    momentum: bool = False,
    check_every: int = 1,
    steps: int = STEPS,
    adam: bool = False,
    encoder: nn.Module | None = None,
    micro_batch: int | None = None,
) -> Recording:
    torch.manual_seed(0)
    models: dict[str, InverseModel] = {
        "identity": SimCLR(mlp(6, [8], 4), temperature=0.5),
        "manipulation": BinnedActions(mlp(12, [8], 6), Bins.uniform(-2.0, 2.0, 6)),
    }
    weights = {"identity": 1.0, "manipulation": 1.0}
    if momentum:
        models["normal"], weights["normal"] = NormalIdentity(), 0.5
    return Recording(
        encoder or mlp(8, [16], 6),
        STECObjective(models, weights),
        views=shifted,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.02) if adam else LARS(groups, lr=0.5),
        adapt=by_kind,
        weight_decay=1e-4,
        warmup_steps=2,
        total_steps=steps,
        seed=7,
        probe=OnlineProbe(6, 3),
        target_momentum=0.9 if momentum else None,
        check_every=check_every,
        micro_batch=micro_batch,
        record={"config": {"width": 16}},
    )


def a_trainer(
    folder: Path, *, steps: int = STEPS, epochs: int = EPOCHS, callbacks: list[Any] | None = None
) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        max_steps=steps,
        logger=False,
        callbacks=callbacks or [],
        enable_checkpointing=bool(callbacks),
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fit(learner: Learner, trainer: lightning.Trainer, checkpoint: Path | None = None) -> None:
    loader = Loader()
    loader.batches.steps_done = lambda: trainer.global_step
    trainer.fit(learner, loader, ckpt_path=checkpoint, weights_only=True)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")
@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("stop", [3, 4, 6, 9])
def test_a_resumed_run_repeats_the_unbroken_one(tmp_path: Path, stop: int, momentum: bool) -> None:
    """Within an epoch and at its end: the same losses, step by step, and the same weights, bit for bit."""
    whole = a_learner(momentum=momentum)
    fit(whole, a_trainer(tmp_path))
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=stop, save_top_k=-1)
    first = a_learner(momentum=momentum)
    fit(first, a_trainer(tmp_path, steps=stop, callbacks=[saver]))
    second = a_learner(momentum=momentum)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1.0)  # whatever the new process starts from
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=stop, save_top_k=-1)
    fit(second, a_trainer(tmp_path, callbacks=[saver]), tmp_path / f"step={stop}.ckpt")
    assert len(whole.seen) == STEPS
    assert first.seen + second.seen == whole.seen
    assert first.described + second.described == whole.described
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_training_lowers_the_named_terms(tmp_path: Path) -> None:
    learner = a_learner(momentum=True, adam=True, steps=200)
    fit(learner, a_trainer(tmp_path, steps=200, epochs=50))
    first, last = learner.seen[0], learner.seen[-1]
    assert set(first) == {"identity", "manipulation", "normal", "loss", "online"}
    for name in ("identity", "manipulation", "loss"):
        assert sum(terms[name] for terms in learner.seen[-10:]) / 10 < first[name] - 0.3
    expected = last["identity"] + last["manipulation"] + 0.5 * last["normal"]
    assert last["loss"] == pytest.approx(expected, rel=1e-5)


def test_views_are_a_function_of_seed_and_step() -> None:
    learner, batch = a_learner(), (torch.zeros(4, 8), torch.zeros(4, dtype=torch.long))
    assert torch.equal(learner.make_pair(batch, 5).x, learner.make_pair(batch, 5).x)
    assert not torch.equal(learner.make_pair(batch, 5).x, learner.make_pair(batch, 6).x)


def test_the_momentum_encoder_follows_after_each_step(tmp_path: Path) -> None:
    learner = a_learner(momentum=True)
    assert isinstance(learner.target, MomentumEncoder)
    moves: list[float] = []
    update = learner.target.update
    learner.target.update = lambda momentum: (moves.append(momentum), update(momentum))[1]  # type: ignore[method-assign]
    fit(learner, a_trainer(tmp_path))
    expected = [1 - 0.1 * (math.cos(math.pi * step / STEPS) + 1) / 2 for step in range(1, STEPS + 1)]
    assert moves == pytest.approx(expected)


def test_what_is_left_out_is_no_warm_up_seed_0_and_decay_by_kind(tmp_path: Path) -> None:
    """The same losses and weights, bit for bit, as where all of it is said."""
    said: dict[str, Any] = {"adapt": by_kind, "warmup_steps": 0, "seed": 0}
    trained = []
    for settings in ({}, said, {**said, "seed": 1}):
        torch.manual_seed(0)
        objective = STECObjective({"identity": SimCLR(mlp(6, [8], 4), temperature=0.5)}, {"identity": 1.0})
        learner = Recording(
            mlp(8, [16], 6),
            objective,
            views=shifted,
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.02),
            weight_decay=0.3,
            total_steps=STEPS,
            **settings,
        )
        fit(learner, a_trainer(tmp_path))
        trained.append(learner)
    short, whole, other = trained
    assert short.seen == whole.seen
    assert other.seen != whole.seen
    for name, value in whole.state_dict().items():
        assert torch.equal(short.state_dict()[name], value), name


def test_the_probe_sends_no_gradient_into_the_encoder() -> None:
    learner = a_learner()
    features = learner.encoder(torch.randn(8, 8))
    assert learner.probe is not None
    learner.probe.loss_and_accuracy(features, torch.zeros(8, dtype=torch.long)).loss.backward()
    assert all(parameter.grad is None for parameter in learner.encoder.parameters())


@pytest.mark.parametrize("check_every", [1, 4])
def test_a_nan_stops_the_run_with_step_and_term(tmp_path: Path, check_every: int) -> None:
    learner = a_learner(check_every=check_every)
    head = learner.objective.models["manipulation"]

    class Breaks(lightning.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 5:
                with torch.no_grad():
                    next(head.parameters()).fill_(float("nan"))

    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    with pytest.raises(NonFiniteLoss, match=r"manipulation became nan at step 5.*checkpoint"):
        fit(learner, a_trainer(tmp_path, callbacks=[Breaks(), saver]))
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"step=2.ckpt", "step=4.ckpt"}


def test_weights_that_a_nan_gradient_has_reached_are_not_written(tmp_path: Path) -> None:
    """The loss of the step is finite; its gradient is not, and the epoch ends there."""
    learner = a_learner()

    class Poisons(lightning.Callback):
        def on_after_backward(self, trainer: Any, module: Any) -> None:
            if trainer.global_step == 3:
                next(module.encoder.parameters()).grad.fill_(float("nan"))

    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    with pytest.raises(NonFiniteLoss, match=r"weights became NaN or infinite before step 4.*step=2.ckpt"):
        fit(learner, a_trainer(tmp_path, callbacks=[Poisons(), saver]))
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"step=2.ckpt"}


class Rows(Logger):
    """A logger that keeps what it is given."""

    name = version = "rows"

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append({**metrics, "step": step or 0})

    def log_hyperparams(self, *args: Any) -> None:
        pass


@pytest.mark.parametrize("check_every", [1, 5])
def test_the_logged_rate_is_that_of_the_last_step_read(tmp_path: Path, check_every: int) -> None:
    trainer = a_trainer(tmp_path)
    trainer.logger = rows = Rows()
    fit(a_learner(check_every=check_every), trainer)
    for row in rows.rows:
        assert row["lr"] == pytest.approx(0.5 * warmup_cosine(int(row["step"]) - 1, 2, STEPS))


NAMES = ["alignment", "uniformity", "effective_rank", "feature_std", "accuracy/0", "majority/0"]


@pytest.mark.parametrize("check_every", [1, 5])
def test_each_read_logs_what_the_last_step_looked_like(tmp_path: Path, check_every: int) -> None:
    """Beside the terms, under the same names each time; between two reads nothing is computed."""
    learner, trainer = a_learner(check_every=check_every), a_trainer(tmp_path)
    trainer.logger = rows = Rows()
    outputs: list[Tensor] = []
    learner.encoder.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
    calls: list[int] = []

    def counted(*views: Tensor) -> dict[str, Tensor]:
        calls.append(len(outputs))
        return describe(*views)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stec.core.learner.describe", counted)
        fit(learner, trainer)
    reads = [*range(check_every, STEPS, check_every), STEPS]
    assert calls == reads == [row["step"] for row in rows.rows]
    for row in rows.rows:
        assert list(row) == [*learner.names, "lr", *NAMES, "step"]
        expected = describe(*outputs[int(row["step"]) - 1].chunk(2))
        for name, value in expected.items():
            assert row[name] == float(value)
        assert 0.0 <= row["accuracy/0"] <= 1.0
        assert 1 / 6 <= row["majority/0"] <= 1.0
    assert learner.diagnostics == {name: rows.rows[-1][name] for name in NAMES}
    assert not learner.diagnostics.keys() & learner.last.keys()


def test_reading_changes_nothing_about_the_training(tmp_path: Path) -> None:
    often, seldom = a_learner(momentum=True), a_learner(momentum=True, check_every=5)
    fit(often, a_trainer(tmp_path))
    fit(seldom, a_trainer(tmp_path))
    for name, value in often.state_dict().items():
        assert torch.equal(seldom.state_dict()[name], value), name


def test_terms_and_diagnostics_are_averaged_over_processes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, trainer = a_learner(), a_trainer(tmp_path, steps=1)
    fit(learner, trainer)
    alone = {**learner.last, **learner.diagnostics}
    reduced: list[Tensor] = []
    monkeypatch.setattr("stec.core.distributed.world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: reduced.append(tensor.mul_(6)))
    learner._trace = [torch.tensor([alone[name] for name in learner.names])]
    told = {name: torch.tensor(alone[name]) for name in NAMES}
    monkeypatch.setattr(learner, "_describe", lambda: told)
    learner.read_terms()
    assert len(reduced) == 1
    for name, value in {**learner.last, **learner.diagnostics}.items():
        assert value == pytest.approx(3 * alone[name]), name


def test_two_readers_of_actions_keep_their_names_apart() -> None:
    learner = a_learner()
    for name in ("first", "second"):
        learner.objective.models[name] = BinnedActions(nn.Linear(12, 6), Bins.uniform(-2.0, 2.0, 6))
    features = Features(torch.randn(4, 6), torch.randn(4, 6))
    pair = shifted((torch.randn(4, 8), torch.zeros(4).long()), torch.Generator())
    for name in ("manipulation", "first", "second"):
        learner.objective.models[name](features, None, pair)
    learner._latest = features.pair
    found = learner._describe()
    pairs = [("accuracy/0", "manipulation"), ("first/accuracy/0", "first"), ("second/accuracy/0", "second")]
    for key, name in pairs:
        assert torch.equal(found[key], learner.objective.models[name].diagnostics()["accuracy/0"])


class Sequences(nn.Module):
    """An encoder with two outputs over time, as one of speech has."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 12)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        context = self.net(rows).unflatten(1, (2, 6))
        return context, context.square()


class Predicts(InverseModel):
    """A model of pairs that may have no x'."""

    def forward(self, online: Features, target: Features | None, pair: ViewPair) -> Tensor:
        context, latents = online.x
        return (context - latents.detach()).square().mean()


@pytest.mark.parametrize("alone", [False, True])
def test_sequences_and_views_without_a_partner_are_described(tmp_path: Path, alone: bool) -> None:
    def views(batch: tuple[Tensor, Tensor], generator: torch.Generator) -> ViewPair:
        pair = shifted(batch, generator)
        return pair._replace(x_prime=None) if alone else pair

    learner = Learner(
        Sequences(),
        STECObjective({"time": Predicts()}, {"time": 1.0}),
        views=views,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.01),
        adapt=by_kind,
        weight_decay=0.0,
        warmup_steps=0,
        total_steps=STEPS,
        seed=0,
    )
    outputs: list[Tensor] = []
    learner.encoder.register_forward_hook(lambda module, inputs, output: outputs.append(output[0].detach()))
    fit(learner, a_trainer(tmp_path))
    views_seen = [outputs[-1]] if alone else outputs[-1].chunk(2)
    assert list(learner.diagnostics) == NAMES[1 if alone else 0 : 4]
    assert learner.diagnostics == {name: float(value) for name, value in describe(*views_seen).items()}


class Collapses(lightning.Callback):
    """From a step on, the encoder gives nearly the same features whatever it sees."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step >= self.step:
            with torch.no_grad():
                module.encoder[-1].weight.copy_(0.01 * torch.eye(6, 16))
                module.encoder[-1].bias.fill_(1.0)


# the warm-up takes 2 steps; steps count from 0
@pytest.mark.parametrize(("begins", "since"), [(5, 5), (1, 2)])
def test_a_collapse_is_warned_of_once(tmp_path: Path, begins: int, since: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stec.core.diagnostics.PATIENCE", 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CollapsedFeatures)
        fit(a_learner(), a_trainer(tmp_path, callbacks=[Collapses(begins)]))
    (message,) = [str(warning.message) for warning in caught if warning.category is CollapsedFeatures]
    assert f"at step {since + 3}, and below 0.2 since step {since} " in message


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_warns_for_all(tmp_path: Path, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = a_learner()
    fit(learner, a_trainer(tmp_path, steps=1))
    learner._trace = [torch.zeros(len(learner.names))]
    monkeypatch.setattr(learner, "_describe", dict)
    monkeypatch.setattr(learner._collapse, "read", lambda found, step: "collapsed")
    monkeypatch.setattr("stec.core.distributed.rank", lambda: rank)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CollapsedFeatures)
        learner.read_terms()
    assert len(caught) == (rank == 0)


def test_features_that_start_alike_are_no_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every warning is an error here."""
    monkeypatch.setattr("stec.core.diagnostics.PATIENCE", 3)
    learner = a_learner()
    fit(learner, a_trainer(tmp_path, callbacks=[Collapses(0)]))
    assert learner.diagnostics["feature_std"] < 0.05


def test_the_probe_takes_plain_steps_of_its_own_rate() -> None:
    optimizer = a_learner().configure_optimizers()["optimizer"]
    probe = next(group for group in optimizer.param_groups if group["name"] == "probe")
    assert probe["initial_lr"] == 0.04
    assert probe["weight_decay"] == 0.0
    assert {len(p.shape) for p in probe["params"]} == {1, 2}
    assert not any(name.startswith("probe") for g in optimizer.param_groups if g is not probe for name in g["names"])


def test_processes_draw_different_views(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, batch = a_learner(), (torch.zeros(4, 8), torch.zeros(4, dtype=torch.long))
    first = learner.make_pair(batch, 5).x
    monkeypatch.setattr("stec.core.distributed.rank", lambda: 1)
    assert not torch.equal(first, learner.make_pair(batch, 5).x)


def test_a_trainer_that_goes_on_beyond_the_schedule_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes 12 steps and total_steps is 11"):
        fit(a_learner(steps=11), a_trainer(tmp_path, steps=12, epochs=100))


def test_accumulating_gradients_is_refused(tmp_path: Path) -> None:
    trainer = a_trainer(tmp_path)
    trainer.accumulate_grad_batches = 2
    with pytest.raises(ValueError, match="give micro_batch"):
        fit(a_learner(), trainer)


def test_a_checkpoint_loads_without_running_anything_and_tells_its_record(tmp_path: Path) -> None:
    learner = a_learner()
    trainer = a_trainer(tmp_path)
    fit(learner, trainer)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    checkpoint = load_checkpoint(tmp_path / "end.ckpt")
    assert checkpoint.step == STEPS
    assert checkpoint.record == {"config": {"width": 16}}
    fresh = mlp(8, [16], 6)
    load_weights(fresh, checkpoint.part("encoder"), source="end.ckpt")
    x = torch.randn(4, 8)
    assert torch.equal(fresh.eval()(x), learner.encoder.eval()(x))
    assert "objective.models.manipulation.bins.edges" in checkpoint.weights


def test_momentum_must_be_given_where_a_model_wants_it() -> None:
    with pytest.raises(ValueError, match="target_momentum"):
        Learner(
            nn.Linear(8, 6),
            STECObjective({"normal": NormalIdentity()}, {"normal": 1.0}),
            views=shifted,
            optimizer=lambda groups: LARS(groups, lr=0.1),
            adapt=by_kind,
            weight_decay=0.0,
            warmup_steps=0,
            total_steps=1,
            seed=0,
        )


@pytest.mark.parametrize("momentum", [False, True])
def test_micro_batches_train_as_the_whole_batch_does(momentum: bool, tmp_path: Path) -> None:
    """The losses and weights of a run whose encoder has no BatchNorm, with a momentum encoder and without."""
    runs = []
    for micro_batch in (None, 5):
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 6))
        learner = a_learner(momentum=momentum, encoder=encoder, micro_batch=micro_batch)
        a_trainer(tmp_path).fit(learner, Loader())
        runs.append(learner)
    plain, micro = runs
    assert [step.keys() for step in micro.seen] == [step.keys() for step in plain.seen]
    assert len(micro.seen) == STEPS
    for one, other in zip(micro.seen, plain.seen):
        assert list(one.values()) == pytest.approx(list(other.values()), rel=1e-4)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(micro.state_dict()[name], value, rtol=1e-4, atol=1e-5)
