"""BYOL and SimSiam against loops, closed forms and numerical gradients; where gradients go, and where they must not."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stec.core.actions import ViewPair
from stec.core.identity import BYOL, SimSiam
from stec.core.losses import byol, gaussian_nll, vicreg_invariance
from stec.core.networks import mlp
from stec.core.objective import Features, InverseModel, encode

B, F_IN, P = 6, 5, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def no_pair(b: int = B) -> ViewPair:
    """These models read features alone."""
    return ViewPair(None, None, torch.zeros(b, 0), torch.ones(b, dtype=torch.bool), torch.zeros(b, dtype=torch.long))


def features(seed: int, *, grad: bool = False) -> Features:
    return Features(*(random(B, F_IN, seed=s).requires_grad_(grad) for s in (seed, seed + 1)))


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(3)
    return nn.Linear(F_IN, P).double(), nn.Linear(P, P).double()


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return one @ other / (one @ one).sqrt() / (other @ other).sqrt()


def loop_byol(predictions: Tensor, targets: Tensor) -> Tensor:
    """The definition, one row at a time."""
    return torch.stack([2 - 2 * cosine(p, z) for p, z in zip(predictions, targets)]).mean()


# --- the pure function ----------------------------------------------------------------------------------------------


def test_byol_and_its_gradients_against_the_loop() -> None:
    p, z = random(7, 5).requires_grad_(), (3 * random(7, 5, seed=1)).requires_grad_()
    ours, reference = byol(p, z), loop_byol(p, z)
    torch.testing.assert_close(ours, reference, rtol=1e-13, atol=1e-13)
    for mine, theirs in zip(torch.autograd.grad(ours, (p, z)), torch.autograd.grad(reference, (p, z))):
        assert mine.abs().max() > 1e-3  # of the target too: the function itself stops nothing
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)


def test_byol_gradcheck() -> None:
    assert torch.autograd.gradcheck(byol, (random(4, 3).requires_grad_(), random(4, 3, seed=1).requires_grad_()))


@pytest.mark.parametrize(("angle", "value"), [(0.0, 0.0), (60.0, 1.0), (90.0, 2.0), (180.0, 4.0)])
def test_byol_is_two_minus_two_cos(angle: float, value: float) -> None:
    a = torch.tensor(angle, dtype=torch.float64).deg2rad()
    p, z = torch.stack((a.cos(), a.sin()))[None] * 7, torch.tensor([[0.2, 0.0]], dtype=torch.float64)
    assert byol(p, z).item() == pytest.approx(value, abs=1e-12)


def test_byol_is_the_surprise_of_a_normal_model() -> None:
    """Minus log N(unit target; unit prediction, I / 2), less the constant f/2 log(2 pi sigma^2)."""
    p, z = random(6, 5), random(6, 5, seed=1)
    p_unit, z_unit = F.normalize(p), F.normalize(z)
    normal = torch.distributions.Normal(p_unit, 0.5**0.5)
    constant = normal.log_prob(p_unit).sum(dim=1)
    torch.testing.assert_close(byol(p, z), (constant - normal.log_prob(z_unit).sum(dim=1)).mean())


@given(st.integers(0, 1000))
@settings(max_examples=20)
def test_byol_gradient_in_closed_form(seed: int) -> None:
    """-(2/|p|)(z - cos p) for unit z and p: orthogonal to p, and the loss blind to the scale of p and of z."""
    p, z = (random(1, 5, seed=seed) * 4).requires_grad_(), random(1, 5, seed=seed + 1)
    (gradient,) = torch.autograd.grad(byol(p, z), p)
    with torch.no_grad():
        p_unit, z_unit = p / p.norm(), z / z.norm()
        cos = (p_unit * z_unit).sum()
        torch.testing.assert_close(gradient, -2 / p.norm() * (z_unit - cos * p_unit), rtol=1e-9, atol=1e-12)
        assert abs((gradient * p).sum().item()) < 1e-12
        torch.testing.assert_close(byol(9 * p, z / 9), byol(p, z))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_byol_gradient_vanishes_at_both_poles(sign: float) -> None:
    p = random(5, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(byol(p, sign * 3 * p.detach()), p)
    assert gradient.abs().max() < 1e-14


def test_byol_of_equal_float32_rows_is_exactly_zero_and_of_near_ones_keeps_digits() -> None:
    p = random(64, 128).float()
    assert byol(p, p).item() == 0.0
    near = torch.tensor([[1.0, 1e-4]])  # 2 - 2 cos is 1e-8, below the spacing of float32 at 1
    assert byol(near, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(1e-8, rel=1e-3)


@pytest.mark.parametrize("loss", [byol, vicreg_invariance])
def test_narrow_embeddings_are_compared_in_float32(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    p, z = random(32, 16).bfloat16(), random(32, 16, seed=1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(p, z)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(p.float(), z.float()), rtol=0, atol=0)
    assert loss(p.double(), z.double()).dtype == torch.float64


@pytest.mark.unchecked
@pytest.mark.parametrize("loss", [byol, vicreg_invariance])
@pytest.mark.parametrize("other", [(6, 1), (1, 4), (5, 4)])
def test_rows_must_be_partners(loss: Callable[[Tensor, Tensor], Tensor], other: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="partners row by row"):
        loss(random(6, 4), random(*other))
    with pytest.raises(ValueError, match="partners row by row"):
        loss(random(0, 4), random(0, 4))


def test_vicreg_invariance_is_the_normal_model_on_embeddings_as_they_are() -> None:
    z, z_prime = random(6, 5).requires_grad_(), (2 * random(6, 5, seed=1)).requires_grad_()
    loop = torch.stack([(z[i, j] - z_prime[i, j]) ** 2 for i in range(6) for j in range(5)]).mean()
    ours = vicreg_invariance(z, z_prime)
    torch.testing.assert_close(ours, loop, rtol=1e-13, atol=0)
    for mine, theirs in zip(torch.autograd.grad(ours, (z, z_prime)), torch.autograd.grad(loop, (z, z_prime))):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-15)
    # sigma^2 = f / 2 for a row's sum over dimensions is sigma^2 = 1/2 for the mean over them.
    std = torch.full((5,), 0.5**0.5, dtype=torch.float64)
    torch.testing.assert_close(vicreg_invariance(z, z_prime), gaussian_nll(z, z_prime, std))
    summed = (z - z_prime).square().sum(dim=1).mean()
    torch.testing.assert_close(5 * vicreg_invariance(z, z_prime), summed)
    assert torch.autograd.gradcheck(vicreg_invariance, (z, z_prime))


# --- BYOL -----------------------------------------------------------------------------------------------------------


def test_byol_sums_both_orders_over_the_momentum_projector() -> None:
    projector, predictor = networks()
    model = BYOL(projector, predictor, momentum=0.9)
    assert model.target_projector is not None
    with torch.no_grad():
        model.target_projector.module.weight.add_(random(P, F_IN, seed=9))
    slow = model.target_projector.module
    online, target = features(0, grad=True), features(10)
    ours = model(online, target, no_pair())
    reference = loop_byol(predictor(projector(online.x)), slow(target.x_prime).detach()) + loop_byol(
        predictor(projector(online.x_prime)), slow(target.x).detach()
    )
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=0)
    wrt = [*online.pair, *projector.parameters(), *predictor.parameters()]
    for mine, theirs in zip(torch.autograd.grad(ours, wrt), torch.autograd.grad(reference, wrt)):
        assert mine.abs().max() > 1e-4
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)


def test_no_gradient_reaches_the_target_branch_of_byol() -> None:
    model = BYOL(*networks(), momentum=0.9)
    target = features(10, grad=True)
    model(features(0), target, no_pair()).backward()
    assert model.target_projector is not None
    assert target.x.grad is None
    assert target.x_prime.grad is None
    assert all(parameter.grad is None for parameter in model.target_projector.parameters())
    assert all(parameter.grad is not None for parameter in model.projector.parameters())


@pytest.mark.parametrize(
    ("build", "factor"),
    [(lambda f, g: BYOL(f, g, momentum=None), 1.0), (lambda f, g: SimSiam(f, g), 0.25)],
    ids=["BYOL", "SimSiam"],
)
def test_the_online_target_carries_no_gradient(
    build: Callable[[nn.Module, nn.Module], InverseModel], factor: float
) -> None:
    """The gradient is that of a target made by another, frozen projector of the same weights from frozen features."""
    projector, predictor = networks()
    frozen = copy.deepcopy(projector).requires_grad_(False)
    model, online = build(projector, predictor), features(0, grad=True)
    still = [h.detach() for h in online.pair]
    ours = model(online, None, no_pair())
    orders = zip(online.pair, reversed(still))
    reference = factor * sum(loop_byol(predictor(projector(h)), frozen(other)) for h, other in orders)
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=0)
    wrt = [*online.pair, *projector.parameters(), *predictor.parameters()]
    for mine, theirs in zip(torch.autograd.grad(ours, wrt), torch.autograd.grad(reference, wrt)):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)


def test_byol_without_stopped_gradient_is_simsiam_without_it() -> None:
    projector, predictor = networks()
    online = features(0, grad=True)
    losses = [
        BYOL(projector, predictor, momentum=None, stop_gradient=False)(online, None, no_pair()),
        4.0 * SimSiam(projector, predictor, stop_gradient=False)(online, None, no_pair()),
    ]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    byol, simsiam = (torch.autograd.grad(loss, [*online.pair, *projector.parameters()]) for loss in losses)
    for one, other in zip(byol, simsiam):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)
    stopped = torch.autograd.grad(BYOL(projector, predictor, momentum=None)(online, None, no_pair()), [*online.pair])
    assert not torch.allclose(stopped[0], byol[0])
    with pytest.raises(ValueError, match="stop_gradient=False goes with momentum=None"):
        BYOL(projector, predictor, momentum=0.9, stop_gradient=False)


def test_what_byol_wants_of_the_learner() -> None:
    assert BYOL(*networks(), momentum=0.99).needs_target
    assert not BYOL(*networks(), momentum=None).needs_target
    assert not SimSiam(*networks()).needs_target
    with pytest.raises(ValueError, match="pass target, or momentum=None"):
        BYOL(*networks(), momentum=0.99)(features(0), None, no_pair())
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        BYOL(*networks(), momentum=1.5)


def test_a_collapsed_embedding_is_a_minimum_of_byol() -> None:
    """No term for a_id = 1: nothing pushes a constant embedding apart."""
    h = random(1, F_IN).expand(B, F_IN).clone().requires_grad_()
    for momentum in (None, 0.9):
        model = BYOL(nn.Linear(F_IN, P).double(), nn.Identity(), momentum=momentum)
        value = model(Features(h, h), Features(h.detach(), h.detach()), no_pair())
        assert value.item() == 0.0
        assert all(g.abs().max() < 1e-14 for g in torch.autograd.grad(value, [h, *model.projector.parameters()]))


def test_momentum_none_is_the_slow_copy_that_has_caught_up() -> None:
    projector, predictor = networks()
    online = features(0)
    slow = BYOL(projector, predictor, momentum=0.5)
    plain = BYOL(projector, predictor, momentum=None)
    torch.testing.assert_close(slow(online, online, no_pair()), plain(online, None, no_pair()))
    with torch.no_grad():
        projector.weight.mul_(-1.0)
    assert abs(slow(online, online, no_pair()) - plain(online, None, no_pair())) > 1e-3


# --- SimSiam --------------------------------------------------------------------------------------------------------


def test_simsiam_is_the_published_loss_plus_one() -> None:
    projector, predictor = networks()
    online = features(0)
    z, z_prime = projector(online.x), projector(online.x_prime)
    p, p_prime = predictor(z), predictor(z_prime)
    published = -0.5 * (F.cosine_similarity(p, z_prime).mean() + F.cosine_similarity(p_prime, z).mean())
    ours = SimSiam(projector, predictor)(online, None, no_pair())
    torch.testing.assert_close(ours, published + 1, rtol=1e-12, atol=0)
    torch.testing.assert_close(BYOL(projector, predictor, momentum=None)(online, None, no_pair()), 4 * ours)


def test_without_stop_gradient_the_target_moves_too() -> None:
    projector, predictor = networks()
    online = features(0, grad=True)
    stopped = SimSiam(projector, predictor)(online, None, no_pair())
    open_ = SimSiam(projector, predictor, stop_gradient=False)(online, None, no_pair())
    torch.testing.assert_close(open_, stopped)
    z, z_prime = projector(online.x), projector(online.x_prime)
    reference = (loop_byol(predictor(z), z_prime) + loop_byol(predictor(z_prime), z)) / 4
    theirs = torch.autograd.grad(reference, projector.weight)[0]
    mine = torch.autograd.grad(open_, projector.weight)[0]
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)
    assert (torch.autograd.grad(stopped, projector.weight)[0] - mine).abs().max() > 1e-3


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_the_stopped_gradient_is_what_keeps_simsiam_from_collapsing(stop_gradient: bool) -> None:
    """Chen and He's Fig. 2 in small: the standard deviation of unit embeddings, whose largest value is 1 / sqrt(8)."""
    encoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
    model = SimSiam(mlp(32, [32], 8), mlp(8, [4], 8), stop_gradient=stop_gradient)
    optimizer = torch.optim.SGD([*encoder.parameters(), *model.parameters()], lr=0.1, momentum=0.9)
    rows = torch.randn(128, 8)
    for _ in range(150):
        x, x_prime = rows + 0.3 * torch.randn(2, 128, 8)
        online = encode(encoder, no_pair(128)._replace(x=x, x_prime=x_prime))
        optimizer.zero_grad()
        model(online, None, no_pair(128)).backward()
        optimizer.step()
    spread = F.normalize(model.projector(encoder(rows))).std(dim=0).mean().item()
    assert spread > 0.25 if stop_gradient else spread < 0.08


# --- both -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "projectors"), [(lambda f, g: BYOL(f, g, momentum=0.9), 2), (SimSiam, 1)], ids=["BYOL", "SimSiam"]
)
def test_both_views_pass_a_network_together(
    build: Callable[[nn.Module, nn.Module], InverseModel], projectors: int
) -> None:
    """BatchNorm sees 2b rows, of the online and of the slow projector."""
    seen: dict[str, list[int]] = {"projector": [], "predictor": []}

    class Counts(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, h: Tensor) -> Tensor:
            seen[self.name].append(len(h))
            return h

    build(Counts("projector"), Counts("predictor"))(features(0), features(10), no_pair())
    assert seen == {"projector": [2 * B] * projectors, "predictor": [2 * B]}
