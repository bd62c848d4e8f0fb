"""Actions and their efference copies: groups, egocentric and allocentric actions, bins, the batch type.

A view is reached from its object by a *pose*, an element of a group (for images: the affine map of a crop and flip).
The action that turns view x into view x' is the quotient of the two poses, `inverse(to_x)` followed by `to_x_prime`:
it can be told from the two views alone, so it is *egocentric* (Scherr et al. 2022, principle f). The plain difference
of the poses depends on where the object stood, so it is *allocentric* (Lee et al. 2021, Fig. 3A of the paper).
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class MoreViews(NamedTuple):
    """Views beside x and x' (multi-crop), and the actions among all v of them: 0 is x, 1 is x', then `views` in order.

    The first `large` views are of x's shape, and a momentum encoder sees them too; the small ones after them it never
    sees. `action[i, j]` turns view i into view j; `valid[i, j]` as in ViewPair.
    """

    views: tuple[Any, ...]  # each (b, c, h, w) or (b, n) as x; those after the large ones may be smaller
    large: int  # at least 2: x and x' are large
    action: Float[Tensor, "v v b d"]
    valid: Bool[Tensor, "v v b"]


class ViewPair(NamedTuple):
    """What a data pipeline yields: two sensations, and the efference copy of the action between them.

    `action` is flattened and continuous: models discretise it (`Bins`), data do not. `valid` is False where the
    action cannot be inferred, such as for a solarised view. `label` serves probes; no self-supervised objective reads
    it. Pairs with equal numbers in `object` show the same object, and so are no negatives of each other; None: every
    pair shows another one. `group` marks what pairs of different objects may share, such as a speaker. `more` are
    further views of the same objects, for models that compare many. `ViewPair.of` fills in what a modality without
    labels, or whose actions can all be inferred, has nothing to say of.
    """

    x: Any  # (b, c, h, w) images in [0, 1] | (b, n) waveforms in [-1, 1]
    x_prime: Any  # as x
    action: Float[Tensor, "b d"]
    valid: Bool[Tensor, " b"]
    label: Int[Tensor, "b *frames"]
    object: Int[Tensor, " b"] | None = None
    group: Int[Tensor, " b"] | None = None
    more: MoreViews | None = None

    @classmethod
    def of(
        cls,
        x: Any,
        x_prime: Any,
        action: Float[Tensor, "b d"],
        *,
        valid: Bool[Tensor, " b"] | None = None,
        label: Int[Tensor, "b *frames"] | None = None,
    ) -> "ViewPair":
        """A pair whose actions are all valid and whose objects are unlabelled (-1), unless told otherwise.

        >>> pair = ViewPair.of(torch.zeros(2, 8), torch.zeros(2, 8), torch.zeros(2, 1))
        >>> pair.valid, pair.label
        (tensor([True, True]), tensor([-1, -1]))
        """
        if valid is None:
            valid = action.new_ones(len(action), dtype=torch.bool)
        if label is None:
            label = action.new_full((len(action),), -1, dtype=torch.long)
        return cls(x, x_prime, action, valid, label)


@runtime_checkable
class ActionSpace(Protocol):
    """A group acting on sensations; elements are batched tensors of any shape."""

    @property
    def components(self) -> tuple[str, ...]:
        """One name for each column of `flatten`."""
        ...

    def compose(self, first: Tensor, then: Tensor) -> Tensor:
        """The action of doing `first`, then `then` (as seen from where `first` led)."""
        ...

    def inverse(self, action: Tensor) -> Tensor:
        """The action that undoes `action`."""
        ...

    def flatten(self, action: Tensor) -> Tensor:
        """(b, d): the live components of each action."""
        ...


@runtime_checkable
class EfferenceCopy(Protocol):
    """Labels a pair of views with an action, given the poses from which the two were seen."""

    @property
    def components(self) -> tuple[str, ...]: ...

    def __call__(self, to_x: Tensor, to_x_prime: Tensor) -> Tensor:
        """(b, d): the flattened action from x to x'."""
        ...


class Egocentric:
    """The quotient of the poses, `inverse(to_x)` then `to_x_prime`: the action as the observer makes it."""

    def __init__(self, space: ActionSpace) -> None:
        self.space = space

    @property
    def components(self) -> tuple[str, ...]:
        return self.space.components

    def __call__(self, to_x: Tensor, to_x_prime: Tensor) -> Tensor:
        return self.space.flatten(self.space.compose(self.space.inverse(to_x), to_x_prime))


class Allocentric:
    """The difference of the poses, in the frame of the object (the ablation of Fig. 3A)."""

    def __init__(self, space: ActionSpace) -> None:
        self.space = space

    @property
    def components(self) -> tuple[str, ...]:
        return self.space.components

    def __call__(self, to_x: Tensor, to_x_prime: Tensor) -> Tensor:
        return self.space.flatten(to_x_prime) - self.space.flatten(to_x)


class Bins(nn.Module):
    """Clusters each component of an action into K bins (principle e, Eq. 3); the edges live in the checkpoint.

    Values beyond the outer bins count as the outer bins. NaN has no bin and is given K, which no loss takes: mark its
    pair invalid. Build one with `uniform` or `quantile`, or from inner edges (d, K - 1).

    >>> Bins.uniform(-2.0, 2.0, 4)(torch.tensor([[-1.5, 0.0, 9.0]]))
    tensor([[0, 2, 3]])
    """

    edges: Tensor
    affine: Tensor

    def __init__(self, edges: Float[Tensor, "d k_minus_1"], *, half_even: Float[Tensor, "2 d"] | None = None) -> None:
        super().__init__()
        if edges.ndim != 2 or edges.shape[1] < 1:
            raise ValueError(f"edges have shape {tuple(edges.shape)}; need (components, bins - 1), at least two bins")
        if not bool(edges.isfinite().all()):
            raise ValueError(f"edges of bins are {edges.tolist()}; need finite ones: leave NaN and infinity out")
        if flat := (edges.diff(dim=1) <= 0).any(dim=1).nonzero().flatten().tolist():
            raise ValueError(
                f"{edges.shape[1] + 1} bins: their edges do not rise strictly in component {flat[0]}, where values "
                "come more than once; use fewer bins or another range"
            )
        self.register_buffer("edges", edges)
        # low and high of the released code's rule; empty where the edges alone decide
        self.register_buffer("affine", edges.new_empty(2, 0) if half_even is None else half_even)

    @classmethod
    def uniform(
        cls,
        low: float | Sequence[float] | Tensor,
        high: float | Sequence[float] | Tensor,
        bins: int,
        rounding: Literal["floor", "half_even"] = "floor",
    ) -> "Bins":
        """K equal bins over [low, high], which may be scalars or one value for each component.

        `rounding="floor"`: a value on an edge belongs to the upper bin. `"half_even"`: the released code's rule,
        `round((v - low) / (high - low) * K - 0.5)` with ties to the even bin, in float32.
        """
        if rounding not in ("floor", "half_even"):
            raise ValueError(f"rounding is {rounding!r}; use 'floor' or 'half_even'")
        if bins < 2:
            raise ValueError(f"bins is {bins}; need at least 2")
        lows, highs = torch.broadcast_tensors(
            torch.atleast_1d(torch.as_tensor(low, dtype=torch.float64)),
            torch.atleast_1d(torch.as_tensor(high, dtype=torch.float64)),
        )
        if not bool((lows < highs).all()):
            raise ValueError(f"low {lows.tolist()} must be below high {highs.tolist()} in every component")
        steps = torch.arange(1, bins, dtype=torch.float64)
        # In float64 and rounded once, so that a float32 value on an edge is on the edge.
        edges = (lows[:, None] * (bins - steps) + highs[:, None] * steps) / bins
        ends = torch.stack((lows, highs)).float() if rounding == "half_even" else None
        return cls(edges.float(), half_even=ends)

    @classmethod
    def quantile(cls, actions: Float[Tensor, "n d"], bins: int) -> "Bins":
        """K bins that hold equal shares of a sample of actions: each component's chance level is log K nats."""
        fractions = torch.arange(1, bins, dtype=actions.dtype, device=actions.device) / bins
        return cls(torch.quantile(actions, fractions, dim=0).T.contiguous())

    @property
    def bins(self) -> int:
        """K."""
        return self.edges.shape[1] + 1

    def forward(self, actions: Float[Tensor, "b d"]) -> Int[Tensor, "b d"]:
        d = self.edges.shape[0]
        if d not in (1, actions.shape[1]):
            raise ValueError(f"these bins are for {d} components, the actions have {actions.shape[1]}")
        if self.affine.numel():
            low, high = self.affine
            position = (actions - low) / (high - low) * self.bins - 0.5
            found = position.round().clamp(0, self.bins - 1).long()
        elif d == 1:
            found = torch.bucketize(actions, self.edges[0], right=True)
        else:
            found = torch.searchsorted(self.edges, actions.T.contiguous(), right=True).T.contiguous()
        return found.masked_fill_(actions.isnan(), self.bins)


class Chance(NamedTuple):
    """What a predictor reaches that ignores its input, for each component."""

    nll: Float[Tensor, " d"]  # nats: the entropy of the bins
    accuracy: Float[Tensor, " d"]  # the share of the commonest bin


def chance_level(bins: Int[Tensor, "n d"], k: int) -> Chance:
    """The level to beat on binned actions: marginal entropy in nats, and majority accuracy, of each component.

    >>> chance_level(torch.tensor([[0], [0], [1], [1]]), 2).nll
    tensor([0.6931])
    """
    counts = torch.stack([torch.bincount(column, minlength=k) for column in bins.T]).double()
    shares = counts / counts.sum(dim=1, keepdim=True)
    return Chance((-torch.xlogy(shares, shares)).sum(dim=1).float(), shares.amax(dim=1).float())


def step_seed(seed: int, step: int, stream: int = 0) -> int:
    """A well-mixed 63-bit seed for one step of one stream of randomness, so that nothing has to be remembered.

    Randomness that is a function of (seed, step) makes an interrupted run repeat exactly, with no generator state
    in the checkpoint. It mixes in the manner of SplitMix64 (Steele et al. 2014). Streams in use: 1 the order of an
    epoch, 2 and up the views (one for each process), -1 the crops that workers draw, -2 the linear probe's views, -3 a
    step of fine-tuning, -4 an embedding's views, 99 the held-out views that actions are read off.
    """
    mask = (1 << 64) - 1
    state = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB) & mask
    for multiplier in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        state = ((state ^ (state >> 30)) * multiplier) & mask
        state = (state + 0x9E3779B97F4A7C15) & mask
    return (state ^ (state >> 31)) >> 1
