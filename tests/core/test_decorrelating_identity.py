"""VICReg and Barlow Twins against loops, closed forms, the published weighting and numerical gradients."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stec.core.actions import ViewPair
from stec.core.identity import BarlowTwins, VICReg
from stec.core.losses import barlow_twins, covariance_penalty, variance_hinge, vicreg_regulariser
from stec.core.networks import mlp
from stec.core.objective import Features, STECObjective, encode

B, F_IN, P = 6, 5, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def white(n: int, f: int, seed: int = 0) -> Tensor:
    """Columns of mean 0, uncorrelated, with unbiased variance 1."""
    centred = random(n, f, seed=seed)
    q, _ = torch.linalg.qr(centred - centred.mean(dim=0))
    return q * math.sqrt(n - 1)


def no_pair(b: int = B) -> ViewPair:
    """These models read features alone."""
    return ViewPair(None, None, torch.zeros(b, 0), torch.ones(b, dtype=torch.bool), torch.zeros(b, dtype=torch.long))


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).sum() / len(values)


def loop_covariance(a: Tensor, b: Tensor, divisor: int) -> Tensor:
    """Of two columns, row by row."""
    mean_a, mean_b = mean(list(a)), mean(list(b))
    return torch.stack([(s - mean_a) * (t - mean_b) for s, t in zip(a, b)]).sum() / divisor


def loop_variance(z: Tensor) -> Tensor:
    n, f = z.shape
    roots = [(loop_covariance(z[:, j], z[:, j], n - 1) + 1e-4).sqrt() for j in range(f)]
    return mean([torch.clamp(1 - root, min=0) for root in roots])


def loop_penalty(z: Tensor) -> Tensor:
    n, f = z.shape
    pairs = [(i, j) for i in range(f) for j in range(f) if i != j]
    return torch.stack([loop_covariance(z[:, i], z[:, j], n - 1) ** 2 for i, j in pairs]).sum() / f


def loop_barlow(z: Tensor, z_prime: Tensor, redundancy: float) -> Tensor:
    n, f = z.shape
    total = torch.zeros((), dtype=torch.float64)
    for i in range(f):
        for j in range(f):
            widths = [loop_covariance(a, a, n) + 1e-5 for a in (z[:, i], z_prime[:, j])]
            c = loop_covariance(z[:, i], z_prime[:, j], n) / (widths[0] * widths[1]).sqrt()
            total = total + ((1 - c) ** 2 if i == j else redundancy * c**2)
    return total


def same_with_gradients(ours: Tensor, reference: Tensor, wrt: list[Tensor]) -> None:
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-14)
    for mine, theirs in zip(torch.autograd.grad(ours, wrt), torch.autograd.grad(reference, wrt)):
        assert mine.abs().max() > 1e-5
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)


# --- VICReg's regulariser -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.3, 1.0])
def test_variance_and_covariance_against_the_loops(width: float) -> None:
    """All dimensions below the hinge, then some on either side."""
    z = (width * torch.linspace(0.3, 1.7, 5) * random(7, 5)).requires_grad_()
    assert ((z.std(dim=0) < 1).sum() == 5) == (width < 1)
    same_with_gradients(covariance_penalty(z), loop_penalty(z), [z])
    same_with_gradients(variance_hinge(z), loop_variance(z), [z])


def test_vicreg_gradcheck() -> None:
    z, z_prime = (0.5 * random(4, 3)).requires_grad_(), (0.4 * random(4, 3, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(variance_hinge, z)  # all below the hinge
    assert torch.autograd.gradcheck(covariance_penalty, z)
    assert torch.autograd.gradcheck(lambda a, b: vicreg_regulariser(a, b, variance_weight=25.0), (z, z_prime))


def test_a_collapsed_embedding_has_variance_term_099_and_no_covariance() -> None:
    z = (random(1, 5).float().expand(8, 5)).clone().requires_grad_()
    assert variance_hinge(z).item() == pytest.approx(1 - math.sqrt(1e-4), abs=1e-6)
    assert covariance_penalty(z).item() == pytest.approx(0.0, abs=1e-12)
    (gradient,) = torch.autograd.grad(vicreg_regulariser(z, z, variance_weight=25.0), z)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("n", "f"), [(2, 5), (5, 10), (5, 9), (6, 20)])
def test_few_rows_of_many_dimensions_against_the_loop(n: int, f: int) -> None:
    """By products of rows where n is at most half of f, and by the covariance beyond."""
    z = (torch.linspace(0.3, 1.7, f) * random(n, f)).requires_grad_()
    same_with_gradients(covariance_penalty(z), loop_penalty(z), [z])
    assert torch.autograd.gradcheck(covariance_penalty, z)


def test_few_rows_in_float32_lose_no_more_than_rounding() -> None:
    z = random(64, 256) * torch.logspace(-2, 1, 256, dtype=torch.float64)  # few dimensions have most of the variance
    torch.testing.assert_close(covariance_penalty(z.float()).double(), covariance_penalty(z), rtol=1e-5, atol=0)


def test_a_white_embedding_costs_nothing() -> None:
    z = white(32, 6)
    torch.testing.assert_close(z.T.cov(), torch.eye(6, dtype=torch.float64))
    assert variance_hinge(z).item() == 0.0
    assert covariance_penalty(z).item() == pytest.approx(0.0, abs=1e-24)
    assert vicreg_regulariser(z, 3 * z, variance_weight=25.0).item() == pytest.approx(0.0, abs=1e-24)
    assert covariance_penalty(z.float()).item() >= 0.0
    assert vicreg_regulariser(0.9 * z, z, variance_weight=1.0).item() > 0.04  # (1 - 0.9) / 2


def test_the_variance_of_two_views_is_averaged_and_their_covariance_added() -> None:
    """A public implementation adds the variances: twice the weight. Standard deviations 1/2 and 1/4 tell them apart."""
    half, quarter = white(16, 4) / 2, white(16, 4, seed=1) / 4
    expected = 25 * ((1 - math.sqrt(0.25 + 1e-4)) + (1 - math.sqrt(0.0625 + 1e-4))) / 2
    assert vicreg_regulariser(half, quarter, variance_weight=25.0).item() == pytest.approx(expected, rel=1e-12)
    collapsed = torch.ones(16, 4, dtype=torch.float64)
    assert vicreg_regulariser(collapsed, collapsed, variance_weight=25.0).item() == pytest.approx(24.75, abs=1e-9)
    assert vicreg_regulariser(collapsed, 2 * half, variance_weight=25.0).item() == pytest.approx(12.375, abs=1e-9)
    # Both dimensions alike, variance 4: Cov_01 = Cov_10 = 4 gives (16 + 16) / 2 for a view, and as much for the other.
    alike = 2 * white(16, 1).expand(16, 2)
    assert covariance_penalty(alike).item() == pytest.approx(16.0)
    assert vicreg_regulariser(alike, alike, variance_weight=25.0).item() == pytest.approx(32.0)


@given(st.integers(0, 1000))
@settings(max_examples=20)
def test_symmetries_of_the_regulariser(seed: int) -> None:
    z, shift = random(6, 4, seed=seed), random(4, seed=seed + 1)
    rows, columns = (torch.randperm(n, generator=torch.Generator().manual_seed(seed)) for n in (6, 4))
    for term in (variance_hinge, covariance_penalty):
        torch.testing.assert_close(term(z + shift), term(z))
        torch.testing.assert_close(term(z[rows]), term(z))
        torch.testing.assert_close(term(z[:, columns] * shift.sign()), term(z))
    torch.testing.assert_close(covariance_penalty(3 * z), 81 * covariance_penalty(z))


# --- Barlow Twins ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("redundancy", [0.0, 0.0051, 1.0])
def test_barlow_twins_and_its_gradients_against_the_loop(redundancy: float) -> None:
    z, z_prime = random(7, 5).requires_grad_(), (2 + 3 * random(7, 5, seed=1)).requires_grad_()
    ours = barlow_twins(z, z_prime, redundancy=redundancy)
    same_with_gradients(ours, loop_barlow(z, z_prime, redundancy), [z, z_prime])


def test_barlow_twins_gradcheck() -> None:
    z, z_prime = random(5, 3).requires_grad_(), random(5, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: barlow_twins(a, b, redundancy=0.3), (z, z_prime))


def test_barlow_twins_standardises_as_batchnorm_without_affine_part() -> None:
    """The published form: BatchNorm of each view by itself, a product over the batch, a sum on and off the diagonal."""
    norm = nn.BatchNorm1d(5, affine=False).double()
    for width in (1.0, 1e-2):  # at the second, BatchNorm's 1e-5 tells
        z, z_prime = width * random(9, 5), width * random(9, 5, seed=1)
        c = norm(z).T @ norm(z_prime) / 9
        off = c[~torch.eye(5, dtype=torch.bool)]
        expected = (c.diag() - 1).pow(2).sum() + 0.0051 * off.pow(2).sum()
        torch.testing.assert_close(barlow_twins(z, z_prime, redundancy=0.0051), expected, rtol=1e-12, atol=0)


def test_closed_forms_of_barlow_twins() -> None:
    f, least = 5, 1e-5 / (1 + 1e-5)  # biased variance 1: C_ii = 1 / (1 + 1e-5)
    z = white(16, f) * math.sqrt(16 / 15)
    assert barlow_twins(z, z, redundancy=0.3).item() == pytest.approx(f * least**2, abs=1e-14)
    assert barlow_twins(z, -z, redundancy=0.3).item() == pytest.approx(f * (2 - least) ** 2, rel=1e-12)
    strange = white(16, 2 * f) * math.sqrt(16 / 15)  # views that share nothing
    assert barlow_twins(strange[:, :f], strange[:, f:], redundancy=0.3).item() == pytest.approx(f, rel=1e-12)
    alike = z[:, :1].expand(16, f)  # every dimension the same: C is 1 everywhere
    expected = f * least**2 + 0.3 * f * (f - 1) * (1 - least) ** 2
    assert barlow_twins(alike, alike, redundancy=0.3).item() == pytest.approx(expected, rel=1e-9)


def test_barlow_twins_of_a_collapsed_embedding_is_its_width_with_a_finite_gradient() -> None:
    z = torch.full((8, 5), 0.37).requires_grad_()
    value = barlow_twins(z, z, redundancy=0.3)
    assert value.item() == pytest.approx(5.0, abs=1e-6)
    assert torch.autograd.grad(value, z)[0].isfinite().all()


@given(st.integers(0, 1000))
@settings(max_examples=20)
def test_symmetries_of_barlow_twins(seed: int) -> None:
    z, z_prime = (10 * random(8, 4, seed=seed + s) for s in (0, 1))
    value = barlow_twins(z, z_prime, redundancy=0.3)
    scale, shift = random(4, seed=seed + 2).abs() + 1, random(4, seed=seed + 3)
    torch.testing.assert_close(barlow_twins(z_prime, z, redundancy=0.3), value)
    # Free of scale, dimension by dimension, as far as the 1e-5 lets it.
    torch.testing.assert_close(barlow_twins(z * scale + shift, z_prime, redundancy=0.3), value, rtol=1e-4, atol=1e-6)
    rows, columns = (torch.randperm(n, generator=torch.Generator().manual_seed(seed)) for n in (8, 4))
    permuted = barlow_twins(z[rows][:, columns], z_prime[rows][:, columns], redundancy=0.3)
    torch.testing.assert_close(permuted, value)


def test_the_diagonal_is_a_normal_models_surprise() -> None:
    """On standardised embeddings the mean of (z - z')^2 / 2 in dimension i is 1 - C_ii; Barlow Twins squares it."""
    z, z_prime = (100 * random(9, 5, seed=s) for s in (0, 1))  # so wide that the 1e-5 is nothing
    unit, unit_prime = ((v - v.mean(dim=0)) / v.std(dim=0, correction=0) for v in (z, z_prime))
    surprise = (unit - unit_prime).square().mean(dim=0) / 2
    torch.testing.assert_close(barlow_twins(z, z_prime, redundancy=0.0), surprise.square().sum(), rtol=1e-7, atol=0)


# --- all ------------------------------------------------------------------------------------------------------------


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "variance": lambda a, b: variance_hinge(a) + variance_hinge(b),
    "covariance": lambda a, b: covariance_penalty(a) + covariance_penalty(b),
    "vicreg": lambda a, b: vicreg_regulariser(a, b, variance_weight=25.0),
    "barlow": lambda a, b: barlow_twins(a, b, redundancy=0.0051),
}


@pytest.mark.parametrize("name", LOSSES)
def test_narrow_embeddings_are_compared_in_float32(name: str) -> None:
    loss = LOSSES[name]
    z, z_prime = (random(32, 16).bfloat16() / 2, random(32, 16, seed=1).bfloat16() / 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, plain = loss(z, z_prime), loss(z.float(), z_prime.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(z.float(), z_prime.float()), rtol=0, atol=0)
    torch.testing.assert_close(plain, found, rtol=0, atol=0)
    assert loss(z.double(), z_prime.double()).dtype == torch.float64


@pytest.mark.parametrize("name", LOSSES)
def test_one_row_has_no_variance(name: str) -> None:
    with pytest.raises(ValueError, match="at least 2 rows"):
        LOSSES[name](random(1, 4), random(1, 4))


@pytest.mark.unchecked
def test_barlow_twins_needs_partners() -> None:
    with pytest.raises(ValueError, match="partners"):
        barlow_twins(random(4, 3), random(4, 2), redundancy=0.1)


def test_vicreg_is_the_published_sum() -> None:
    """25 mean squared error + 25 variance + covariance, in the published code's arithmetic, with its gradients."""
    projector = nn.Linear(F_IN, P).double()
    h, h_prime = random(B, F_IN).requires_grad_(), random(B, F_IN, seed=1).requires_grad_()
    objective = STECObjective(
        {"identity": VICReg(projector, variance_weight=25.0)}, {"identity": 25.0, "regulariser": 1.0}
    )
    terms = objective(Features(h, h_prime), None, no_pair())
    assert set(terms) == {"identity", "regulariser", "loss"}
    x, y = projector(h), projector(h_prime)
    repr_loss = F.mse_loss(x, y)
    std_loss = F.relu(1 - (x.var(dim=0) + 1e-4).sqrt()).mean() / 2 + F.relu(1 - (y.var(dim=0) + 1e-4).sqrt()).mean() / 2
    off = ~torch.eye(P, dtype=torch.bool)
    cov_loss = x.T.cov()[off].pow(2).sum() / P + y.T.cov()[off].pow(2).sum() / P
    torch.testing.assert_close(terms["identity"], repr_loss)
    torch.testing.assert_close(terms["regulariser"], 25 * std_loss + cov_loss)
    same_with_gradients(
        terms["loss"], 25 * repr_loss + 25 * std_loss + cov_loss, [h, h_prime, *list(projector.parameters())[:1]]
    )


@pytest.mark.parametrize("weights", [{"identity": 25.0}, {"identity": 25.0, "regularizer": 1.0}])
def test_the_regulariser_wants_a_weight(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"'identity', 'regulariser'.*same names"):
        STECObjective({"identity": VICReg(nn.Identity(), variance_weight=25.0)}, weights)


def test_barlow_twins_model_is_the_loss_of_projections() -> None:
    projector = nn.Linear(F_IN, P).double()
    h, h_prime = random(B, F_IN), random(B, F_IN, seed=1)
    found = BarlowTwins(projector, redundancy=0.2)(Features(h, h_prime), None, no_pair())
    torch.testing.assert_close(found, loop_barlow(projector(h), projector(h_prime), 0.2))


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="variance_weight is -1"):
        VICReg(nn.Identity(), variance_weight=-1.0)
    with pytest.raises(ValueError, match="redundancy is -1"):
        BarlowTwins(nn.Identity(), redundancy=-1.0)


@pytest.mark.parametrize("name", ["VICReg", "BarlowTwins"])
def test_both_views_pass_the_projector_together(name: str) -> None:
    calls: list[int] = []

    class Counts(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            calls.append(len(h))
            return h

    model = VICReg(Counts(), variance_weight=1.0) if name == "VICReg" else BarlowTwins(Counts(), redundancy=0.1)
    model(Features(random(B, 3), random(B, 3, seed=1)), None, no_pair())
    assert calls == [2 * B]


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_regulariser_is_what_keeps_vicreg_from_collapsing(weight: float) -> None:
    encoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
    model = VICReg(mlp(32, [], 8), variance_weight=25.0)
    objective = STECObjective({"identity": model}, {"identity": 25.0, "regulariser": weight})
    optimizer = torch.optim.SGD([*encoder.parameters(), *objective.parameters()], lr=0.02, momentum=0.9)
    rows = torch.randn(128, 8)
    for _ in range(200):
        x, x_prime = rows + 0.3 * torch.randn(2, 128, 8)
        optimizer.zero_grad()
        objective(encode(encoder, no_pair(128)._replace(x=x, x_prime=x_prime)), None, no_pair(128))["loss"].backward()
        optimizer.step()
    spread = model.projector(encoder(rows)).std(dim=0).mean().item()
    assert spread > 0.7 if weight else spread < 0.1
