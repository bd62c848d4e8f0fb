"""What features look like while an encoder learns: how alike two views of an object are, how spread and how wide all.

A loss can fall while the features lose what tells objects apart. These numbers say so, without labels, from one batch
of rows. They draw no random number, and are computed in float32 or better, whatever autocast is on.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

ROWS = 1024  # of a batch, that are described: enough for means, few enough to cost little
SIDE = 512  # of the largest matrix whose eigenvalues are taken for that: its cost grows with the cube

# Where feature_std counts as collapsed, and for how many steps it has to before that is told. Measured in training
# mode, on ResNets (untrained, and under SimCLR and S-TEC) and CPC's contexts, it was at least 0.27, but for encoders
# without normalisation, which start as low as 0.03, and for the first steps at a high rate without a warm-up (0.10). Of
# four runs made to collapse (two views drawn together, nothing else), two fell below 0.1 and 0.2 and stayed there; in
# the others it was the head that collapsed, and the features kept 0.27 and 0.37. The effective rank raises no alarm:
# that of features of few classes is rightly small.
COLLAPSED, PATIENCE = 0.2, 100


class CollapsedFeatures(UserWarning):
    """The features of all inputs became alike."""


@runtime_checkable
class Diagnosed(Protocol):
    """A model that tells how it did on the batch that it saw last, such as BinnedActions."""

    def diagnostics(self) -> dict[str, Float[Tensor, ""]]:
        """Named scalars on the device, without gradient; after every batch the same names."""
        ...


def alignment(z: Float[Tensor, "b f"], z_prime: Float[Tensor, "b f"]) -> Float[Tensor, ""]:
    """Mean squared distance between the unit features of two views of one object (Wang & Isola 2020): 0 to 4.

    0 where the views are alike, 2 where they are orthogonal.

    >>> alignment(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    tensor(2.)
    """
    return (_unit(z) - _unit(z_prime)).square().sum(dim=1).mean()


def uniformity(z: Float[Tensor, "b f"], t: float = 2.0) -> Float[Tensor, ""]:
    """log of the mean of exp(-t |u - v|^2) over all pairs of different unit rows (Wang & Isola 2020): at most 0.

    0 where all rows are alike, and near -2 t where they are spread evenly over a sphere of many dimensions. NaN of one
    row.

    >>> uniformity(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor(-4.)
    """
    unit = _unit(z)
    n = len(unit)
    with torch.autocast(unit.device.type, enabled=False):
        exponents = t * (2 * (unit @ unit.T) - 2)  # |u - v|^2 = 2 - 2 u v
    exponents.fill_diagonal_(-torch.inf)
    return exponents.flatten().logsumexp(dim=0) - (math.log(n * (n - 1)) if n > 1 else math.nan)


def effective_rank(z: Float[Tensor, "b f"]) -> Float[Tensor, ""]:
    """exp of the entropy of the normalised singular values of z (Roy & Vetterli 2007; RankMe, Garrido et al. 2023).

    1 where all rows are multiples of one, at most min(b, f). The singular values are the roots of the eigenvalues of
    the smaller Gram matrix, in float64: in float32 the roots of rounding errors would count for many dimensions. NaN
    where z is not finite.

    >>> effective_rank(torch.eye(4)[:3])
    tensor(3.)
    """
    wide = (z.cpu() if z.device.type == "mps" else z).double()  # autocast leaves float64 alone; MPS has none
    gram = wide @ wide.T if len(wide) < wide.shape[1] else wide.T @ wide
    finite = gram.isfinite().all()
    singular = torch.linalg.eigvalsh(gram.where(finite, 0.0)).clamp(min=0.0).sqrt()
    p = singular / singular.sum().clamp(min=torch.finfo(singular.dtype).tiny)
    rank = (-torch.xlogy(p, p).sum()).exp()
    return rank.where(finite, torch.nan).to(z.device, torch.promote_types(z.dtype, torch.float32))


def feature_std(z: Float[Tensor, "b f"]) -> Float[Tensor, ""]:
    """Mean over dimensions of the standard deviation of unit rows, times sqrt(f) (Chen & He 2021).

    About 1 where rows point in all directions, 0 where they are alike.

    >>> feature_std(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]]))
    tensor(1.0000)
    """
    return _unit(z).std(dim=0, correction=0).mean() * math.sqrt(z.shape[1])


class BinScore(NamedTuple):
    """How often the likeliest bin is the true one, and how often the commonest bin of these rows is; NaN of no row."""

    accuracy: Float[Tensor, " d"]
    majority: Float[Tensor, " d"]


def bin_score(
    logits: Float[Tensor, "b d k"], bins: Int[Tensor, "b d"], valid: Bool[Tensor, " b"] | None = None
) -> BinScore:
    """Accuracy of each component of a binned action over the valid rows, and the share of its commonest bin there.

    The majority is what a reader reaches that knows this batch's bins but not its views; it exceeds the majority of
    many batches, the more the smaller the batch is.

    >>> score = bin_score(torch.tensor([[[9.0, 0.0]], [[0.0, 9.0]], [[0.0, 9.0]]]), torch.tensor([[0], [0], [1]]))
    >>> score.accuracy, score.majority
    (tensor([0.6667]), tensor([0.6667]))
    """
    counted = torch.ones_like(bins[:, 0], dtype=torch.bool) if valid is None else valid
    n = counted.sum()
    hits = (logits.argmax(dim=2) == bins) & counted[:, None]
    is_bin = bins[:, :, None] == torch.arange(logits.shape[2], device=bins.device)
    counts = (is_bin & counted[:, None, None]).sum(dim=0)
    return BinScore(hits.sum(dim=0) / n, counts.amax(dim=1) / n)


@torch.no_grad()
def describe(
    x: Float[Tensor, "b *t f"], x_prime: Float[Tensor, "b *t f"] | None = None
) -> dict[str, Float[Tensor, ""]]:
    """Of the features of a batch: "alignment" of x and x', and "uniformity", "effective_rank", "feature_std" of x.

    At most `ROWS` rows are read, without gradient. Each time step of a sequence (b, t, f) is a row; the alignment is
    that of the means over time, as the same step of two windows need not show the same. Without x' there is no
    alignment, and of features of other shapes nothing is said. The effective rank of features wider than `SIDE` is that
    of as many rows.
    """
    if x.ndim not in (2, 3):
        return {}
    found = {}
    if x_prime is not None:
        means = [view[:ROWS] if view.ndim == 2 else view[:ROWS].mean(dim=1) for view in (x, x_prime)]
        found["alignment"] = alignment(*means)
    rows = x[:ROWS].flatten(0, -2)[:ROWS]
    return found | {
        "uniformity": uniformity(rows),
        "effective_rank": effective_rank(rows if rows.shape[1] <= SIDE else rows[:SIDE]),
        "feature_std": feature_std(rows),
    }


class CollapseWatch:
    """Reads diagnostics as training goes on, and tells once that the features have collapsed.

    They have where feature_std stays below `COLLAPSED` for `PATIENCE` steps, and below two thirds of what it was when
    this watch began: features with a large constant part, such as those of an encoder without normalisation, start low
    and are sound. Steps before `after`, those of the warm-up, do not count.

    >>> watch = CollapseWatch(after=10)
    >>> [watch.read({"feature_std": 0.4 if step < 50 else 0.1}, step) is None for step in (0, 50, 100, 200, 300)]
    [True, True, True, False, True]
    """

    def __init__(self, *, after: int) -> None:
        self.after = after
        self._start: float | None = None
        self._since: int | None = None  # the first of the low reads in a row
        self._told = False

    def state_dict(self) -> dict[str, float | int | bool | None]:
        """What a checkpoint keeps, so that a resumed run is told the same."""
        return {"start": self._start, "since": self._since, "told": self._told}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self._start, self._since, self._told = state["start"], state["since"], state["told"]

    def read(self, found: Mapping[str, float], step: int) -> str | None:
        """What to tell a person at this step (0, 1, ...), the first time that there is something to tell."""
        if "feature_std" not in found:
            return None
        std = found["feature_std"]
        if self._start is None:
            self._start = std
        if step < self.after or not std < min(COLLAPSED, self._start * 2 / 3):  # NaN is not
            self._since = None
            return None
        if self._since is None:
            self._since = step
        if self._told or step - self._since < PATIENCE:
            return None
        self._told = True
        return (
            f"the features collapsed: feature_std is {std:.3g} at step {step}, and below {COLLAPSED:g} since step "
            f"{self._since} (it began at {self._start:.3g}; 1: rows in all directions, 0: all alike). Different inputs "
            "look alike to the encoder, and a falling loss means nothing. Lower the learning rate or lengthen the "
            "warm-up; give more weight to what keeps features apart (negatives, variance, manipulation); a model that "
            "has nothing of that needs its stopped gradient, predictor and momentum encoder"
        )


def _unit(z: Tensor) -> Tensor:
    return F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1)
