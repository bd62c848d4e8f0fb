"""Heads as their papers build them, and the momentum encoder: what moves, what does not, and who owns what."""

import copy
import math
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn

from stec.core.actions import ViewPair
from stec.core.identity import BYOL
from stec.core.learner import Learner
from stec.core.networks import MomentumEncoder, mlp, projection_head, standardised_head
from stec.core.objective import STECObjective
from stec.core.optim import by_kind, parameter_groups


def moved(module: nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by)


# --- heads ----------------------------------------------------------------------------------------------------------


def test_projection_head_as_the_released_code_has_it() -> None:
    head = projection_head(512, 512, 64)
    assert sum(p.numel() for p in head.parameters()) == 296_576
    assert not head.bn_output.bias.requires_grad
    assert head.output.bias is None
    manipulation = mlp(1024, [512], 36)
    assert sum(p.numel() for p in manipulation.parameters()) == 544_292


def test_standardised_head_ends_in_a_norm_without_affine_part() -> None:
    head = standardised_head(5, [7, 6], 3)
    kinds = [type(layer).__name__ for layer in head]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "BatchNorm1d"]
    assert [layer.out_features for layer in head if isinstance(layer, nn.Linear)] == [7, 6, 3]
    assert head.output.bias is None
    assert not list(head.bn_output.parameters())
    z = head(3 + 10 * torch.randn(256, 5))
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.var(dim=0, correction=0), torch.ones(3), rtol=0, atol=1e-2)


# --- the momentum encoder -------------------------------------------------------------------------------------------


def test_momentum_encoder_limits() -> None:
    online = nn.Linear(3, 3)
    target = MomentumEncoder(online, momentum=0.9)
    assert torch.equal(target.module.weight, online.weight)  # it starts as a copy
    before = target.module.weight.clone()
    moved(online, 1.0)
    target.update(1.0)
    assert torch.equal(target.module.weight, before)
    target.update(0.75)
    torch.testing.assert_close(target.module.weight, before + 0.25)
    torch.testing.assert_close(target.module.weight, 0.75 * before + 0.25 * online.weight)
    target.update(0.0)
    assert torch.equal(target.module.weight, online.weight)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        MomentumEncoder(online, momentum=-0.1)


def test_momentum_encoder_passes_no_gradient() -> None:
    online = nn.Linear(3, 3)
    target = MomentumEncoder(online, momentum=0.9)
    x = torch.randn(2, 3, requires_grad=True)
    assert not target(x).requires_grad
    assert online(x).requires_grad
    assert not any(parameter.requires_grad for parameter in target.parameters())
    assert all(parameter.requires_grad for parameter in online.parameters())


def test_momentum_encoder_gives_what_the_online_module_gives() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, 2 * x

    target = MomentumEncoder(Two(), momentum=0.9)
    target.update(0.5)  # nothing to move is no error: a projector may be the identity
    assert [float(part) for part in target(torch.ones(()))] == [1.0, 2.0]


def test_an_update_takes_no_new_memory() -> None:
    online = mlp(4, [6], 3)
    target = MomentumEncoder(online, momentum=0.9, buffers="copied")
    places = [value.data_ptr() for value in target.state_dict().values()]
    for _ in range(3):
        moved(online, 0.1)
        target.update(0.9)
    assert [value.data_ptr() for value in target.state_dict().values()] == places
    mine, theirs = ({p.untyped_storage().data_ptr() for p in m.parameters()} for m in (target, online))
    assert not mine & theirs
    assert all(parameter.grad_fn is None and parameter.grad is None for parameter in target.parameters())


def test_the_online_module_is_followed_and_not_owned() -> None:
    online = mlp(4, [6], 3)
    target = MomentumEncoder(online, momentum=0.9)
    assert set(target.state_dict()) == {f"module.{name}" for name in online.state_dict()}
    assert len(list(target.parameters())) == len(list(online.parameters()))
    assert online not in list(target.modules())


def test_the_optimiser_gets_no_parameter_of_a_slow_copy() -> None:
    model = BYOL(mlp(4, [6], 3), mlp(3, [6], 3), momentum=0.9)
    groups = parameter_groups(model, weight_decay=1e-4, adapt=by_kind)
    names = {name for group in groups for name in group["names"]}
    assert names == {name for name, _ in model.named_parameters() if not name.startswith("target_projector")}
    assert len(names) == 12


def test_a_copied_model_follows_its_own_online_module() -> None:
    model = copy.deepcopy(BYOL(nn.Linear(4, 3), nn.Identity(), momentum=0.9))
    moved(model.projector, 1.0)
    assert model.target_projector is not None
    model.target_projector.update(0.0)
    assert torch.equal(model.target_projector.module.weight, model.projector.weight)


def a_normed_pair(rule: Any) -> tuple[nn.BatchNorm1d, MomentumEncoder]:
    """Online statistics from views around 0, the copy's from views around 5."""
    online = nn.BatchNorm1d(1)
    target = MomentumEncoder(online, momentum=0.9, buffers=rule)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        noise = torch.randn(64, 1, generator=generator)
        online(noise)
        target(5 + 2 * noise)
    return online, target


def test_buffers_are_its_own_by_default() -> None:
    online, target = a_normed_pair("own")
    assert MomentumEncoder(online, momentum=0.9).buffer_rule == "own"
    before = {name: value.clone() for name, value in target.module.named_buffers()}
    target.update(0.0)  # even where parameters are copied
    assert all(torch.equal(value, before[name]) for name, value in target.module.named_buffers())
    assert before["running_mean"].item() == pytest.approx(5.0, abs=0.2)
    assert before["running_var"].item() == pytest.approx(4.0, abs=0.6)
    assert online.running_mean is not None
    assert online.running_mean.item() == pytest.approx(0.0, abs=0.1)


def test_copied_buffers_are_the_online_modules_after_an_update() -> None:
    online, target = a_normed_pair("copied")
    assert target.module.running_mean.item() == pytest.approx(5.0, abs=0.2)
    target.module.num_batches_tracked.zero_()
    target.update(1.0)  # parameters stay, buffers do not
    for name, value in online.named_buffers():
        assert torch.equal(target.module.get_buffer(name), value)
    x = torch.randn(8, 1)
    torch.testing.assert_close(target.eval()(x), online.eval()(x).detach())


@pytest.mark.parametrize("rule", ["own", "copied"])
def test_in_training_mode_the_views_at_hand_decide_either_way(rule: str) -> None:
    _, target = a_normed_pair(rule)
    target.update(0.9)
    out = target(50 + 3 * torch.randn(512, 1))
    assert abs(out.mean().item()) < 1e-5
    assert out.var(correction=0).item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.unchecked
def test_another_word_for_buffers_is_an_error() -> None:
    with pytest.raises(ValueError, match="use 'own' or 'copied'"):
        MomentumEncoder(nn.Linear(2, 2), momentum=0.9, buffers="shared")  # type: ignore[arg-type]


# --- in the Learner -------------------------------------------------------------------------------------------------

STEPS = 6


def noisy(rows: Tensor, generator: torch.Generator) -> ViewPair:
    b = len(rows)
    x, x_prime = rows + torch.randn(2, *rows.shape, generator=generator)
    return ViewPair(x, x_prime, torch.zeros(b, 0), torch.ones(b, dtype=torch.bool), torch.zeros(b, dtype=torch.long))


class Watches(lightning.Callback):
    """The online and the slow parameters after every step."""

    def __init__(self) -> None:
        self.online: list[Tensor] = []
        self.slow: list[list[Tensor]] = [[], []]

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        model = module.objective.models["identity"]
        online = torch.cat([p.detach().flatten() for m in (module.encoder, model.projector) for p in m.parameters()])
        self.online.append(online.clone())
        for kept, slow in zip(self.slow, (module.target, model.target_projector)):
            kept.append(torch.cat([p.flatten() for p in slow.parameters()]).clone())


def test_the_schedule_rises_to_one_and_moves_every_slow_copy(tmp_path: Path) -> None:
    """The parameters after each step against m_t = 1 - (1 - m_0)(cos(pi t / T) + 1) / 2, written out."""
    encoder, projector = mlp(8, [16], 6), mlp(6, [8], 4, bias=False)
    model = BYOL(projector, mlp(4, [8], 4), momentum=0.3)
    start = torch.cat([p.detach().flatten() for m in (encoder, projector) for p in m.parameters()]).clone()
    learner = Learner(
        encoder,
        STECObjective({"identity": model}, {"identity": 1.0}),
        views=noisy,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.5),
        adapt=by_kind,
        weight_decay=0.0,
        warmup_steps=0,
        total_steps=STEPS,
        schedule=lambda step, warmup, total: 1.0,
        seed=1,
        target_momentum=0.6,
    )
    watches = Watches()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        logger=False,
        callbacks=[watches],
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    rows = torch.randn(STEPS, 16, 8)
    trainer.fit(learner, torch.utils.data.DataLoader(rows, batch_size=None))
    n = sum(p.numel() for p in encoder.parameters())
    parts = (slice(0, n), slice(n, None))
    slow = [start[part].clone() for part in parts]
    rates: list[list[float]] = [[], []]
    for step in range(1, STEPS + 1):
        online = watches.online[step - 1]
        for i, (part, base) in enumerate(zip(parts, (0.6, 0.3))):
            m = 1 - (1 - base) * (math.cos(math.pi * step / STEPS) + 1) / 2
            slow[i] = m * slow[i] + (1 - m) * online[part]
            rates[i].append(m)
            torch.testing.assert_close(watches.slow[i][step - 1], slow[i], rtol=1e-5, atol=1e-6)
    for base, rising, kept in zip((0.6, 0.3), rates, watches.slow):
        assert rising == sorted(rising)
        assert rising[0] > base
        assert rising[-1] == 1.0
        assert torch.equal(kept[-1], kept[-2])  # the last step moves nothing
        assert not torch.equal(kept[0], kept[1])
