"""The losses against closed forms, independent float64 loops and numerical gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stec.core.losses import binned_nll, gaussian_nll, info_nce, nt_xent


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loop_nt_xent(z: Tensor, z_prime: Tensor, tau: float) -> Tensor:
    """The definition, one view and one candidate at a time."""
    views = [row / row.norm() for row in torch.cat((z, z_prime))]
    n = len(z)
    total = torch.zeros((), dtype=torch.float64)
    for i, view in enumerate(views):
        scores = [view @ other / tau for j, other in enumerate(views) if j != i]
        partner = view @ views[(i + n) % (2 * n)] / tau
        total = total - partner + torch.stack(scores).logsumexp(dim=0)
    return total / (2 * n)


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_nt_xent_and_its_gradient_against_the_loop(tau: float) -> None:
    z, z_prime = random(7, 5).requires_grad_(), random(7, 5, seed=1).requires_grad_()
    ours, reference = nt_xent(z, z_prime, tau), loop_nt_xent(z, z_prime, tau)
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(torch.autograd.grad(ours, (z, z_prime)), torch.autograd.grad(reference, (z, z_prime))):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("block", [1, 3, 14, 1000])
def test_nt_xent_does_not_depend_on_the_block(block: int) -> None:
    z, z_prime = random(7, 5).requires_grad_(), random(7, 5, seed=1).requires_grad_()
    whole, blocked = nt_xent(z, z_prime, 0.3), nt_xent(z, z_prime, 0.3, block=block)
    torch.testing.assert_close(blocked, whole, rtol=1e-13, atol=0)
    torch.testing.assert_close(torch.autograd.grad(blocked, z), torch.autograd.grad(whole, z))


def test_nt_xent_gradcheck() -> None:
    z, z_prime = random(4, 3).requires_grad_(), random(4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5, block=3), (z, z_prime))


@pytest.mark.parametrize("n", [2, 5, 64])
def test_nt_xent_of_collapsed_features_is_log_2n_minus_1(n: int) -> None:
    z = torch.ones(n, 8, dtype=torch.float64)
    assert nt_xent(z, z, 0.1).item() == pytest.approx(math.log(2 * n - 1), abs=1e-12)


@pytest.mark.parametrize(("n", "tau"), [(4, 0.5), (16, 0.1)])
def test_nt_xent_of_aligned_pairs_with_orthogonal_negatives(n: int, tau: float) -> None:
    z = torch.eye(n, dtype=torch.float64)
    assert nt_xent(z, z, tau).item() == pytest.approx(math.log(1 + (2 * n - 2) * math.exp(-1 / tau)), abs=1e-9)


@pytest.mark.parametrize(("n", "tau"), [(4, 0.5), (16, 0.2)])
def test_nt_xent_is_least_on_a_simplex(n: int, tau: float) -> None:
    z = torch.eye(n, dtype=torch.float64) - 1 / n
    least = math.log(1 + (2 * n - 2) * math.exp(-(1 + 1 / (n - 1)) / tau))
    assert nt_xent(z, z, tau).item() == pytest.approx(least, abs=1e-9)
    assert nt_xent(z + 0.1 * random(n, n), z, tau).item() > least


def test_nt_xent_at_low_temperature_is_the_margin() -> None:
    z, z_prime, tau = random(6, 3), random(6, 3, seed=1), 1e-4
    views = torch.nn.functional.normalize(torch.cat((z, z_prime)), dim=1)
    s = views @ views.T
    partner = torch.tensor([s[i, (i + 6) % 12] for i in range(12)], dtype=torch.float64)
    s.fill_diagonal_(-2)
    margin = (s.amax(dim=1) - partner).clamp(min=0).mean()
    assert tau * nt_xent(z, z_prime, tau).item() == pytest.approx(margin.item(), abs=1e-3)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_nt_xent_symmetries(seed: int) -> None:
    z, z_prime = random(6, 4, seed=seed), random(6, 4, seed=seed + 1)
    value = nt_xent(z, z_prime, 0.4)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    rotation = torch.linalg.qr(random(4, 4, seed=seed + 2))[0]
    scale = random(6, 1, seed=seed + 3).abs() + 0.1
    torch.testing.assert_close(nt_xent(z[order], z_prime[order], 0.4), value)
    torch.testing.assert_close(nt_xent(z_prime, z, 0.4), value)
    torch.testing.assert_close(nt_xent(z @ rotation, z_prime @ rotation, 0.4), value)
    torch.testing.assert_close(nt_xent(z * scale, z_prime, 0.4), value)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_bound_of_equation_5(seed: int) -> None:
    """-log q(1 | x, x_neg) <= -log q(0 | x, x_pos) for every negative: what makes NT-Xent a bound of L_id."""
    scores = random(9, seed=seed) * 3
    q = scores.softmax(dim=0)
    assert (-torch.log1p(-q[1:]) <= -q[0].log() + 1e-12).all()
    # and info_nce is that bound's right side
    loss = info_nce(torch.ones(1, 1).double(), scores[:, None], positives=torch.tensor([0]), temperature=1.0)
    torch.testing.assert_close(loss, -q[0].log())


def test_the_candidates_of_other_processes_count() -> None:
    z, z_prime = random(6, 4).requires_grad_(), random(6, 4, seed=1).requires_grad_()
    whole = nt_xent(z, z_prime, 0.5)
    parts = [nt_xent(z[i : i + 3], z_prime[i : i + 3], 0.5, everyone=(z, z_prime), first=i) for i in (0, 3)]
    joined = torch.stack(parts).mean()
    torch.testing.assert_close(joined, whole)
    torch.testing.assert_close(torch.autograd.grad(joined, z), torch.autograd.grad(whole, z))


def test_nt_xent_in_half_precision_is_computed_in_float32() -> None:
    z, z_prime = random(32, 16).float(), random(32, 16, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = nt_xent(z, z_prime, 0.1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, nt_xent(z, z_prime, 0.1), rtol=0, atol=0)


def test_nt_xent_survives_low_temperature_in_float32() -> None:
    z = random(8, 4).float().requires_grad_()
    loss = nt_xent(z, z.detach() * 1e4, 1e-3)
    loss.backward()
    assert loss.isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.unchecked
def test_nt_xent_needs_partners() -> None:
    with pytest.raises(ValueError, match="partners"):
        nt_xent(torch.zeros(3, 2), torch.zeros(4, 2), 0.5)


def test_nt_xent_holds_no_matrix() -> None:
    """At 2N = 4,096 the logits alone would be 64 MiB; the saved tensors are a few rows' worth."""
    z = torch.randn(2048, 8, requires_grad=True)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        nt_xent(z, z.detach(), 0.5)
    assert max(saved) <= 4096 * 8


@pytest.mark.parametrize("k", [2, 6, 12])
def test_binned_nll_of_equal_logits_is_log_k(k: int) -> None:
    bins = torch.zeros(5, 4, dtype=torch.long)
    assert binned_nll(torch.zeros(5, 4, k), bins).item() == pytest.approx(math.log(k), abs=1e-6)


def test_binned_nll_against_the_loop_with_a_mask() -> None:
    logits, bins = random(5, 3, 6), torch.randint(6, (5, 3), generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([True, False, True, True, False])
    terms = [-logits[i, j].log_softmax(0)[bins[i, j]] for i in range(5) if valid[i] for j in range(3)]
    torch.testing.assert_close(binned_nll(logits, bins, valid), torch.stack(terms).mean(), rtol=1e-12, atol=0)


def test_binned_nll_gradient_is_softmax_minus_one_hot() -> None:
    logits = random(4, 6, 6).requires_grad_()
    bins = torch.randint(6, (4, 6), generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(binned_nll(logits, bins), logits)
    expected = (logits.softmax(2) - torch.nn.functional.one_hot(bins, 6)) / (4 * 6)
    torch.testing.assert_close(gradient, expected.detach())


@pytest.mark.parametrize("loss", ["binned", "gaussian"])
def test_a_batch_without_valid_pairs_gives_exactly_zero(loss: str) -> None:
    prediction = random(4, 3, 6).requires_grad_() if loss == "binned" else random(4, 3).requires_grad_()
    none = torch.zeros(4, dtype=torch.bool)
    if loss == "binned":
        value = binned_nll(prediction, torch.zeros(4, 3, dtype=torch.long), none)
    else:
        value = gaussian_nll(prediction, random(4, 3, seed=1), torch.ones(3, dtype=torch.float64), none)
    (gradient,) = torch.autograd.grad(value, prediction)
    assert value.item() == 0.0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_an_invalid_row_holds_reaches_no_gradient(poison: float) -> None:
    valid = torch.tensor([True, False])
    logits, mean, action = random(2, 3, 6), random(2, 3), random(2, 3, seed=1)
    logits[1], action[1] = poison, poison
    bins = torch.tensor([[0, 1, 2], [-1, 9, 0]])
    for value, wrt in (
        (lambda t: binned_nll(t, bins, valid), logits),
        (lambda t: gaussian_nll(t, action, torch.ones(3).double(), valid), mean),
    ):
        wrt.requires_grad_()
        (gradient,) = torch.autograd.grad(value(wrt), wrt)
        assert gradient.isfinite().all()
        assert (gradient[1] == 0).all()
        assert gradient[0].abs().sum() > 0


def test_a_bin_out_of_range_is_an_error_and_never_ignored() -> None:
    for wrong in (-100, -1, 6):
        with pytest.raises(ValueError, match=f"between {min(wrong, 5)} and {max(wrong, 5)}"):
            binned_nll(torch.zeros(2, 1, 6), torch.tensor([[wrong], [5]]))


def test_a_second_derivative_raises() -> None:
    z = random(4, 3).requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(nt_xent(z, random(4, 3, seed=1), 0.5), z, create_graph=True)


def test_gaussian_nll_is_the_normal_density_up_to_its_constant() -> None:
    mean, action, std = random(6, 3), random(6, 3, seed=1), torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    density = torch.distributions.Normal(mean, std).log_prob(action)
    constant = (std.log() + 0.5 * math.log(2 * math.pi)).mean()
    torch.testing.assert_close(gaussian_nll(mean, action, std), -density.mean() - constant)
    mask = torch.tensor([True, True, False, False, True, False])
    torch.testing.assert_close(gaussian_nll(mean, action, std, mask), -density[mask].mean() - constant)
