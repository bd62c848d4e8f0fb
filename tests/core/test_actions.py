"""Groups, efference copies and bins of stec.core.actions."""

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stec.core.actions import Allocentric, Bins, Egocentric, chance_level, step_seed
from stec.core.losses import binned_nll


class Scaling:
    """Positive scalings of a line with shifts, written as (scale, shift): u -> scale u + shift. A group that core does
    not know, so that nothing here leans on images."""

    components = ("scale", "shift")

    def compose(self, first: Tensor, then: Tensor) -> Tensor:
        return torch.stack((first[:, 0] * then[:, 0], first[:, 1] + first[:, 0] * then[:, 1]), dim=1)

    def inverse(self, action: Tensor) -> Tensor:
        return torch.stack((1 / action[:, 0], -action[:, 1] / action[:, 0]), dim=1)

    def flatten(self, action: Tensor) -> Tensor:
        return action


def poses(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(32, generator=generator, dtype=torch.float64) + 0.2
    shift = torch.randn(32, generator=generator, dtype=torch.float64)
    return torch.stack((scale, shift), dim=1)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_egocentric_actions_obey_the_group_laws(seed: int) -> None:
    space = Scaling()
    copy = Egocentric(space)
    a, b, c = poses(seed), poses(seed + 1), poses(seed + 2)
    identity = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(32, 2)
    torch.testing.assert_close(copy(a, a), identity)
    torch.testing.assert_close(space.compose(copy(a, b), copy(b, a)), identity)
    torch.testing.assert_close(space.compose(copy(a, b), copy(b, c)), copy(a, c))


def test_moving_the_object_leaves_egocentric_actions_alone_and_changes_allocentric_ones() -> None:
    space = Scaling()
    a, b, move = poses(0), poses(1), poses(2)
    moved_a, moved_b = space.compose(move, a), space.compose(move, b)
    torch.testing.assert_close(Egocentric(space)(moved_a, moved_b), Egocentric(space)(a, b))
    assert (Allocentric(space)(moved_a, moved_b) - Allocentric(space)(a, b)).abs().max() > 0.1
    torch.testing.assert_close(Allocentric(space)(a, b), b - a)


@pytest.mark.parametrize("bins", [2, 3, 6, 10])
def test_uniform_floor_bins_against_the_formula(bins: int) -> None:
    values = torch.linspace(-3.17, 3.17, 1001)[:, None]
    expected = ((values + 2) / 4 * bins).floor().clamp(0, bins - 1).long()
    assert torch.equal(Bins.uniform(-2.0, 2.0, bins)(values), expected)


@pytest.mark.parametrize(("low", "high", "k"), [(-1.0, 1.0, 10), (-2.0, 2.0, 6), (-0.5, 0.5, 7)])
def test_a_value_on_an_edge_belongs_to_the_upper_bin(low: float, high: float, k: int) -> None:
    edges = torch.tensor([low + (high - low) * i / k for i in range(1, k)])[:, None]
    assert Bins.uniform(low, high, k)(edges)[:, 0].tolist() == list(range(1, k))


def test_uniform_bins_with_a_range_for_each_component() -> None:
    bins = Bins.uniform([-2.0, -0.5], [2.0, 0.5], 6, "half_even")
    found = bins(torch.tensor([[1.4, 0.4], [-9.0, 9.0], [0.0, -0.0]]))
    # zero lies at 2.5 of six bins: ties go to the even bin, for both signs of zero (theory.md 2.2)
    assert found.tolist() == [[5, 5], [0, 5], [2, 2]]


@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=20), st.sampled_from([2, 5, 6, 7, 12]))
@settings(max_examples=60, deadline=None)
def test_half_even_bins_against_python_rounding(values: list[float], k: int) -> None:
    found = Bins.uniform(-2.0, 2.0, k, "half_even")(torch.tensor(values)[:, None])[:, 0].tolist()
    for value, bin_ in zip(torch.tensor(values).tolist(), found):
        position = (torch.tensor(value) + 2) / 4 * k - 0.5  # float32, as the released code has it
        assert bin_ == min(max(round(position.item()), 0), k - 1)


def test_quantile_bins_hold_equal_shares() -> None:
    sample = torch.randn(60_000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0, 0.1])
    bins = Bins.quantile(sample, 6)
    chance = chance_level(bins(sample), 6)
    torch.testing.assert_close(chance.nll, torch.full((3,), math.log(6)), atol=1e-4, rtol=0)
    torch.testing.assert_close(chance.accuracy, torch.full((3,), 1 / 6), atol=1e-3, rtol=0)


def test_edges_travel_with_the_state_dict() -> None:
    sample = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    source, sink = Bins.quantile(sample, 6), Bins.quantile(sample * 9, 6)
    assert not torch.equal(source(sample), sink(sample))
    sink.load_state_dict(source.state_dict())
    assert torch.equal(source(sample), sink(sample))


def test_chance_level_of_a_skewed_component() -> None:
    chance = chance_level(torch.tensor([[0, 1], [0, 1], [0, 1], [2, 1]]), 3)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    torch.testing.assert_close(chance.nll, torch.tensor([entropy, 0.0]))
    torch.testing.assert_close(chance.accuracy, torch.tensor([0.75, 1.0]))


@pytest.mark.parametrize("rounding", ["floor", "half_even"])
@pytest.mark.parametrize("d", [1, 2])
def test_what_is_not_a_number_has_no_bin(rounding: Literal["floor", "half_even"], d: int) -> None:
    """An edge belongs to the upper bin, infinity to the outer ones; NaN is given K, which no valid pair may have."""
    bins = Bins.uniform([-2.0] * d, [2.0] * d, 4, rounding)
    values = torch.tensor([-math.inf, -2.0, -1.0, 0.0, 1.0, 2.0, math.inf, math.nan])
    expected = [0, 0, 1, 2, 3, 3, 3, 4] if rounding == "floor" else [0, 0, 0, 2, 2, 3, 3, 4]
    found = bins(values[:, None].expand(-1, d))
    assert found.tolist() == [[value] * d for value in expected]
    logits = torch.zeros(8, d, 4)
    assert float(binned_nll(logits, found, valid=torch.arange(8) < 7)) == pytest.approx(math.log(4))
    with pytest.raises(ValueError, match="NaN has none: mark its pair invalid"):
        binned_nll(logits, found)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Bins.uniform(2.0, -2.0, 6), "low"),
        (lambda: Bins.uniform(-2.0, 2.0, 1), "at least 2"),
        (lambda: Bins.uniform(-2.0, 2.0, 6, "ceil"), "half_even"),
        (lambda: Bins.quantile(torch.zeros(100, 1), 6), "rise strictly"),
        (lambda: Bins.quantile(torch.tensor([[0.0], [1.0], [math.nan]]), 2), "leave NaN and infinity out"),
        (lambda: Bins.uniform(0.0, math.inf, 4), "leave NaN and infinity out"),
        (lambda: Bins.uniform([-1.0, -1.0], [1.0, 1.0], 6)(torch.zeros(3, 4)), "2 components"),
    ],
)
def test_wrong_bins_say_what_is_wrong(build, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words if words != "half_even" else "rounding|half_even"):
        build()


def test_step_seeds_differ_and_repeat() -> None:
    seeds = {step_seed(seed, step, stream) for seed in range(20) for step in range(200) for stream in range(4)}
    assert len(seeds) == 20 * 200 * 4
    assert all(0 <= value < 2**63 for value in seeds)
    assert step_seed(3, 5, 1) == step_seed(3, 5, 1)
