"""Identity-related inverse models over time: contrastive predictive coding, and three that do not know the time.

An encoder of sequences gives a tuple (context (b, t, d), latents (b, t, f)) for each view. CPC (Oord et al. 2018) is
the *time-sensitive* identity-related inverse model of the paper: "is this the frame k steps on, or another?". The
*time-insensitive* one asks of two stretches "are they of the same object?", whatever lies between them. The paper
names it and gives no formula; the three forms here are readings of its Eq. 4, said in docs/concept.md.
"""

import math
from typing import Literal, NamedTuple, Protocol, TypedDict, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stec.core import distributed
from stec.core.actions import ViewPair
from stec.core.losses import cpc, cpc_steps, lag_free_nce, switch_nll, two_way_nce
from stec.core.losses.sequence import group_candidates
from stec.core.objective import Features, InverseModel

Part = Literal["context", "latents"]
Negatives = Literal["sequence", "same group", "batch group", "all"]
Others = Literal["all", "other groups", "same group"]


class Scores(NamedTuple):
    """Two sides whose dot product is phi_k(c_t, z_t+k): all steps at once, or one side for every step (k = 1)."""

    queries: Float[Tensor, "b t kq e"]
    keys: Float[Tensor, "b t kk e"]


@runtime_checkable
class Predictor(Protocol):
    """Turns context and latents into the two sides of a dot product for each of `steps` steps ahead."""

    steps: int

    def __call__(self, context: Tensor, latents: Tensor) -> Scores: ...


class _Among(TypedDict):
    """The arguments of `cpc` that say which frames are candidates."""

    group: int | None
    candidates: Tensor | None
    draws: Tensor | None
    first: int


class LinearPredictor(nn.Module):
    """phi_k(c, z) = scale z^T W_k c, with a matrix for each step (Oord et al. 2018).

    z^T W_k c is a dot product in the space of the latents, (W_k c) z, and in that of the context, c (W_k^T z). The
    logits are made in the narrower of the two: with 256 and 512 features this halves the loss's multiplications.
    Either way one matrix product serves all steps.
    """

    def __init__(self, context_dim: int, latent_dim: int, *, steps: int, scale: float = 1.0) -> None:
        super().__init__()
        self.steps, self.scale = steps, scale
        self.weight = nn.Parameter(torch.empty(steps, latent_dim, context_dim))
        bound = 1 / math.sqrt(context_dim)  # as nn.Linear draws
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, context: Float[Tensor, "b t d"], latents: Float[Tensor, "b t f"]) -> Scores:
        k, f, d = self.weight.shape
        if d <= f:
            keys = latents @ (self.scale * self.weight).permute(1, 0, 2).reshape(f, k * d)
            return Scores(context.to(keys.dtype).unsqueeze(2), keys.unflatten(2, (k, d)))
        queries = context @ (self.scale * self.weight).reshape(k * f, d).T
        return Scores(queries.unflatten(2, (k, f)), latents.to(queries.dtype).unsqueeze(2))


class MLPPredictor(nn.Module):
    """phi_k(c, z) = scale <V_k ReLU(U c), z>: one hidden layer that all steps share, and a matrix for each."""

    def __init__(self, context_dim: int, latent_dim: int, *, steps: int, hidden: int, scale: float = 1.0) -> None:
        super().__init__()
        self.steps, self.scale = steps, scale
        self.hidden = nn.Linear(context_dim, hidden)
        self.output = nn.Linear(hidden, steps * latent_dim)

    def forward(self, context: Float[Tensor, "b t d"], latents: Float[Tensor, "b t f"]) -> Scores:
        queries = self.scale * self.output(torch.relu(self.hidden(context)))
        return Scores(queries.unflatten(2, (self.steps, -1)), latents.to(queries.dtype).unsqueeze(2))


class TransformerPredictor(nn.Module):
    """phi_k(c, z) = scale <V_k T_k(c), z>: a causal one-layer transformer for each step (Riviere et al. 2020).

    The layers are torch's, without positions: their own code's differ in details that its paper does not give.
    """

    def __init__(self, context_dim: int, latent_dim: int, *, steps: int, heads: int = 8, scale: float = 1.0) -> None:
        super().__init__()
        self.steps, self.scale = steps, scale
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(context_dim, heads, 4 * context_dim, dropout=0.0, batch_first=True)
            for _ in range(steps)
        )
        self.outputs = nn.ModuleList(nn.Linear(context_dim, latent_dim) for _ in range(steps))

    def forward(self, context: Float[Tensor, "b t d"], latents: Float[Tensor, "b t f"]) -> Scores:
        future = nn.Transformer.generate_square_subsequent_mask(context.shape[1], device=context.device)
        steps = [
            output(layer(context, src_mask=future, is_causal=True)) for layer, output in zip(self.layers, self.outputs)
        ]
        queries = self.scale * torch.stack(steps, dim=2)
        return Scores(queries, latents.to(queries.dtype).unsqueeze(2))


class CPC(InverseModel):
    """Contrastive predictive coding (Oord et al. 2018): the time-sensitive identity-related inverse model.

    `negatives` names where candidates come from: "sequence" (the anchor's own), "same group" (sequences of its batch
    group with the same `pair.group`, such as a speaker), "batch group" (all of its group of `batch_group` consecutive
    sequences), "all" (the batch, of all processes). Without `own_sequence` the anchor's own frames, but for the
    positive, are left out. `samples` candidates drawn at random replace all of them; the draw is a function of the
    number of calls, which the checkpoint keeps. Both views of a pair are predicted, where there are two.
    """

    calls: Tensor

    def __init__(
        self,
        predictor: Predictor,
        *,
        negatives: Negatives,
        batch_group: int = 8,
        own_sequence: bool = True,
        samples: int | None = None,
    ) -> None:
        super().__init__()
        if negatives == "sequence" and not own_sequence:
            raise ValueError('negatives from the "sequence" without `own_sequence` are none; choose one of the two')
        if samples is not None and samples < 1:
            raise ValueError(f"samples is {samples}; need at least 1, or None for all candidates")
        self.predictor = predictor
        self.negatives = negatives
        self.batch_group = batch_group
        self.own_sequence = own_sequence
        self.samples = samples
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, online: Features, target: Features | None, pair: ViewPair) -> Float[Tensor, ""]:
        return torch.stack([cpc(*self._scores(*view), **self._among(view, pair)) for view in online.pair]).mean()

    @torch.no_grad()
    def steps(self, online: Features, pair: ViewPair) -> Float[Tensor, " k"]:
        """The surprise of each step ahead, nats."""
        each = [cpc_steps(*self._scores(*view), **self._among(view, pair)) for view in online.pair]
        return torch.stack(each).mean(dim=0)

    @torch.no_grad()
    def chance(self, online: Features, pair: ViewPair) -> float:
        """What a blank context reaches on this batch: log(number of candidates), nats."""
        x, *x_prime = ((torch.zeros_like(context), latents) for context, latents in online.pair)
        blank = Features(x, x_prime[0] if x_prime else None)
        return float(self.steps(blank, pair).mean())

    def _scores(self, context: Tensor, latents: Tensor) -> Scores:
        """Both sides; the keys of all processes where all are candidates."""
        scores = self.predictor(context, latents)
        return scores._replace(keys=distributed.gather(scores.keys)) if self.negatives == "all" else scores

    def _among(self, view: tuple[Tensor, Tensor], pair: ViewPair) -> _Among:
        """The keyword arguments of `cpc` that say which frames are candidates."""
        (b, t, _), device = view[0].shape, view[0].device
        group: int | None = min(self.batch_group, b * distributed.world_size())  # as one process would have it
        if self.negatives == "sequence":
            group = 1
        elif self.negatives == "all":
            group = None
        candidates = None
        mine = torch.arange(b, device=device)
        first = distributed.rank() * b if group is None else 0
        everyone = torch.arange(b * distributed.world_size(), device=device) if group is None else mine
        if self.negatives == "same group":
            if pair.group is None:
                raise ValueError('negatives of the "same group" need pair.group, such as the speakers of the sequences')
            candidates = pair.group[:, None] == pair.group[None, :]
        if not self.own_sequence:
            other = (mine[:, None] + first) != everyone[None, :]
            candidates = other if candidates is None else candidates & other
        draws = None
        if self.samples is not None:
            draws = self._draw((b, t, self.samples), device)
        return {"group": group, "candidates": candidates, "draws": draws, "first": first}

    def _draw(self, shape: tuple[int, ...], device: torch.device) -> Int[Tensor, "b t n"]:
        """Random numbers >= 0 as a function of (call, process, place), made where they are used: no device waits.

        SplitMix64 (Steele et al. 2014) in wrapping 64-bit arithmetic; the first 31 bits of its output.
        """
        if self.training:
            self.calls += 1
        place = torch.arange(math.prod(shape), device=device)
        state = place + (self.calls * distributed.world_size() + distributed.rank()) * (1 << 40)
        state = state * -7046029254386353131  # 0x9E3779B97F4A7C15
        for shift, multiplier in ((30, -4658895280553007687), (27, -7723592293110705685)):
            state = (state ^ ((state >> shift) & ((1 << (64 - shift)) - 1))) * multiplier
        return ((state >> 33) & 0x7FFFFFFF).view(shape)


def stretches(online: Features, part: Part) -> tuple[Tensor, Tensor]:
    """(b, t, f) twice: one part of the features of two views, or of the two halves of one."""
    index = 0 if part == "context" else 1
    if online.x_prime is not None:
        return online.x[index], online.x_prime[index]
    features = online.x[index]
    half = features.shape[1] // 2
    if half < 1:
        raise ValueError(f"{features.shape[1]} frames have no two halves; take longer windows, or two of them")
    return features[:, :half], features[:, -half:]


def _ids(ids: Tensor | None, b: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(b,) here and (wb,) of all processes; without ids every row is its own."""
    if ids is None:
        ids = torch.arange(b, device=device) + distributed.rank() * b
    return ids, distributed.gather(ids)


def negatives(pair: ViewPair, b: int, device: torch.device, others: Others) -> Bool[Tensor, "b wb"]:
    """Which rows of all processes show another object than each row here, and of which groups `others` asks for."""
    mine, everyone = _ids(pair.object, b, device)
    different = mine[:, None] != everyone[None, :]
    if others == "all":
        return different
    if pair.group is None:
        raise ValueError(f'negatives of "{others}" need pair.group, such as the speakers of the sequences')
    shared = pair.group[:, None] == distributed.gather(pair.group)[None, :]
    return different & (shared if others == "same group" else ~shared)


class PooledIdentity(InverseModel):
    """Time-insensitive, form A: Eq. 4 on two pooled stretches of the same object, against those of other objects.

    u and v are the projected means (or last frames) of the context or latents of both views, or of the two halves of
    one where there is one view; the loss is `two_way_nce`. `others` restricts negatives to the same `pair.group` (a
    speaker) or to other ones.
    """

    def __init__(
        self,
        projector: nn.Module,
        *,
        temperature: float,
        part: Part = "context",
        pooling: Literal["mean", "last"] = "mean",
        others: Others = "all",
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; need a positive value")
        self.projector = projector
        self.temperature = temperature
        self.part: Part = part
        self.pooling = pooling
        self.others: Others = others

    def forward(self, online: Features, target: Features | None, pair: ViewPair) -> Float[Tensor, ""]:
        pooled = [
            features.mean(dim=1) if self.pooling == "mean" else features[:, -1]
            for features in stretches(online, self.part)
        ]
        # One pass over both, so that a BatchNorm in the projector sees 2b rows.
        u, v = self.projector(torch.cat(pooled)).chunk(2)
        candidates = negatives(pair, len(u), u.device, self.others)
        everyone = (distributed.gather(u), distributed.gather(v))
        first = distributed.rank() * len(u)
        loss = two_way_nce(u, v, self.temperature, everyone=everyone, first=first, candidates=candidates)
        return distributed.part_of_mean(loss, candidates.any(dim=1).sum())


class FrameIdentity(InverseModel):
    """Time-insensitive, form B: CPC without the lag, one bilinear form for frames of an object however far apart.

    Context frames of one stretch against latent frames of the other, through heads of their own: CPC pulls frames of a
    sequence apart that this model pulls together. Candidates are frames of other objects of the `batch_group`.
    """

    def __init__(
        self, context_head: nn.Module, latent_head: nn.Module, *, batch_group: int = 8, others: Others = "all"
    ) -> None:
        super().__init__()
        self.context_head = context_head
        self.latent_head = latent_head
        self.batch_group = batch_group
        self.others: Others = others

    def forward(self, online: Features, target: Features | None, pair: ViewPair) -> Float[Tensor, ""]:
        queries = self.context_head(stretches(online, "context")[0])
        keys = self.latent_head(stretches(online, "latents")[1])
        b = len(queries)
        first = distributed.rank() * b
        candidates = negatives(pair, b, queries.device, self.others)[:, first : first + b]
        group = min(self.batch_group, b * distributed.world_size())
        loss = lag_free_nce(queries, keys.to(queries.dtype), group=group, candidates=candidates)
        counted = group_candidates(b, group, candidates, device=queries.device).any(dim=1).sum()
        return distributed.part_of_mean(loss, counted)


class SwitchIdentity(InverseModel):
    """Time-insensitive, form C: the literal a_id in {0, 1}. Is this frame of the object whose stretch was sensed?

    A logistic regression on <g1(mean context of one stretch), g2(latent frame of the other)> over sqrt(features).
    """

    def __init__(self, context_head: nn.Module, latent_head: nn.Module, *, others: Others = "all") -> None:
        super().__init__()
        self.context_head = context_head
        self.latent_head = latent_head
        self.others: Others = others

    def forward(self, online: Features, target: Features | None, pair: ViewPair) -> Float[Tensor, ""]:
        objects = self.context_head(stretches(online, "context")[0].mean(dim=1))
        frames = self.latent_head(stretches(online, "latents")[1]).to(objects.dtype)
        b = len(objects)
        different = negatives(pair, b, objects.device, self.others).T  # (wb, b): symmetric questions
        everyone = torch.arange(b * distributed.world_size(), device=objects.device)
        same = everyone[:, None] == everyone[None, distributed.rank() * b :][:, :b]
        stay, leave = switch_nll(
            distributed.gather(objects) / math.sqrt(objects.shape[1]), frames, same=same, different=different
        )
        # As often as it occurs, an answer weighs the same in every process.
        halves = distributed.part_of_mean(stay, same.sum()), distributed.part_of_mean(leave, different.sum())
        return (halves[0] + halves[1]) / 2
