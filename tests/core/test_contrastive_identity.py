"""ReLIC, ReLICv2, MoCo v2 and actions over many views, against loops in float64 and closed forms."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stec.core.actions import Bins, MoreViews, ViewPair
from stec.core.identity import MoCo, ReLIC, ReLICv2
from stec.core.losses import info_nce, queue_nce, relic
from stec.core.manipulation import BinnedActions, EveryPair, RegressedActions
from stec.core.networks import MomentumEncoder, mlp, projection_head
from stec.core.objective import Features, InverseModel, STECObjective, encode


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(row: Tensor) -> Tensor:
    return row / row.square().sum().sqrt()


def a_pair(b: int = 4, d: int = 3) -> ViewPair:
    return ViewPair(None, None, random(b, d, seed=9), torch.ones(b).bool(), torch.zeros(b).long())


def with_views(pair: ViewPair, large: int, small: int) -> ViewPair:
    """Every action and validity its own, so that a mistaken index shows."""
    v, b, d = large + small, len(pair.label), pair.action.shape[1]
    valid = torch.rand(v, v, b, generator=torch.Generator().manual_seed(5)) < 0.7
    return pair._replace(more=MoreViews((None,) * (v - 2), large, random(v, v, b, d, seed=6), valid))


# --- ReLIC's loss -----------------------------------------------------------------------------------------------------


def loop_relic(
    queries: Tensor, keys: Tensor, tau: float, *, first: int = 0, same_view: bool = False
) -> tuple[Tensor, Tensor]:
    """The definition: one pair of views, one object and one candidate at a time."""
    v, b, large, m = len(queries), queries.shape[1], len(keys), keys.shape[1]
    keys = keys.detach()
    contrasts, divergences = [], []
    for r in range(b):
        beliefs = {}
        for i in range(v):
            for j in range(large):
                if i == j:
                    continue
                columns = [(j, k) for k in range(m)]
                if same_view:
                    columns += [(i, k) for k in range(m) if k != r + first]
                scores = [unit(queries[i, r]) @ unit(keys[view, k]) / tau for view, k in columns]
                beliefs[i, j] = torch.stack(scores) - torch.stack(scores).logsumexp(dim=0)
                contrasts.append(-beliefs[i, j][r + first])
        for pair, log_q in beliefs.items():
            teachers = [(i, j) for i, j in beliefs if i < large and (i, j) != pair]
            for teacher in teachers:
                log_p = beliefs[teacher].detach()
                divergences.append((log_p.exp() * (log_p - log_q)).sum() / len(teachers))
    return torch.stack(contrasts).mean(), torch.stack(divergences).sum() / len(contrasts)


CASES = [(2, 2, 5, 0, False), (2, 2, 5, 0, True), (3, 2, 4, 0, False), (5, 3, 7, 3, False), (3, 3, 6, 1, True)]


@pytest.mark.parametrize(("v", "large", "m", "first", "same_view"), CASES)
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_relic_and_its_gradients_against_the_loop(
    v: int, large: int, m: int, first: int, same_view: bool, tau: float
) -> None:
    b = min(4, m - first)
    queries, keys = random(v, b, 6).requires_grad_(), random(large, m, 6, seed=1)
    ours = relic(queries, keys, temperature=tau, first=first, same_view=same_view)
    reference = loop_relic(queries, keys, tau, first=first, same_view=same_view)
    for mine, theirs in zip(ours, reference):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)
        (found,) = torch.autograd.grad(mine, queries, retain_graph=True)
        (expected,) = torch.autograd.grad(theirs, queries, retain_graph=True)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        assert found.abs().flatten(1).sum(dim=1).min() > 1e-4  # every view learns from either term
    (both,) = torch.autograd.grad(0.3 * ours[0] - 2.0 * ours[1], queries)
    (expected,) = torch.autograd.grad(0.3 * reference[0] - 2.0 * reference[1], queries)
    torch.testing.assert_close(both, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("same_view", [False, True])
def test_relic_gradcheck(same_view: bool) -> None:
    queries, keys = random(2, 3, 4).requires_grad_(), random(2, 4, 4, seed=1)
    assert torch.autograd.gradcheck(
        lambda q: relic(q, keys, temperature=0.5, first=1, same_view=same_view, block=2)[0], queries
    )


def test_relic_gradcheck_of_a_small_view() -> None:
    """A small view is nobody's example, so that numerical derivatives by its queries see all of the invariance."""
    large, small, keys = random(2, 3, 4), random(1, 3, 4, seed=2).requires_grad_(), random(2, 3, 4, seed=1)
    assert torch.autograd.gradcheck(lambda q: relic(torch.cat((large, q)), keys, temperature=0.5), small)


def test_the_divergence_has_the_gradient_softmax_minus_p() -> None:
    """d KL(sg p || softmax(w)) / dw = softmax(w) - p, carried to the queries by hand."""
    queries, keys, tau, n = random(2, 5, 4).requires_grad_(), random(2, 5, 4, seed=1), 0.5, 5
    (found,) = torch.autograd.grad(relic(queries, keys, temperature=tau)[1], queries)
    u, t = F.normalize(queries.detach(), dim=2), F.normalize(keys, dim=2)
    p = [(u[0] @ t[1].T / tau).softmax(dim=1), (u[1] @ t[0].T / tau).softmax(dim=1)]
    for i, j in ((0, 1), (1, 0)):
        by_unit = (p[i] - p[j]) @ t[j] / tau / (2 * n)
        along = (by_unit * u[i]).sum(dim=1, keepdim=True) * u[i]
        norm = queries[i].detach().norm(dim=1, keepdim=True)
        torch.testing.assert_close(found[i], (by_unit - along) / norm, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("block", [1, 2, 1000])
@pytest.mark.parametrize("same_view", [False, True])
def test_relic_does_not_depend_on_the_block(block: int, same_view: bool) -> None:
    queries, keys = random(3, 5, 6).requires_grad_(), random(3, 7, 6, seed=1)

    def both(block: int | None) -> tuple[Tensor, Tensor]:
        terms = relic(queries, keys, temperature=0.3, first=2, same_view=same_view, block=block)
        loss = terms[0] + 2 * terms[1]
        return loss, torch.autograd.grad(loss, queries)[0]

    for found, expected in zip(both(block), both(3)):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("n", [2, 5, 64])
@pytest.mark.parametrize("same_view", [False, True])
def test_relic_of_collapsed_rows(n: int, same_view: bool) -> None:
    ones = torch.ones(2, n, 3, dtype=torch.float64)
    contrast, invariance = relic(ones, ones, temperature=0.1, same_view=same_view)
    assert contrast.item() == pytest.approx(math.log(2 * n - 1 if same_view else n), abs=1e-12)
    assert invariance.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("same_view", [False, True])
def test_equal_views_and_targets_agree(same_view: bool) -> None:
    z = random(1, 6, 4).expand(2, -1, -1)
    contrast, invariance = relic(z, z, temperature=0.2, same_view=same_view)
    assert invariance.item() == 0.0
    assert contrast.item() > 0.01


@given(st.integers(0, 1000))
@settings(max_examples=20)
def test_the_invariance_is_no_less_than_zero_and_names_disagreement(seed: int) -> None:
    queries, keys = random(4, 5, 6, seed=seed), random(2, 5, 6, seed=seed + 1)
    contrast, invariance = relic(queries, keys, temperature=0.5)
    assert invariance.item() > 1e-3  # random views never agree
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    again = relic(queries[:, order] * 3.0, keys[:, order], temperature=0.5)
    torch.testing.assert_close(torch.stack(again), torch.stack((contrast, invariance)))
    swapped = relic(queries[[1, 0, 3, 2]], keys.flip(0), temperature=0.5)
    torch.testing.assert_close(torch.stack(swapped), torch.stack((contrast, invariance)))


def test_relic_at_the_limits_of_temperature() -> None:
    queries, keys = random(2, 6, 3), random(2, 6, 3, seed=1)
    contrast, invariance = relic(queries, keys, temperature=1e6)
    assert contrast.item() == pytest.approx(math.log(6), abs=1e-5)
    assert invariance.item() == pytest.approx(0, abs=1e-9)
    tau = 1e-4
    u, t = F.normalize(queries, dim=2), F.normalize(keys, dim=2)
    own = [torch.stack([a @ b for a, b in zip(u[i], t[1 - i])]) for i in (0, 1)]
    best = [(u[i] @ t[1 - i].T).fill_diagonal_(-2).amax(dim=1) for i in (0, 1)]
    margin = torch.stack([(b - o).clamp(min=0) for b, o in zip(best, own)]).mean()
    assert tau * relic(queries, keys, temperature=tau)[0].item() == pytest.approx(margin.item(), abs=1e-3)


def test_relic_without_invariance_is_info_nce() -> None:
    queries, keys = random(2, 6, 5).requires_grad_(), random(2, 6, 5, seed=1)
    rows = torch.arange(6)
    u, t = F.normalize(queries, dim=2), F.normalize(keys, dim=2)
    expected = sum(info_nce(u[i], t[1 - i], positives=rows, temperature=0.3) for i in (0, 1)) / 2
    contrast, _ = relic(queries, keys, temperature=0.3)
    torch.testing.assert_close(contrast, expected)
    torch.testing.assert_close(torch.autograd.grad(contrast, queries), torch.autograd.grad(expected, queries))


def test_relic_in_half_precision_is_computed_in_float32() -> None:
    queries, keys = random(2, 32, 16).bfloat16(), random(2, 32, 16, seed=1).bfloat16()
    expected = relic(queries.float(), keys.float(), temperature=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = relic(queries, keys, temperature=0.1)
    assert found[0].dtype == found[1].dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_relic_holds_no_matrix() -> None:
    queries, keys = torch.randn(2, 2048, 8, requires_grad=True), torch.randn(2, 2048, 8)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        relic(queries, keys, temperature=0.5)
    assert max(saved) <= 2 * 2048 * 8


def test_relic_survives_low_temperature_in_float32() -> None:
    queries = random(2, 8, 4).float().requires_grad_()
    contrast, invariance = relic(queries, random(2, 8, 4, seed=1).float() * 1e4, temperature=1e-3, same_view=True)
    (contrast + invariance).backward()
    assert queries.grad is not None
    assert torch.stack((contrast, invariance)).isfinite().all()
    assert queries.grad.isfinite().all()


@pytest.mark.parametrize(
    "loss",
    [
        lambda q: relic(q[None].repeat(2, 1, 1), random(2, 4, 3), temperature=0.5)[1],
        lambda q: queue_nce(q, random(4, 3), random(5, 3), temperature=0.5),
    ],
)
def test_a_second_derivative_raises(loss: Callable[[Tensor], Tensor]) -> None:
    q = random(4, 3, seed=1).requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss(q), q, create_graph=True)


def test_mistaken_settings_say_so() -> None:
    q, k = random(3, 4, 5), random(2, 4, 5)
    with pytest.raises(ValueError, match="positive"):
        relic(q, k, temperature=0.0)
    with pytest.raises(ValueError, match="leave small views out"):
        relic(q, k, temperature=0.5, same_view=True)
    with pytest.raises(ValueError, match="a key row must be there"):
        relic(q, k, temperature=0.5, first=1)
    with pytest.raises(ValueError, match="first of the queries' views"):
        relic(q, random(4, 4, 5), temperature=0.5)
    with pytest.raises(ValueError, match="at least two"):
        relic(q, k[:1], temperature=0.5)
    with pytest.raises(ValueError, match="positive"):
        queue_nce(q[0], k[0], q[1], temperature=-1.0)
    for model in (ReLIC, ReLICv2):
        with pytest.raises(ValueError, match="alpha is -1"):
            model(nn.Identity(), temperature=0.5, alpha=-1.0, momentum=None)
        with pytest.raises(ValueError, match="temperature is 0"):
            model(nn.Identity(), temperature=0.0, alpha=1.0, momentum=None)
    with pytest.raises(ValueError, match="temperature is 0"):
        MoCo(nn.Identity(), temperature=0.0, queue=8, momentum=0.9, features=3)
    with pytest.raises(ValueError, match="queue is 0"):
        MoCo(nn.Identity(), temperature=0.5, queue=0, momentum=0.9, features=3)


# --- ReLIC and ReLICv2 as models --------------------------------------------------------------------------------------


def linear(rows: int, columns: int, seed: int) -> nn.Linear:
    layer = nn.Linear(columns, rows).double()
    with torch.no_grad():
        layer.weight.copy_(random(rows, columns, seed=seed))
        layer.bias.copy_(random(rows, seed=seed + 40))
    return layer


def slow(model: InverseModel) -> MomentumEncoder:
    (found,) = [module for module in model.modules() if isinstance(module, MomentumEncoder)]
    return found


def moved(model: InverseModel) -> InverseModel:
    """The momentum projector made another than the projector, so that a mix-up of the two shows."""
    with torch.no_grad():
        for i, parameter in enumerate(slow(model).parameters()):
            parameter.add_(0.5 * random(*parameter.shape, seed=70 + i))
    return model


@pytest.mark.parametrize("same_view", [False, True])
def test_relic_the_model_is_the_loss_of_its_projections(same_view: bool) -> None:
    projector, predictor = linear(4, 5, 0), linear(4, 4, 1)
    model = moved(ReLIC(projector, temperature=0.3, alpha=0.7, momentum=0.9, predictor=predictor, same_view=same_view))
    h, t = random(2, 4, 5, seed=2).requires_grad_(), random(2, 4, 5, seed=3).requires_grad_()
    found = model(Features(h[0], h[1]), Features(t[0], t[1]), a_pair())
    contrast, invariance = loop_relic(predictor(projector(h)), slow(model).module(t), 0.3, same_view=same_view)
    torch.testing.assert_close(found, contrast + 0.7 * invariance, rtol=1e-11, atol=0)
    mine = torch.autograd.grad(found, [h, *projector.parameters()], retain_graph=True)
    theirs = torch.autograd.grad(contrast + 0.7 * invariance, [h, *projector.parameters()])
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    found.backward()
    assert t.grad is None
    assert all(parameter.grad is None for parameter in slow(model).parameters())


@pytest.mark.parametrize("make", [ReLIC, ReLICv2])
def test_without_momentum_the_target_is_the_online_network_without_gradient(make: type[ReLIC] | type[ReLICv2]) -> None:
    projector, predictor = linear(4, 5, 0), linear(4, 4, 1)
    model = make(projector, temperature=0.3, alpha=0.7, momentum=None, predictor=predictor)
    assert not model.needs_target
    assert make(projector, temperature=0.3, alpha=0.7, momentum=0.9).needs_target
    h = random(2, 4, 5, seed=2).requires_grad_()
    found = model(Features(h[0], h[1]), None, a_pair())
    z = projector(h)
    contrast, invariance = loop_relic(predictor(z), z.detach(), 0.3)  # keys are no predictions
    torch.testing.assert_close(found, contrast + 0.7 * invariance, rtol=1e-11, atol=0)
    expected = torch.autograd.grad(contrast + 0.7 * invariance, h)
    torch.testing.assert_close(torch.autograd.grad(found, h), expected, rtol=1e-9, atol=1e-12)


def test_alpha_zero_without_momentum_is_info_nce() -> None:
    h = random(2, 6, 5).requires_grad_()
    found = ReLIC(nn.Identity(), temperature=0.3, alpha=0.0, momentum=None)(Features(h[0], h[1]), None, a_pair(6))
    z, rows = F.normalize(h, dim=2), torch.arange(6)
    two = [info_nce(z[i], z[1 - i].detach(), positives=rows, temperature=0.3) for i in (0, 1)]
    torch.testing.assert_close(found, (two[0] + two[1]) / 2)
    torch.testing.assert_close(torch.autograd.grad(found, h), torch.autograd.grad((two[0] + two[1]) / 2, h))


@pytest.mark.parametrize("make", [ReLIC, ReLICv2])
def test_momentum_zero_copies_and_one_freezes(make: type[ReLIC] | type[ReLICv2]) -> None:
    projector = linear(4, 5, 0)
    model = moved(make(projector, temperature=0.3, alpha=0.7, momentum=0.9))
    alone = make(projector, temperature=0.3, alpha=0.7, momentum=None)
    h = random(2, 4, 5, seed=2)
    online = Features(h[0], h[1])
    before = model(online, online, a_pair())
    assert (before - alone(online, None, a_pair())).abs().item() > 1e-3
    slow(model).update(1.0)
    assert torch.equal(model(online, online, a_pair()), before)
    slow(model).update(0.0)
    torch.testing.assert_close(model(online, online, a_pair()), alone(online, None, a_pair()), rtol=1e-12, atol=0)


class Counts(nn.Module):
    """Notes the rows of each pass."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.rows = module, []

    def forward(self, h: Tensor) -> Tensor:
        self.rows.append(len(h))
        found: Tensor = self.module(h)
        return found


def test_batchnorm_sees_all_large_views_in_one_pass_and_all_small_ones_in_another() -> None:
    torch.manual_seed(0)
    head, predictor = projection_head(5, 7, 4).double(), mlp(4, [6], 4).double()
    h, pair = random(5, 6, 5) + 3.0 * random(5, 1, 5, seed=1), with_views(a_pair(6), 3, 2)
    target = 0.5 * random(3, 6, 5, seed=2) + 2.0 * random(3, 1, 5, seed=3)
    online, seen = Features(h[0], h[1], tuple(h[2:])), Features(target[0], target[1], (target[2],))
    model = ReLICv2(Counts(head), temperature=0.3, alpha=0.7, momentum=0.9, predictor=Counts(predictor))
    found = model(online, seen, pair)
    assert model.projector.rows == model.predictor.rows == [18, 12]
    assert slow(model).module.rows == [18]
    q = torch.cat([predictor(head(part.flatten(0, 1))).unflatten(0, (-1, 6)) for part in (h[:3], h[3:])])
    contrast, invariance = relic(q, head(target.flatten(0, 1)).unflatten(0, (-1, 6)), temperature=0.3)
    torch.testing.assert_close(found, contrast + 0.7 * invariance)
    relic_model = ReLIC(Counts(head), temperature=0.3, alpha=0.7, momentum=0.9)
    relic_model(online, seen, pair)
    assert relic_model.projector.rows == slow(relic_model).module.rows == [12]


@pytest.mark.parametrize(("large", "small"), [(2, 0), (2, 2), (3, 1), (4, 0)])
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_relicv2_is_the_mean_over_pairs_of_views(large: int, small: int, momentum: float | None) -> None:
    v = large + small
    projector, predictor = linear(4, 5, 0), linear(4, 4, 1)
    model = ReLICv2(projector, temperature=0.3, alpha=0.7, momentum=momentum, predictor=predictor)
    if momentum is not None:
        moved(model)
    pair = with_views(a_pair(), large, small)
    h, t = random(v, 4, 5, seed=2).requires_grad_(), random(large, 4, 5, seed=3).requires_grad_()
    target = None if momentum is None else Features(t[0], t[1], tuple(t[2:]))
    found = model(Features(h[0], h[1], tuple(h[2:])), target, pair)
    z = projector(h)
    keys = z[:large].detach() if momentum is None else slow(model).module(t)
    contrast, invariance = loop_relic(predictor(z), keys, 0.3)
    torch.testing.assert_close(found, contrast + 0.7 * invariance, rtol=1e-11, atol=0)
    expected = torch.autograd.grad(contrast + 0.7 * invariance, [h, *projector.parameters()], retain_graph=True)
    mine = torch.autograd.grad(found, [h, *projector.parameters()], retain_graph=True)
    torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-12)
    assert mine[0].flatten(1).abs().sum(dim=1).min() > 1e-4
    found.backward()
    assert t.grad is None


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_relicv2_without_more_views_is_relic(momentum: float | None) -> None:
    torch.manual_seed(0)
    models = [
        make(projection_head(5, 7, 4), temperature=0.3, alpha=0.7, momentum=momentum, predictor=mlp(4, [6], 4)).double()
        for make in (ReLIC, ReLICv2)
    ]
    models[1].load_state_dict(models[0].state_dict())
    h, t = random(2, 4, 5, seed=2), random(2, 4, 5, seed=3)
    target = None if momentum is None else Features(t[0], t[1])
    one, other = (model(Features(h[0], h[1]), target, a_pair()) for model in models)
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_views_of_encode_reach_relicv2_and_every_pair() -> None:
    """With the encoder's features: the target has not seen the small view, and both models find what they need."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.AdaptiveAvgPool1d(4), nn.Linear(4, 5))
    generator = torch.Generator().manual_seed(0)
    large, small = torch.rand(3, 6, 8, generator=generator), torch.rand(6, 6, generator=generator)
    more = MoreViews((large[2], small), 3, torch.randn(4, 4, 6, 3, generator=generator), torch.ones(4, 4, 6).bool())
    pair = ViewPair(large[0], large[1], more.action[0, 1], more.valid[0, 1], torch.zeros(6).long(), more=more)
    manipulation = EveryPair(BinnedActions(mlp(10, [7], 18), Bins.uniform(-2.0, 2.0, 6)))
    identity = ReLICv2(mlp(5, [7], 4), temperature=0.5, alpha=1.0, momentum=0.9)
    objective = STECObjective(
        {"identity": identity, "manipulation": manipulation}, {"identity": 1.0, "manipulation": 0.5}
    )
    assert objective.needs_target
    target = encode(MomentumEncoder(encoder, momentum=0.9), pair, large_only=True)
    assert len(target.more) == 1
    terms = objective(encode(encoder, pair), target, pair)
    terms["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    assert all(p.grad is None for p in identity.target_projector.parameters())


# --- actions over every pair ------------------------------------------------------------------------------------------


class Notes(InverseModel):
    """Keeps what it was given."""

    further = ("size",)

    def forward(self, online: Features, target: Features | None, pair: ViewPair) -> tuple[Tensor, ...]:
        self.seen = (online, target, pair)
        return online.x.sum(), online.x_prime.norm()


@pytest.mark.parametrize(("large", "small"), [(2, 0), (2, 2), (3, 1), (4, 0)])
@pytest.mark.parametrize("regressed", [False, True])
def test_every_pair_is_the_mean_over_valid_pairs(large: int, small: int, regressed: bool) -> None:
    v, b, d = large + small, 6, 3
    head = linear(d if regressed else d * 6, 10, 4)
    bins = Bins.uniform(-2.0, 2.0, 6).double()
    std = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    model: InverseModel = RegressedActions(head, std=std) if regressed else BinnedActions(head, bins)
    pair = with_views(a_pair(b, d), large, small)
    assert pair.more is not None
    h = random(v, b, 5, seed=2).requires_grad_()
    terms = []
    for i in range(v):
        for j in range(large):
            for r in range(b):
                if i == j or not pair.more.valid[i, j, r]:
                    continue
                read, action = head(torch.cat((h[i, r], h[j, r]))), pair.more.action[i, j, r]
                if regressed:
                    terms.append((((action - read) / std).square() / 2).mean())
                else:
                    true = bins(action[None])[0]
                    beliefs = read.view(d, 6).log_softmax(dim=1)
                    terms.append(torch.stack([-beliefs[k, true[k]] for k in range(d)]).mean())
    assert 0 < len(terms) < (v - 1) * large * b  # some are invalid
    expected = torch.stack(terms).mean()
    found = EveryPair(model)(Features(h[0], h[1], tuple(h[2:])), None, pair)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(found, h), torch.autograd.grad(expected, h), rtol=1e-10, atol=1e-13)
    # and a transposed table of actions is another loss, so that the loop above tells i from j
    turned = pair.more._replace(action=pair.more.action.transpose(0, 1))
    other = EveryPair(model)(Features(h[0], h[1], tuple(h[2:])), None, pair._replace(more=turned))
    assert (other - expected).abs().item() > 1e-3


def test_every_pair_calls_its_model_once_and_gives_it_no_images() -> None:
    notes = Notes()
    model = EveryPair(notes)
    assert model.further == ("size",)
    assert not model.needs_target
    pair = with_views(a_pair(), 3, 2)._replace(x=torch.zeros(4, 1), x_prime=torch.zeros(4, 1))
    h = random(5, 4, 5, seed=2)
    features = Features(h[0], h[1], tuple(h[2:]))
    assert len(model(features, features, pair)) == 2
    online, target, stacked = notes.seen
    assert target is stacked.x is stacked.x_prime is stacked.more is None
    assert len(online.x) == len(online.x_prime) == len(stacked.action) == len(stacked.label) == 3 * 4 * 4
    assert STECObjective({"m": model}, {"m": 1.0, "size": 1.0}).names == ("m", "size")


def test_every_pair_without_more_views_is_the_model() -> None:
    model = BinnedActions(linear(18, 10, 4), Bins.uniform(-2.0, 2.0, 6))
    h, pair = random(2, 4, 5), a_pair()
    assert torch.equal(EveryPair(model)(Features(*h), None, pair), model(Features(*h), None, pair))
    with pytest.raises(ValueError, match="ReLIC reads a target"):
        EveryPair(ReLIC(nn.Identity(), temperature=0.5, alpha=1.0, momentum=0.9))


# --- MoCo ------------------------------------------------------------------------------------------------------------


def loop_queue_nce(queries: Tensor, keys: Tensor, queue: Tensor, tau: float) -> Tensor:
    """The definition: the own key first, then the queue; the true column is 0."""
    losses = []
    for q, k in zip(queries, keys.detach()):
        scores = torch.stack([unit(q) @ unit(k) / tau, *(unit(q) @ old / tau for old in queue)])
        losses.append(F.cross_entropy(scores[None], torch.tensor([0])))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("tau", [0.1, 1.0])
@pytest.mark.parametrize("block", [1, 3, None])
def test_queue_nce_and_its_gradient_against_the_loop(tau: float, block: int | None) -> None:
    queries, keys = random(5, 4).requires_grad_(), random(5, 4, seed=1).requires_grad_()
    queue = F.normalize(random(7, 4, seed=2), dim=1).requires_grad_()
    found, expected = (
        queue_nce(queries, keys, queue, temperature=tau, block=block),
        loop_queue_nce(queries, keys, queue.detach(), tau),
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    found.backward()
    assert queries.grad is not None
    (gradient,) = torch.autograd.grad(expected, queries)
    torch.testing.assert_close(queries.grad, gradient, rtol=1e-10, atol=1e-13)
    assert keys.grad is queue.grad is None


def test_queue_nce_gradcheck() -> None:
    keys, queue = random(3, 4, seed=1), F.normalize(random(5, 4, seed=2), dim=1)
    queries = random(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda q: queue_nce(q, keys, queue, temperature=0.5, block=2), queries)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (4, 7), (3, 64)])
def test_queue_nce_in_closed_form(n: int, k: int) -> None:
    ones = torch.ones(max(n, k), 1, dtype=torch.float64)
    assert queue_nce(ones[:n], ones[:n], ones[:k], temperature=0.1).item() == pytest.approx(math.log(k + 1), abs=1e-12)
    queries, queue = torch.eye(n + 1).double()[:n], torch.eye(n + 1).double()[[n]].expand(k, -1)
    aligned = queue_nce(queries, queries, queue, temperature=0.5)  # orthogonal to every other
    assert aligned.item() == pytest.approx(math.log(1 + k * math.exp(-2)), abs=1e-12)


def test_queue_nce_at_the_limits_of_temperature() -> None:
    queries, keys, queue = random(6, 3), random(6, 3, seed=1), F.normalize(random(9, 3, seed=2), dim=1)
    assert queue_nce(queries, keys, queue, temperature=1e6).item() == pytest.approx(math.log(10), abs=1e-5)
    u, t = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
    margin = ((u @ queue.T).amax(dim=1) - (u * t).sum(dim=1)).clamp(min=0).mean()
    assert 1e-4 * queue_nce(queries, keys, queue, temperature=1e-4).item() == pytest.approx(margin.item(), abs=1e-3)


def test_queue_nce_in_half_precision_is_computed_in_float32() -> None:
    queries, keys, queue = random(8, 16).bfloat16(), random(8, 16, seed=1).bfloat16(), random(9, 16, seed=2).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = queue_nce(queries, keys, queue, temperature=0.1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, queue_nce(queries.float(), keys.float(), queue, temperature=0.1), rtol=0, atol=0)


def test_the_queue_may_be_overwritten_before_the_backward_and_is_never_saved() -> None:
    queries, keys = random(5, 4).requires_grad_(), random(5, 4, seed=1)
    queue = F.normalize(random(300, 4, seed=2), dim=1)
    (expected,) = torch.autograd.grad(loop_queue_nce(queries, keys, queue, 0.3), queries)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        loss = queue_nce(queries, keys, queue, temperature=0.3)
    assert max(t.numel() for t in saved) <= 5 * 4
    queue.zero_()
    torch.testing.assert_close(torch.autograd.grad(loss, queries)[0], expected, rtol=1e-10, atol=1e-13)


class QueueOfLists:
    """MoCo written with a list: features in, loss out, and the oldest rows replaced."""

    def __init__(self, model: MoCo) -> None:
        self.queue, self.place = [row.clone() for row in model.queue], 0

    def step(self, model: MoCo, online: Features, target: Features) -> Tensor:
        z, z_prime = model.projector(online.x), model.projector(online.x_prime)
        k, k_prime = slow(model).module(target.x).detach(), slow(model).module(target.x_prime).detach()
        old = torch.stack(self.queue)
        loss = (loop_queue_nce(z, k_prime, old, 0.2) + loop_queue_nce(z_prime, k, old, 0.2)) / 2
        for row in [*k, *k_prime]:
            self.queue[self.place] = unit(row)
            self.place = (self.place + 1) % len(self.queue)
        return loss


def a_moco(queue: int = 11) -> MoCo:
    model = MoCo(linear(4, 5, 0), temperature=0.2, queue=queue, momentum=0.9, features=4).double()
    moved(model)
    return model


def features_of(step: int, *, like: int = 0) -> Features:
    return Features(*random(2, 3, 5, seed=10 * step + like))


def test_three_steps_of_moco_against_a_list() -> None:
    """Queries and keys come of different features and projectors; the ring wraps within the second step's keys."""
    model, reference = a_moco(), None
    reference = QueueOfLists(model)
    address, momentum = model.queue.data_ptr(), slow(model)
    optimizer = torch.optim.SGD(model.projector.parameters(), lr=0.1)
    for step in range(3):
        online, target = features_of(step), features_of(step, like=5)
        expected = reference.step(model, online, target)
        loss = model(online, target, a_pair(3))
        torch.testing.assert_close(loss, expected, rtol=1e-11, atol=0)
        torch.testing.assert_close(model.queue, torch.stack(reference.queue), rtol=1e-12, atol=1e-15)
        assert model.pointer.item() == reference.place == 6 * (step + 1) % 11
        gradients = torch.autograd.grad(expected, list(model.projector.parameters()))
        optimizer.zero_grad()
        loss.backward()
        for parameter, gradient in zip(model.projector.parameters(), gradients):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)
        optimizer.step()
        momentum.update(0.9)
        assert model.queue.data_ptr() == address  # in place
    assert all(parameter.grad is None for parameter in momentum.parameters())


def test_the_ring_by_hand() -> None:
    model = MoCo(nn.Identity(), temperature=0.5, queue=5, momentum=0.9, features=2)
    start = model.queue.clone()
    torch.testing.assert_close(start.norm(dim=1), torch.ones(5))
    angles = [torch.tensor([math.cos(a), math.sin(a)]) for a in range(12)]
    for step in range(3):  # keys 4s, 4s + 1 of x, then 4s + 2, 4s + 3 of x', of lengths other than 1
        x, x_prime = torch.stack(angles[4 * step : 4 * step + 2]) * 3, torch.stack(angles[4 * step + 2 : 4 * step + 4])
        model(Features(-x, -x_prime), Features(x, x_prime), a_pair(2))
        places = {0: [0, 1, 2, 3, None], 1: [5, 6, 7, 3, 4], 2: [10, 11, 7, 8, 9]}[step]
        expected = torch.stack([start[i] if k is None else angles[k] for i, k in enumerate(places)])
        torch.testing.assert_close(model.queue, expected)
        assert model.pointer.item() == (4, 3, 2)[step]


def test_moco_enqueues_keys_and_never_queries() -> None:
    model = a_moco()
    online, target = features_of(0), features_of(0, like=5)
    queries = F.normalize(model.projector(torch.cat(online.pair)), dim=1)
    keys = F.normalize(slow(model)(torch.cat(target.pair)), dim=1)
    model(online, target, a_pair(3))
    torch.testing.assert_close(model.queue[:6], keys)
    assert (model.queue[:6, None] - queries[None]).norm(dim=2).min() > 0.01
    assert not model.queue.requires_grad


def test_evaluation_leaves_the_queue_alone() -> None:
    model = a_moco().eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    first, again = (model(features_of(0), features_of(0, like=5), a_pair(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.train()(features_of(0), features_of(0, like=5), a_pair(3))
    assert not torch.equal(model.queue, state["queue"])


def test_a_saved_queue_resumes_exactly() -> None:
    whole, broken = a_moco(), a_moco()
    for step in range(2):
        for model in (whole, broken):
            model(features_of(step), features_of(step, like=5), a_pair(3))
    fresh = a_moco()
    assert {"queue", "pointer"} <= set(broken.state_dict())
    fresh.load_state_dict(copy.deepcopy(broken.state_dict()))
    for step in range(2, 4):
        losses = [model(features_of(step), features_of(step, like=5), a_pair(3)) for model in (whole, fresh)]
        assert torch.equal(*losses)
    assert torch.equal(whole.queue, fresh.queue)


def test_the_queue_starts_from_a_fixed_seed() -> None:
    one = MoCo(nn.Identity(), temperature=0.5, queue=64, momentum=0.9, features=8)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    other = MoCo(nn.Identity(), temperature=0.5, queue=64, momentum=0.9, features=8)
    assert torch.equal(one.queue, other.queue)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's numbers are drawn
    assert one.queue.mean().abs() < 0.05
    torch.testing.assert_close(one.queue.norm(dim=1), torch.ones(64))


def test_moco_momentum_zero_copies_and_one_freezes() -> None:
    model = a_moco().eval()
    online, target = features_of(0), features_of(0, like=5)
    before = model(online, target, a_pair(3))
    slow(model).update(1.0)
    assert torch.equal(model(online, target, a_pair(3)), before)
    slow(model).update(0.0)
    keys = model.projector(torch.cat((target.x_prime, target.x)))
    expected = queue_nce(model.projector(torch.cat(online.pair)), keys, model.queue, temperature=0.2)
    torch.testing.assert_close(model(online, target, a_pair(3)), expected)
    assert (expected - before).abs().item() > 1e-3


def test_a_queue_or_width_that_does_not_fit_says_so() -> None:
    with pytest.raises(ValueError, match="use queue=6 or more"):
        a_moco(queue=5)(features_of(0), features_of(1), a_pair(3))
    model = MoCo(linear(4, 5, 0), temperature=0.2, queue=8, momentum=0.9, features=3)
    with pytest.raises(ValueError, match="set features=4"):
        model(features_of(0), features_of(1), a_pair(3))
    whole = a_moco(queue=6)  # exactly one step's keys
    whole(features_of(0), features_of(1), a_pair(3))
    assert whole.pointer.item() == 0


def test_moco_takes_half_precision_features() -> None:
    model = MoCo(nn.Linear(5, 4), temperature=0.2, queue=8, momentum=0.9, features=4)
    online, target = (Features(*(h.float() for h in features_of(step).pair)) for step in (0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(online, target, a_pair(3))
    loss.backward()
    assert loss.dtype == model.queue.dtype == torch.float32
    torch.testing.assert_close(model.queue.norm(dim=1), torch.ones(8))
    assert model.projector.weight.grad is not None
    assert model.projector.weight.grad.isfinite().all()
