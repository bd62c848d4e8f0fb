"""How sure an accuracy is, and a difference of two: the bootstrap over utterances and over seeds.

Frames of one utterance are far from independent, so utterances are drawn anew (Efron 1979), and with them the seeds
that encoders were trained with. Two systems are compared on the same draws: the same utterances are hard for both.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

# A block of draws holds this many numbers: 32 MiB of int64.
_BLOCK = 2**22


class Interval(NamedTuple):
    """An accuracy in [0, 1] with its 95 % percentile interval."""

    accuracy: float
    low: float
    high: float


class Comparison(NamedTuple):
    """Accuracy of a less that of b, in [-1, 1], with its 95 % percentile interval."""

    difference: float
    low: float
    high: float
    p: float  # two-sided: twice the share of draws on the rarer side of 0, at least 2 / (resamples + 1)


def bootstrap(
    correct: Float[Tensor, "s u"], total: Float[Tensor, " u"], *, resamples: int = 10_000, seed: int
) -> Interval:
    """The accuracy of s seeds on u utterances, from counts of correct frames and of all frames that count.

    Seeds and utterances are drawn with replacement, independently; with one seed only utterances are, and with few
    seeds the interval is too narrow for them, by about sqrt((s - 1) / s). Where speakers rather than utterances are
    to be drawn, pass counts summed by speaker. Utterances without a frame that counts are left out. Raises ValueError
    for counts that are not 0 <= correct <= total, and for fewer than two utterances.

    >>> bootstrap(torch.tensor([[6.0, 8.0, 10.0]]), torch.tensor([10.0, 10.0, 10.0]), seed=0).accuracy
    0.8
    """
    correct, total = _checked(correct, total)
    draws = _draws(correct, total, resamples=resamples, seed=seed)
    low, high = torch.quantile(draws, draws.new_tensor([0.025, 0.975])).tolist()
    return Interval(float(correct.sum() / (len(correct) * total.sum())), low, high)


def paired_bootstrap(
    correct_a: Float[Tensor, "s u"],
    correct_b: Float[Tensor, "s u"],
    total: Float[Tensor, " u"],
    *,
    resamples: int = 10_000,
    seed: int,
) -> Comparison:
    """By how much system a is more accurate than b, both on the same utterances and, pair by pair, the same seeds.

    Draws and errors as of `bootstrap`; every draw takes the same utterances and seeds of both.

    >>> a, b = torch.tensor([[7.0, 9.0, 10.0]]), torch.tensor([[6.0, 8.0, 9.0]])
    >>> round(paired_bootstrap(a, b, torch.tensor([10.0, 10.0, 10.0]), seed=0).low, 6)
    0.1
    """
    if correct_a.shape != correct_b.shape:
        raise ValueError(
            f"counts of a are {tuple(correct_a.shape)}, of b {tuple(correct_b.shape)}; use the same of each"
        )
    (a, kept), (b, _) = _checked(correct_a, total), _checked(correct_b, total)
    draws = _draws(a - b, kept, resamples=resamples, seed=seed)
    low, high = torch.quantile(draws, draws.new_tensor([0.025, 0.975])).tolist()
    rarer = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    p = min(1.0, 2 * (rarer + 1) / (resamples + 1))
    return Comparison(float((a - b).sum() / (len(a) * kept.sum())), low, high, p)


def _checked(correct: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Counts in float64 on the CPU, of the utterances that count."""
    if correct.ndim != 2 or total.ndim != 1 or correct.shape[1] != len(total) or len(correct) == 0:
        raise ValueError(
            f"correct is {tuple(correct.shape)} and total {tuple(total.shape)}; need (seeds, utterances), (utterances,)"
        )
    correct, total = correct.double().cpu(), total.double().cpu()
    # Written so that NaN fails too.
    if not bool(((correct >= 0) & (correct <= total)).all()) or not bool(total.isfinite().all()):
        raise ValueError(
            "counts must be finite with 0 <= correct <= total for every utterance; pass counts, not shares"
        )
    counted = total > 0
    if int(counted.sum()) < 2:
        raise ValueError(f"{int(counted.sum())} utterances hold frames that count; a bootstrap needs at least 2")
    return correct[:, counted], total[counted]


def _draws(correct: Tensor, total: Tensor, *, resamples: int, seed: int) -> Tensor:
    """(resamples,): sums of `correct` over those of `total`, on redrawn utterances and seeds."""
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; need at least 1, and thousands for an interval")
    generator = torch.Generator().manual_seed(seed)
    sums = torch.cat((correct, total[None])).T  # (u, s + 1)
    parts = []
    for weights in _multinomial(resamples, len(total), max(1, _BLOCK // len(total)), generator):
        drawn = weights @ sums
        parts.append(drawn[:, :-1] / drawn[:, -1:])
    accuracies = torch.cat(parts)  # (resamples, s)
    seeds = torch.cat(list(_multinomial(resamples, len(correct), resamples, generator)))
    return (accuracies * seeds).sum(dim=1) / len(correct)


def _multinomial(resamples: int, n: int, block: int, generator: torch.Generator) -> Iterator[Tensor]:
    """(block, n): how often each of n is drawn in n draws with replacement, block by block."""
    for start in range(0, resamples, block):
        index = torch.randint(n, (min(block, resamples - start), n), generator=generator)
        counts = torch.zeros(index.shape, dtype=torch.float64)
        yield counts.scatter_add_(1, index, torch.ones((), dtype=torch.float64).expand(index.shape))
