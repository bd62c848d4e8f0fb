"""The bootstrap against a loop, the normal approximation, its coverage on simulated data, and what it refuses."""

import math

import pytest
import torch
from torch import Tensor

from stec.core.bootstrap import Comparison, bootstrap, paired_bootstrap


def _counts(seed: int = 0, *, s: int = 3, u: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    total = torch.randint(50, 150, (u,), generator=generator).float()
    a = torch.binomial(total.expand(s, u), torch.tensor(0.6).expand(s, u), generator=generator)
    b = (a - torch.randint(-4, 10, (s, u), generator=generator)).clamp(min=0)
    return a, torch.minimum(b, total), total


def _loop(a: Tensor, b: Tensor, total: Tensor, *, resamples: int, seed: int) -> list[float]:
    """Differences of accuracy, draw by draw, from the same stream of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    s, u = a.shape
    utterances = torch.randint(u, (resamples, u), generator=generator).tolist()
    seeds = torch.randint(s, (resamples, s), generator=generator).tolist()
    differences = []
    for i in range(resamples):
        frames = sum(float(total[j]) for j in utterances[i])
        more = sum(float(a[k, j]) - float(b[k, j]) for k in seeds[i] for j in utterances[i])
        differences.append(more / frames / s)
    return sorted(differences)


def _percentile(values: list[float], q: float) -> float:
    position = q * (len(values) - 1)
    low = math.floor(position)
    return values[low] + (position - low) * (values[min(low + 1, len(values) - 1)] - values[low])


def test_a_loop_gives_the_same_interval() -> None:
    a, b, total = _counts()
    draws = _loop(a, b, total, resamples=300, seed=5)
    result = paired_bootstrap(a, b, total, resamples=300, seed=5)
    assert result.difference == pytest.approx(float(((a - b).sum(1) / total.sum()).mean()))
    assert result.low == pytest.approx(_percentile(draws, 0.025))
    assert result.high == pytest.approx(_percentile(draws, 0.975))
    rarer = min(sum(d <= 0 for d in draws), sum(d >= 0 for d in draws))
    assert result.p == pytest.approx(2 * (rarer + 1) / 301)
    alone = _loop(a, torch.zeros_like(a), total, resamples=300, seed=5)
    one = bootstrap(a, total, resamples=300, seed=5)
    assert one.accuracy == pytest.approx(float((a.sum(1) / total.sum()).mean()))
    assert one[1:] == pytest.approx((_percentile(alone, 0.025), _percentile(alone, 0.975)))


def test_draws_in_blocks_are_those_of_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, total = _counts()
    whole = paired_bootstrap(a, b, total, resamples=100, seed=1)
    monkeypatch.setattr("stec.core.bootstrap._BLOCK", 12 * 7)
    assert paired_bootstrap(a, b, total, resamples=100, seed=1) == pytest.approx(whole)


def test_interval_of_independent_frames_is_binomial() -> None:
    generator = torch.Generator().manual_seed(0)
    total = torch.full((2000,), 5.0)
    correct = torch.binomial(total[None], torch.full((1, 2000), 0.7), generator=generator)
    result = bootstrap(correct, total, seed=0)
    share = float(correct.sum() / 10_000)
    half = 1.96 * math.sqrt(share * (1 - share) / 10_000)
    assert result.accuracy == pytest.approx(share)
    assert (result.low, result.high) == pytest.approx((share - half, share + half), abs=0.06 * half)


def test_spread_of_seeds_widens_the_interval() -> None:
    total = torch.full((400,), 100.0)
    levels = torch.tensor([50.0, 55.0, 60.0, 65.0, 70.0])
    result = bootstrap(levels[:, None].expand(5, 400), total, seed=0)
    # All utterances alike: only seeds vary, and the mean of 5 draws has variance var / 5.
    half = 1.96 * float(levels.std(correction=0)) / 100 / math.sqrt(5)
    assert (result.low, result.high) == pytest.approx((0.6 - half, 0.6 + half), abs=0.006)
    assert bootstrap(levels[:1, None].expand(1, 400), total, seed=0)[1:] == pytest.approx((0.5, 0.5))


def test_pairing_takes_out_what_is_common() -> None:
    generator = torch.Generator().manual_seed(0)
    total = torch.full((100,), 100.0)
    hard = torch.randint(20, 80, (4, 100), generator=generator).float()
    result = paired_bootstrap(hard + 1, hard, total, seed=0)
    assert result[:3] == pytest.approx((0.01, 0.01, 0.01))
    assert result.p == pytest.approx(2 / 10_001)
    alone = bootstrap(hard, total, seed=0)
    assert alone.high - alone.low > 0.02


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    total = torch.randint(50, 150, (60,), generator=generator).float()
    hits, runs = 0, 300
    for run in range(runs):
        # Utterances differ in how hard they are; b gets 0.05 fewer on average.
        level = 0.4 + 0.4 * torch.rand(1, 60, generator=generator)
        gap = 0.05 + 0.1 * (torch.rand(1, 60, generator=generator) - 0.5)
        a = torch.binomial(total[None], level, generator=generator)
        b = torch.binomial(total[None], level - gap, generator=generator)
        result = paired_bootstrap(a, b, total, resamples=400, seed=run)
        hits += result.low <= 0.05 <= result.high
    assert 0.91 <= hits / runs <= 0.98


def test_p_of_no_difference_is_uniform() -> None:
    generator = torch.Generator().manual_seed(1)
    total = torch.full((60,), 100.0)
    ps = []
    for run in range(200):
        a, b = torch.binomial(total.expand(2, 60), torch.tensor(0.5).expand(2, 60), generator=generator).split(1)
        ps.append(paired_bootstrap(a, b, total, resamples=400, seed=run).p)
    assert 0.01 <= sum(p < 0.05 for p in ps) / 200 <= 0.1
    assert 0.4 <= sum(p < 0.5 for p in ps) / 200 <= 0.6


def test_equal_systems_do_not_differ() -> None:
    a, _, total = _counts()
    assert paired_bootstrap(a, a, total, resamples=50, seed=0) == Comparison(0.0, 0.0, 0.0, 1.0)


def test_utterances_without_a_frame_that_counts_change_nothing() -> None:
    a, b, total = _counts()
    none = torch.zeros(3, 1)
    padded_a, padded_b = (torch.cat((values, none), dim=1) for values in (a, b))
    result = paired_bootstrap(padded_a, padded_b, torch.cat((total, torch.zeros(1))), resamples=50, seed=0)
    assert result == paired_bootstrap(a, b, total, resamples=50, seed=0)


def test_result_is_a_function_of_the_seed() -> None:
    a, b, total = _counts()
    first, again, other = (paired_bootstrap(a, b, total, resamples=50, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("correct", "total", "words"),
    [
        (torch.ones(1, 3), torch.ones(2), r"correct is \(1, 3\) and total \(2,\)"),
        (torch.ones(3), torch.ones(3), r"correct is \(3,\)"),
        (torch.ones(0, 3), torch.ones(3), r"correct is \(0, 3\)"),
        (torch.full((1, 3), 2.0), torch.ones(3), "0 <= correct <= total"),
        (torch.full((1, 3), -1.0), torch.ones(3), "0 <= correct <= total"),
        (torch.full((1, 3), torch.nan), torch.ones(3), "0 <= correct <= total"),
        (torch.ones(1, 3), torch.tensor([1.0, 1.0, torch.inf]), "finite"),
        (torch.ones(1, 1), torch.ones(1), "1 utterances hold frames that count"),
        (torch.zeros(1, 3), torch.zeros(3), "0 utterances hold frames that count"),
    ],
)
def test_refused(correct: Tensor, total: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bootstrap(correct, total, seed=0)
    with pytest.raises(ValueError, match=words):
        paired_bootstrap(correct, correct, total, seed=0)


@pytest.mark.unchecked
def test_refused_of_pairs_and_resamples() -> None:
    with pytest.raises(ValueError, match=r"counts of a are \(1, 3\), of b \(2, 3\)"):
        paired_bootstrap(torch.ones(1, 3), torch.ones(2, 3), torch.ones(3), seed=0)
    with pytest.raises(ValueError, match="resamples is 0"):
        bootstrap(torch.ones(1, 3), torch.ones(3), resamples=0, seed=0)
