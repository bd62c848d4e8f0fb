"""What is said of features: closed forms, plain loops in float64, and what must not change the numbers."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from stec.core.actions import Bins, ViewPair
from stec.core.diagnostics import (
    COLLAPSED,
    PATIENCE,
    ROWS,
    SIDE,
    CollapseWatch,
    Diagnosed,
    alignment,
    bin_score,
    describe,
    effective_rank,
    feature_std,
    uniformity,
)
from stec.core.manipulation import BinnedActions, EveryPair, RegressedActions
from stec.core.objective import Features

SHAPES = [(5, 3), (3, 8), (40, 12), (2, 1)]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unit_rows(z: Tensor) -> np.ndarray:
    rows = z.double().numpy()
    return rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))


def simplex(n: int) -> Tensor:
    """n points as far from each other as they can be."""
    eye = torch.eye(n, dtype=torch.float64)
    return eye - eye.mean(dim=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_alignment_is_the_mean_of_squared_distances(shape: tuple[int, int]) -> None:
    z, z_prime = normal(*shape), normal(*shape, seed=1)
    u, v = unit_rows(z), unit_rows(z_prime)
    expected = sum(sum((a - b) ** 2 for a, b in zip(x, y)) for x, y in zip(u, v)) / len(u)
    assert float(alignment(z, z_prime)) == pytest.approx(expected, rel=1e-12)


def test_alignment_of_equal_orthogonal_and_opposite_views() -> None:
    z = normal(6, 4, dtype=torch.float32)
    assert float(alignment(z, 3 * z)) == pytest.approx(0.0, abs=1e-12)
    assert float(alignment(z, -z)) == pytest.approx(4.0)
    assert float(alignment(torch.eye(4), torch.eye(4).roll(1, dims=0))) == 2.0


@pytest.mark.parametrize("shape", [(5, 3), (3, 8), (40, 12), (2, 1)])
@pytest.mark.parametrize("t", [0.5, 2.0, 7.0])
def test_uniformity_is_the_log_of_a_mean_over_pairs(shape: tuple[int, int], t: float) -> None:
    u = unit_rows(normal(*shape))
    pairs = [math.exp(-t * float(((u[i] - u[j]) ** 2).sum())) for i in range(len(u)) for j in range(i)]
    expected = math.log(sum(pairs) / len(pairs))
    assert float(uniformity(normal(*shape), t)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("n", [2, 3, 9])
def test_uniformity_on_a_simplex_and_of_one_point(n: int) -> None:
    assert float(uniformity(simplex(n))) == pytest.approx(-2 * (2 + 2 / (n - 1)))
    assert float(uniformity(torch.ones(n, 5))) == pytest.approx(0.0, abs=1e-5)
    assert math.isnan(float(uniformity(torch.ones(1, 5))))


def test_uniformity_of_many_dimensions_is_near_its_limit() -> None:
    assert float(uniformity(normal(300, 4000, dtype=torch.float32))) == pytest.approx(-4.0, abs=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_effective_rank_is_that_of_the_singular_values(shape: tuple[int, int]) -> None:
    z = normal(*shape)
    singular = np.linalg.svd(z.numpy(), compute_uv=False)
    p = singular / singular.sum()
    assert float(effective_rank(z)) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-7)


@given(values=st.lists(st.floats(0.01, 100.0), min_size=1, max_size=8), seed=st.integers(0, 99), wide=st.booleans())
def test_effective_rank_depends_on_singular_values_alone(values: list[float], seed: int, wide: bool) -> None:
    d = len(values)
    left, right = (torch.linalg.qr(normal(d + 5, d, seed=seed + i))[0] for i in range(2))
    right = right[:, :d] if not wide else torch.linalg.qr(normal(d + 20, d, seed=seed + 7))[0]
    z = left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T
    p = np.array(values) / sum(values)
    assert float(effective_rank(z)) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-5)
    assert 1.0 - 1e-9 <= float(effective_rank(7 * z)) <= d * (1 + 1e-5)


def test_effective_rank_of_alike_rows_is_one_in_float32_and_bfloat16() -> None:
    """A Gram matrix in float32 would give 1.3 and more: the roots of its rounding errors add up."""
    rows = torch.rand(512, 1, generator=torch.Generator().manual_seed(0)) @ normal(1, 512, dtype=torch.float32).abs()
    assert float(effective_rank(rows)) == pytest.approx(1.0, abs=2e-3)
    assert float(effective_rank(torch.ones(512, 512, dtype=torch.bfloat16))) == pytest.approx(1.0, abs=1e-4)
    assert float(effective_rank(torch.zeros(4, 3))) == 1.0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_effective_rank_of_what_is_not_finite_is_nan(bad: float) -> None:
    z = normal(4, 3, dtype=torch.float32)
    z[1, 2] = bad
    assert math.isnan(float(effective_rank(z)))


@pytest.mark.parametrize("shape", SHAPES)
def test_feature_std_by_numpy(shape: tuple[int, int]) -> None:
    expected = unit_rows(normal(*shape)).std(axis=0).mean() * math.sqrt(shape[1])
    assert float(feature_std(normal(*shape))) == pytest.approx(expected, rel=1e-12)


def test_feature_std_from_collapsed_to_spread() -> None:
    assert float(feature_std(torch.full((9, 5), 0.3))) == pytest.approx(0.0, abs=1e-6)
    assert float(feature_std(normal(2000, 64, dtype=torch.float32))) == pytest.approx(1.0, abs=0.01)
    # a common part m of a unit row leaves sqrt(1 - m^2)
    mixed = torch.cat((0.8 * torch.ones(4, 1), 0.6 * torch.eye(4)), dim=1)
    parts = [0.0, *[0.6 * math.sqrt(3) / 4] * 4]
    assert float(feature_std(mixed)) == pytest.approx(sum(parts) / 5 * math.sqrt(5), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing_and_no_number_is_narrower_than_float32(dtype: torch.dtype) -> None:
    x, x_prime = normal(64, 48, dtype=dtype), normal(64, 48, seed=1, dtype=dtype)
    expected = describe(x, x_prime)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = describe(x, x_prime)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert found == expected
    wide = describe(x.double(), x_prime.double())
    for name, value in wide.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-5), name


def test_a_batch_is_described_by_its_first_rows() -> None:
    x, x_prime = normal(ROWS + 9, 6), normal(ROWS + 9, 6, seed=1)
    found = describe(x, x_prime)
    assert list(found) == ["alignment", "uniformity", "effective_rank", "feature_std"]
    first, second = x[:ROWS], x_prime[:ROWS]
    expected = [alignment(first, second), uniformity(first), effective_rank(first), feature_std(first)]
    assert list(found.values()) == expected
    assert list(describe(x)) == ["uniformity", "effective_rank", "feature_std"]


def test_wide_features_have_the_rank_of_few_rows() -> None:
    x = normal(SIDE + 40, SIDE + 8, dtype=torch.float32)
    assert torch.equal(describe(x)["effective_rank"], effective_rank(x[:SIDE]))
    narrow = x[:, :SIDE]
    assert torch.equal(describe(narrow)["effective_rank"], effective_rank(narrow))


def test_sequences_count_each_time_step_and_align_their_means() -> None:
    x, x_prime = normal(30, 40, 6), normal(30, 40, 6, seed=1)
    found = describe(x, x_prime)
    rows = torch.stack([x[i, j] for i in range(30) for j in range(40)][:ROWS])
    assert float(found["uniformity"]) == pytest.approx(float(uniformity(rows)))
    assert float(found["feature_std"]) == pytest.approx(float(feature_std(rows)))
    shuffled = x_prime[:, torch.randperm(40)]
    assert float(found["alignment"]) == pytest.approx(float(alignment(x.mean(dim=1), x_prime.mean(dim=1))))
    assert float(describe(x, shuffled)["alignment"]) == pytest.approx(float(found["alignment"]))


@pytest.mark.unchecked
def test_features_of_other_shapes_are_left_alone() -> None:
    assert describe(torch.zeros(4, 3, 2, 2), torch.zeros(4, 3, 2, 2)) == {}
    assert describe(torch.zeros(4)) == {}


def test_no_gradient_and_no_random_number() -> None:
    x = normal(8, 4, dtype=torch.float32).requires_grad_()
    state = torch.get_rng_state()
    assert not any(value.requires_grad for value in describe(x, x).values())
    assert torch.equal(state, torch.get_rng_state())


@given(seed=st.integers(0, 200), k=st.integers(2, 6), d=st.integers(1, 4), b=st.integers(1, 30))
def test_bin_score_by_a_loop(seed: int, k: int, d: int, b: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(b, d, k, generator=generator)
    bins = torch.randint(k, (b, d), generator=generator)
    valid = torch.rand(b, generator=generator) < 0.7
    score = bin_score(logits, bins, valid)
    rows = [i for i in range(b) if valid[i]]
    for j in range(d):
        hits = sum(max(range(k), key=logits[i, j].tolist().__getitem__) == int(bins[i, j]) for i in rows)
        commonest = max(sum(int(bins[i, j]) == c for i in rows) for c in range(k))
        expected = (hits / len(rows), commonest / len(rows)) if rows else (math.nan, math.nan)
        found = float(score.accuracy[j]), float(score.majority[j])
        assert found == pytest.approx(expected, nan_ok=True)


def a_batch(b: int = 12) -> tuple[Features, ViewPair]:
    x, x_prime = normal(b, 3, dtype=torch.float32), normal(b, 3, seed=1, dtype=torch.float32)
    valid = torch.arange(b) % 4 != 0
    return Features(x, x_prime), ViewPair(x, x_prime, normal(b, 2, seed=2).float(), valid, torch.zeros(b).long())


def test_binned_actions_tell_accuracy_and_majority_of_the_last_batch() -> None:
    torch.manual_seed(3)
    model = BinnedActions(nn.Linear(6, 8), Bins.uniform(-2.0, 2.0, 4), components=("scale", "shift"))
    assert isinstance(model, Diagnosed)
    assert model.diagnostics() == {}
    features, pair = a_batch()
    model(Features(features.x + 9, features.x_prime), None, pair)
    model(features, None, pair)
    found = model.diagnostics()
    assert list(found) == ["accuracy/scale", "accuracy/shift", "majority/scale", "majority/shift"]
    bins = model.bins(pair.action)
    hits = (model.logits(features).argmax(dim=2) == bins)[pair.valid]
    for j, name in enumerate(("scale", "shift")):
        assert float(found[f"accuracy/{name}"]) == pytest.approx(float(hits[:, j].float().mean()))
        share = bins[pair.valid, j].bincount().max() / pair.valid.sum()
        assert float(found[f"majority/{name}"]) == pytest.approx(float(share))
    assert model._latest is not None
    assert not model._latest[0].requires_grad  # or it would hold the step's graph until the next one
    assert set(model.state_dict()) == {"head.weight", "head.bias", "bins.edges", "bins.affine"}


def test_components_without_names_are_numbered() -> None:
    model = BinnedActions(nn.Linear(6, 8), Bins.uniform(-2.0, 2.0, 4))
    model(*a_batch()[:1], None, a_batch()[1])
    assert list(model.diagnostics()) == ["accuracy/0", "accuracy/1", "majority/0", "majority/1"]


def test_names_must_be_as_many_as_components() -> None:
    with pytest.raises(ValueError, match="bins are for 2 components: name each"):
        BinnedActions(nn.Linear(6, 8), Bins.uniform([-2.0, -1.0], [2.0, 1.0], 4), components=("scale",))
    model = BinnedActions(nn.Linear(6, 8), Bins.uniform(-2.0, 2.0, 4), components=("scale",))
    features, pair = a_batch()
    model(features, None, pair)
    with pytest.raises(ValueError, match="scale; the head reads 2: name each"):
        model.diagnostics()


def test_other_models_tell_nothing() -> None:
    model = BinnedActions(nn.Linear(6, 8), Bins.uniform(-2.0, 2.0, 4))
    assert not isinstance(EveryPair(model), Diagnosed)  # the model within it does
    assert not isinstance(RegressedActions(nn.Linear(6, 2), std=torch.ones(2)), Diagnosed)


def told(values: list[float], *, after: int = 0, every: int = 10) -> dict[int, str]:
    """What a watch says of these values of feature_std, read every so many steps, by step."""
    watch = CollapseWatch(after=after)
    found = {i * every: watch.read({"feature_std": value}, i * every) for i, value in enumerate(values)}
    return {step: message for step, message in found.items() if message}


def test_a_collapse_is_told_once_with_step_value_and_cure() -> None:
    assert (COLLAPSED, PATIENCE) == (0.2, 100)
    messages = told([0.42, 0.3, *[0.123] * 30])
    assert list(messages) == [20 + PATIENCE]
    expected = r"feature_std is 0.123 at step 120, and below 0.2 since step 20 \(it began at 0.42;.*learning rate"
    assert re.search(expected, messages[120])


@pytest.mark.parametrize(("every", "step"), [(1, 102), (70, 2 * 70 + 140), (1000, 2000 + 1000)])
def test_a_collapse_has_to_last(every: int, step: int) -> None:
    """Two reads at the least, however rare they are."""
    assert list(told([0.4, 0.4, *[0.1] * 200], every=every)) == [step]


def test_what_recovers_and_comes_back_has_to_last_anew() -> None:
    assert list(told([0.4, *[0.1] * 10, 0.3, *[0.1] * 30])) == [120 + PATIENCE]
    assert list(told([0.4, *[0.1] * 10, math.nan, *[0.1] * 30])) == [120 + PATIENCE]


@pytest.mark.parametrize("after", [0, 55, 60])
def test_the_warm_up_does_not_count(after: int) -> None:
    assert list(told([0.4, *[0.1] * 40], after=after)) == [(10 if after == 0 else 60) + PATIENCE]


@pytest.mark.parametrize(
    "values",
    [
        [0.4, *[0.21] * 30],  # low, but above the bound
        [0.03, *[0.021] * 30],  # as it began
        [0.25, *[0.17] * 30],  # not below two thirds
        [0.4, *[0.1] * 10, *[0.4] * 30],  # a dip
        [math.nan] * 30,  # the terms say more
    ],
)
def test_no_collapse(values: list[float]) -> None:
    assert told(values) == {}


def test_features_that_are_not_described_are_not_watched() -> None:
    watch = CollapseWatch(after=0)
    assert [watch.read({"alignment": 0.0}, step) for step in (0, 100, 300)] == [None] * 3


def test_a_resumed_watch_is_told_the_same() -> None:
    reads = [(step, 0.5 if step < 40 else 0.05) for step in range(0, 400, 20)]
    whole = CollapseWatch(after=10)
    told = [whole.read({"feature_std": std}, step) for step, std in reads]
    assert sum(text is not None for text in told) == 1
    first, second = CollapseWatch(after=10), CollapseWatch(after=10)
    halves = [first.read({"feature_std": std}, step) for step, std in reads[:5]]
    second.load_state_dict(first.state_dict())
    assert halves + [second.read({"feature_std": std}, step) for step, std in reads[5:]] == told
