"""Manipulation-related inverse models q(a_manip | a_id = 0, x, x'): which action turned one view into the other?"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stec.core import distributed
from stec.core.actions import Bins, ViewPair
from stec.core.diagnostics import bin_score
from stec.core.losses import binned_nll, gaussian_nll
from stec.core.objective import Features, InverseModel


class BinnedActions(InverseModel):
    """Eq. 3: a softmax over K bins for each component of the action, read off the features of both views.

    `head` (psi) maps the concatenated features (b, 2f) to (b, d * K), component after component. The loss is the mean
    over valid pairs and over components; the paper's sum over d components is d times that. `components` name the
    columns of the action in `diagnostics`; by default they are numbered. ValueError for a head of another width, here
    where the head and the bins tell theirs, else at the first call.

    >>> BinnedActions(nn.Linear(8, 10), Bins.uniform([-2.0, 0.0], [2.0, 1.0], 6))
    Traceback (most recent call last):
    ValueError: the head gives 10 values; need 2 components x 6 bins = 12
    """

    def __init__(self, head: nn.Module, bins: Bins, *, components: Sequence[str] | None = None) -> None:
        super().__init__()
        if components is not None and bins.edges.shape[0] not in (1, len(components)):
            raise ValueError(
                f"components are {', '.join(components)}; the bins are for {bins.edges.shape[0]} components: name each"
            )
        d = bins.edges.shape[0]
        _check_bins(_width(head, "out_features"), bins.bins, d if d > 1 else None)  # one row of edges serves any d
        self.head = head
        self.bins = bins
        self.components = None if components is None else tuple(components)
        self._latest: tuple[Tensor, Tensor, Tensor] | None = None  # logits, bins and valid of the last batch

    def logits(self, online: Features) -> Float[Tensor, "b d k"]:
        """The model's beliefs psi, one row of K for each component."""
        flat: Tensor = self.head(_side_by_side(online, self.head))
        d = self.bins.edges.shape[0]
        _check_bins(flat.shape[1], self.bins.bins, d if d > 1 else None)
        return flat.unflatten(1, (-1, self.bins.bins))

    def forward(self, online: Features, target: Features | None, pair: ViewPair) -> Float[Tensor, ""]:
        logits, bins = self.logits(online), self.bins(pair.action)
        _check_bins(logits.shape[1] * logits.shape[2], self.bins.bins, bins.shape[1])
        self._latest = logits.detach(), bins, pair.valid
        return distributed.part_of_mean(binned_nll(logits, bins, pair.valid), pair.valid.sum())

    def diagnostics(self) -> dict[str, Float[Tensor, ""]]:
        """Of the last batch of all processes, "accuracy/NAME" of each component, and "majority/NAME" of its bins."""
        if self._latest is None:
            return {}
        score = bin_score(*(distributed.gather(part) for part in self._latest))
        names = self.components or tuple(str(i) for i in range(len(score.accuracy)))
        if len(names) != len(score.accuracy):
            raise ValueError(f"components are {', '.join(names)}; the head reads {len(score.accuracy)}: name each")
        return {
            f"{kind}/{name}": value
            for kind, values in score._asdict().items()
            for name, value in zip(names, values.unbind())
        }


class RegressedActions(InverseModel):
    """The L2 ablation of Fig. 3A: q is a normal distribution around the action that `head` reads off both views.

    `head` maps (b, 2f) to (b, d); `std` (d,) is the fixed standard deviation of each component in the action's units.
    The loss is the mean over valid pairs and components of ((a - mu) / std)^2 / 2, the negative log-likelihood in nats
    up to its constant. ValueError for a head of another width, here where the head tells its own, else at the first
    call.
    """

    std: Tensor

    def __init__(self, head: nn.Module, *, std: Float[Tensor, " d"]) -> None:
        super().__init__()
        if not bool((std > 0).all()):
            raise ValueError(f"std is {std.tolist()}; need positive values, or leave constant components out")
        _check_means(_width(head, "out_features"), len(std))
        self.head = head
        self.register_buffer("std", std)

    def forward(self, online: Features, target: Features | None, pair: ViewPair) -> Float[Tensor, ""]:
        if pair.action.shape[1] != len(self.std):
            raise ValueError(f"std is for {len(self.std)} components, the actions have {pair.action.shape[1]}")
        mean = self.head(_side_by_side(online, self.head))
        _check_means(mean.shape[1], len(self.std))
        loss = gaussian_nll(mean, pair.action, self.std, pair.valid)
        return distributed.part_of_mean(loss, pair.valid.sum())


class EveryPair(InverseModel):
    """An inverse model of actions, applied to every pair of views that `pair.more` knows, with its loss the mean.

    Pairs (i, j) are ordered, of any view i and a large view j != i; the action is the one from i to j. `model` reads
    features (b, f) of two views, `pair.action` and `pair.valid`, as BinnedActions does, and is called once, on all
    pairs stacked: its mean over valid rows is then the mean over the valid ones of all pairs, and BatchNorm in its head
    sees them together. It may have no target and finds no images. Without `pair.more` it is called as it is.

    >>> says_nothing = nn.Linear(6, 8)
    >>> _ = nn.init.zeros_(says_nothing.weight), nn.init.zeros_(says_nothing.bias)
    >>> model = EveryPair(BinnedActions(says_nothing, Bins.uniform(-2.0, 2.0, 4)))
    >>> pair = ViewPair(None, None, torch.zeros(5, 2), torch.ones(5).bool(), torch.zeros(5).long())
    >>> model(Features(torch.ones(5, 3), torch.ones(5, 3)), None, pair)   # log 4
    tensor(1.3863, grad_fn=<DivBackward0>)
    """

    def __init__(self, model: InverseModel) -> None:
        super().__init__()
        if model.needs_target:
            raise ValueError(f"{type(model).__name__} reads a target's features; EveryPair has none to give")
        self.model = model
        self.further = model.further

    def forward(
        self, online: Features, target: Features | None, pair: ViewPair
    ) -> Float[Tensor, ""] | tuple[Float[Tensor, ""], ...]:
        if pair.more is None:
            return self.model(online, None, pair)
        views = (online.x, online.x_prime, *online.more)
        pairs = [(i, j) for i in range(len(views)) for j in range(pair.more.large) if i != j]
        stacked = ViewPair(
            None,
            None,
            torch.cat([pair.more.action[i, j] for i, j in pairs]),
            torch.cat([pair.more.valid[i, j] for i, j in pairs]),
            torch.cat([pair.label] * len(pairs)),
        )
        froms, tos = (torch.cat([views[k] for k in side]) for side in zip(*pairs))
        return self.model(Features(froms, tos), None, stacked)


def _width(head: nn.Module, side: Literal["in_features", "out_features"]) -> int | None:
    """How many values a head takes or gives, where its first or last layer tells."""
    while isinstance(head, nn.Sequential) and len(head):
        head = head[0 if side == "in_features" else -1]
    return getattr(head, side) or None if isinstance(head, nn.Linear) else None  # 0: a lazy layer, not known yet


def _check_bins(width: int | None, k: int, d: int | None) -> None:
    """ValueError where a head of this width does not give K values for each of d components; None: not known yet."""
    if width is None:
        return
    if d is not None and width != d * k:
        raise ValueError(f"the head gives {width} values; need {_counted(d)} x {k} bins = {d * k}")
    if width % k:
        raise ValueError(f"the head gives {width} values; need components x {k} bins, a multiple of {k}")


def _check_means(width: int | None, d: int) -> None:
    if width is not None and width != d:
        raise ValueError(f"the head gives {width} values; need {d}, one for each value of std")


def _side_by_side(online: Features, head: nn.Module) -> Float[Tensor, "b two_f"]:
    """The features of both views in one row. ValueError where they are no rows, or the head takes rows of other width.

    A head of our own layers is asked before it is called: torch says "mat1 and mat2 shapes cannot be multiplied".
    """
    for name, view in (("x", online.x), ("x'", online.x_prime)):
        if not isinstance(view, Tensor) or view.ndim != 2:
            found = tuple(view.shape) if isinstance(view, Tensor) else type(view).__name__
            raise ValueError(
                f"the encoder gives {found} for {name}; a model of actions reads one vector a view, (b, f): pool it, "
                "or choose a part of it"
            )
    f, takes = online.x.shape[1], _width(head, "in_features")
    if takes not in (None, 2 * f):
        raise ValueError(f"the head takes {takes} values; the features are {f} wide, need 2 x {f} = {2 * f}: x and x'")
    return torch.cat((online.x, online.x_prime), dim=1)


def _counted(d: int) -> str:
    return "1 component" if d == 1 else f"{d} components"
