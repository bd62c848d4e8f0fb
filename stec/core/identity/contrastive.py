"""Identity models with negatives: a softmax over candidates (Eq. 4)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stec.core import distributed
from stec.core.actions import ViewPair
from stec.core.losses import nt_xent, queue_nce, relic
from stec.core.networks import MomentumEncoder
from stec.core.objective import Features, InverseModel


class SimCLR(InverseModel):
    """Eq. 4: a softmax over candidates of phi(h, h') / tau, with phi the cosine of the projected features.

    The loss is NT-Xent (Chen et al. 2020), the upper bound of Eq. 5: every view's partner against all other views of
    the batch, of all processes. `projector` maps (2b, f) features to (2b, p); `temperature` is tau.
    """

    def __init__(self, projector: nn.Module, *, temperature: float) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; need a positive value")
        self.projector = projector
        self.temperature = temperature

    def forward(self, online: Features, target: Features | None, pair: ViewPair) -> Float[Tensor, ""]:
        # One pass over both views, so that the projector's BatchNorm sees 2b rows.
        z, z_prime = self.projector(torch.cat((online.x, online.x_prime))).chunk(2)
        if distributed.world_size() == 1:
            return nt_xent(z, z_prime, self.temperature)
        everyone = (distributed.gather(z), distributed.gather(z_prime))
        return nt_xent(z, z_prime, self.temperature, everyone=everyone, first=distributed.rank() * len(z))


class ReLIC(InverseModel):
    """ReLIC (Mitrovic et al. 2021), which with actions is S-TEC*: contrast + `alpha` * invariance (`relic`), in nats.

    In Eq. 2's terms, q(a_id = 0 | x, x') is SimCLR's softmax times exp(-KL)^alpha, a confidence in (0, 1]: how far the
    two views agree on how every candidate compares. Its -log for a pair of one object is this loss, and Eq. 5 holds
    for it too, since a factor of at most 1 leaves more to q(a_id = 1).

    Queries are predictor(projector(h)) of the online features (`predictor` None: the projection itself). Keys are a
    momentum projector's of the target's features; with `momentum` None they are the online projections without
    gradient (h = f in the paper), and no target is needed. `same_view` as in `relic`. Candidates come from all
    processes. `pair.more` is not read.

    >>> model = ReLIC(nn.Identity(), temperature=1.0, alpha=1.0, momentum=None)
    >>> pair = ViewPair(None, None, torch.zeros(3, 0), torch.ones(3).bool(), torch.zeros(3).long())
    >>> model(Features(torch.eye(3), torch.eye(3)), None, pair)   # log(1 + 2/e), invariance 0
    tensor(0.5514)
    """

    def __init__(
        self,
        projector: nn.Module,
        *,
        temperature: float,
        alpha: float,
        momentum: float | None,
        predictor: nn.Module | None = None,
        same_view: bool = False,
    ) -> None:
        super().__init__()
        _check(temperature, alpha)
        self.projector = projector
        self.predictor = nn.Identity() if predictor is None else predictor
        self.target_projector = None if momentum is None else MomentumEncoder(projector, momentum=momentum)
        self.needs_target = momentum is not None
        self.temperature, self.alpha, self.same_view = temperature, alpha, same_view

    def forward(self, online: Features, target: Features | None, pair: ViewPair) -> Float[Tensor, ""]:
        z = self.projector(torch.cat((online.x, online.x_prime)))
        keys, first = _keys(z, self.target_projector, None if target is None else target.pair, views=2)
        contrast, invariance = relic(
            self.predictor(z).unflatten(0, (2, -1)),
            keys,
            temperature=self.temperature,
            first=first,
            same_view=self.same_view,
        )
        return contrast + self.alpha * invariance


class ReLICv2(InverseModel):
    """ReLICv2 (Tomasev et al. 2022): ReLIC over every view of `pair.more` against every other large one, in nats.

    Each ordered pair of an online view i, large or small, and the target's large view j != i gives a contrast and an
    invariance (`relic`); the loss is their mean over pairs, contrast + `alpha` * invariance. Small views pass the
    online network alone, and draw no other view's distribution to theirs. BatchNorm of the projector, and of the
    predictor, sees all large views in one pass and all small ones in another. Without `pair.more` this is ReLIC.
    Parameters as there.

    Three things differ from the paper: it samples a few negatives, here all of the batch count, of all processes; its
    pseudo-code also compares a large view with itself; and it takes the background out of some images beforehand. It
    does not tell how the divergence pairs small views, so here it follows ReLIC's sum over all pairs of pairs.

    >>> from stec.core.actions import MoreViews
    >>> model = ReLICv2(nn.Identity(), temperature=1.0, alpha=0.0, momentum=None)
    >>> more = MoreViews((None,), 2, torch.zeros(3, 3, 3, 0), torch.ones(3, 3, 3).bool())  # one small view
    >>> pair = ViewPair(None, None, torch.zeros(3, 0), torch.ones(3).bool(), torch.zeros(3).long(), more=more)
    >>> model(Features(torch.eye(3), torch.eye(3), (torch.ones(3, 3),)), None, pair)   # (log(1 + 2/e) + log 3) / 2
    tensor(0.8250)
    """

    def __init__(
        self,
        projector: nn.Module,
        *,
        temperature: float,
        alpha: float,
        momentum: float | None,
        predictor: nn.Module | None = None,
    ) -> None:
        super().__init__()
        _check(temperature, alpha)
        self.projector = projector
        self.predictor = nn.Identity() if predictor is None else predictor
        self.target_projector = None if momentum is None else MomentumEncoder(projector, momentum=momentum)
        self.needs_target = momentum is not None
        self.temperature, self.alpha = temperature, alpha

    def forward(self, online: Features, target: Features | None, pair: ViewPair) -> Float[Tensor, ""]:
        large = 2 if pair.more is None else pair.more.large
        views = (online.x, online.x_prime, *(() if pair.more is None else online.more))
        z = self.projector(torch.cat(views[:large]))
        others = None if target is None else (target.x, target.x_prime, *target.more)[:large]
        keys, first = _keys(z, self.target_projector, others, views=large)
        queries = self.predictor(z).unflatten(0, (large, -1))
        if len(views) > large:
            small = self.predictor(self.projector(torch.cat(views[large:])))
            queries = torch.cat((queries, small.unflatten(0, (len(views) - large, -1))))
        contrast, invariance = relic(queries, keys, temperature=self.temperature, first=first)
        return contrast + self.alpha * invariance


class MoCo(InverseModel):
    """MoCo v2 (He et al. 2020, Chen et al. 2020): each view's key among a queue of past ones, in nats.

    Both orders count: queries of x with keys of x', and the reverse (`queue_nce`). Keys are a momentum projector's of
    the target's features. After the loss, in training mode alone, the keys of x and then those of x', of all processes
    in rank order, take the places of the oldest of the `queue` keys, whose number need be no multiple of theirs.
    `features` is the projector's width. At the start the queue holds random unit rows of a fixed seed, which count as
    negatives until keys replace them, as in the paper. Queue and pointer are buffers: a checkpoint resumes exactly.

    The authors shuffle the batch between GPUs, lest BatchNorm's statistics of each tell which key belongs to a query.
    Nothing is shuffled here: use SyncBatchNorm, or one process, so that all rows have the same statistics.
    Raises ValueError where one step brings more keys than the queue holds.

    >>> model = MoCo(nn.Identity(), temperature=1e6, queue=7, momentum=0.99, features=3)
    >>> h, pair = torch.eye(3), ViewPair(None, None, torch.zeros(3, 0), torch.ones(3).bool(), torch.zeros(3).long())
    >>> model(Features(h, h), Features(h, h), pair), model.pointer   # log 8
    (tensor(2.0794), tensor(6))
    """

    needs_target = True
    queue: Tensor  # (queue, features) unit rows
    pointer: Tensor  # () int64: where the next key goes

    def __init__(self, projector: nn.Module, *, temperature: float, queue: int, momentum: float, features: int) -> None:
        super().__init__()
        _check(temperature)
        if queue < 1 or features < 1:
            raise ValueError(f"queue is {queue}, features {features}; need at least one key of one feature")
        self.projector = projector
        self.target_projector = MomentumEncoder(projector, momentum=momentum)
        self.temperature = temperature
        rows = torch.randn(queue, features, generator=torch.Generator().manual_seed(0))
        self.register_buffer("queue", F.normalize(rows, dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def forward(self, online: Features, target: Features | None, pair: ViewPair) -> Float[Tensor, ""]:
        assert target is not None
        queries = self.projector(torch.cat((online.x, online.x_prime)))
        keys, keys_prime = self.target_projector(torch.cat((target.x, target.x_prime))).chunk(2)
        if queries.shape[1] != self.queue.shape[1]:
            raise ValueError(f"the projector gives {queries.shape[1]} features; set features={queries.shape[1]}")
        loss = queue_nce(queries, torch.cat((keys_prime, keys)), self.queue, temperature=self.temperature)
        if self.training:
            self.enqueue(torch.stack((keys, keys_prime), dim=1))
        return loss

    @torch.no_grad()
    def enqueue(self, keys: Float[Tensor, "b 2 f"]) -> None:
        """Overwrite the oldest keys by those of this step, in place; the device is not waited for."""
        everyone = distributed.gather(keys).transpose(0, 1).flatten(0, 1)  # all of x, then all of x'
        size, count = len(self.queue), len(everyone)
        if count > size:
            raise ValueError(f"one step brings {count} keys, the queue holds {size}; use queue={count} or more")
        unit = F.normalize(everyone.to(torch.promote_types(everyone.dtype, torch.float32)), dim=1)
        places = (self.pointer + torch.arange(count, device=self.pointer.device)) % size
        self.queue.index_copy_(0, places, unit.to(self.queue.dtype))
        self.pointer.add_(count).remainder_(size)


def _check(temperature: float, alpha: float = 0.0) -> None:
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; need a positive value")
    if alpha < 0:
        raise ValueError(f"alpha is {alpha}; the weight of the invariance cannot be negative")


def _keys(
    z: Tensor, projector: MomentumEncoder | None, target: tuple[Tensor, ...] | None, *, views: int
) -> tuple[Float[Tensor, "v wb f"], int]:
    """The target's keys of `views` views, of all processes, and the row where this process's begin.

    One pass of the momentum projector over all views; without one, the online projections z, without gradient.
    """
    if projector is None:
        keys = z.detach()
    else:
        assert target is not None
        keys = projector(torch.cat(target))
    keys = keys.unflatten(0, (views, -1))
    first = distributed.rank() * keys.shape[1]
    return distributed.gather(keys.transpose(0, 1).contiguous()).transpose(0, 1), first
