"""Losses of identity-related inverse models over time: is this frame still of the object that was sensed before?

`cpc` knows how long before (Oord et al. 2018); `lag_free_nce` and `switch_nll` do not.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stec.core.losses.contrastive import CPU_BLOCK, GPU_BLOCK


class _Layout(NamedTuple):
    """Who stands against whom: b query sequences against m key sequences, in groups that keep to themselves."""

    group: int | None  # sequences of a group; None: all keys are of one group
    candidates: Tensor | None  # (b, m) bool: the sequences whose frames are candidates for a query of another
    draws: Tensor | None  # (b, t, n) int64 random numbers, each of which picks one of the candidate frames
    first: int  # the key sequence that belongs to query sequence 0
    block: int  # logits held at once


class _Gradients(NamedTuple):
    steps: Tensor  # (k,) mean surprise of each step, nats
    predictions: Tensor | None
    latents: Tensor | None


def _parts(groups: int, rows: int, columns: int, block: int) -> Iterator[tuple[slice, slice]]:
    """Groups and rows whose logits fit into a block: several groups at once, or a group in several parts."""
    many = max(1, block // (rows * columns))
    few = rows if many > 1 else max(1, min(rows, block // columns))
    for g in range(0, groups, many):
        for r in range(0, rows, few):
            yield slice(g, g + many), slice(r, r + few)


def _picked(layout: _Layout, candidates: Tensor, draws: Tensor, own: Tensor, positives: Tensor, frames: int) -> Tensor:
    """(g, r, n): the candidate columns that random numbers pick, uniform over all candidates but the positive.

    `candidates` (g, r, m) of each row's sequence, `own` (r,) the sequence of the positive, `positives` (r,) its column.
    """
    order = (~candidates).to(torch.uint8).argsort(dim=2, stable=True)  # candidate sequences first
    count = candidates.sum(dim=2, keepdim=True)  # (g, r, 1)
    rank = (candidates.cumsum(dim=2) - 1).gather(2, own[None, :, None].expand(len(candidates), -1, 1))
    among = candidates.gather(2, own[None, :, None].expand(len(candidates), -1, 1))  # is the positive's one of them?
    place = rank * frames + (positives - own * frames)[None, :, None]
    number = draws % (count * frames - among.long()).clamp(min=1)
    number = number + (among & (number >= place)).long()  # step over the positive
    return order.gather(2, number // frames) * frames + number % frames


def _cpc(predictions: Tensor, latents: Tensor, layout: _Layout, need: tuple[bool, bool]) -> _Gradients:
    """Surprise and its gradients in one pass over blocks of logits, each dropped once it is used.

    A row of D = softmax - one-hot gives dL/dq = D keys, and to the keys D^T q, over the number of its step's anchors
    and over the number of steps. Products are in the inputs' type, sums and exponentials in float32 or better.
    """
    b, t, kq, d = predictions.shape
    m, _, kk, _ = latents.shape
    steps = max(kq, kk)
    gq, gk = (b, m) if layout.group is None else (layout.group, layout.group)
    groups = b // gq
    wide = torch.promote_types(predictions.dtype, torch.float32)
    d_predictions = torch.zeros_like(predictions, dtype=wide) if need[0] else None
    d_latents = torch.zeros_like(latents, dtype=wide) if need[1] else None
    per_step = torch.zeros(steps, dtype=wide, device=predictions.device)
    candidates = layout.candidates
    if candidates is None and layout.draws is not None:
        candidates = torch.ones(b, m, dtype=torch.bool, device=predictions.device)
    if candidates is not None:  # of each group, its own block of the matrix
        candidates = torch.stack([candidates[g * gq : (g + 1) * gq, g * gk : (g + 1) * gk] for g in range(groups)])
    for k in range(steps):
        slot_q, slot_k = min(k, kq - 1), min(k, kk - 1)
        anchors = t - k - 1
        queries = predictions[:, :anchors, slot_q].reshape(groups, gq * anchors, d)
        keys = latents[:, :, slot_k].reshape(groups, gk * t, d)
        sequence = torch.arange(gq, device=queries.device).repeat_interleave(anchors)
        positives = (layout.first + sequence) * t + torch.arange(anchors, device=queries.device).repeat(gq) + k + 1
        draws = None
        if layout.draws is not None:
            draws = layout.draws[:, :anchors].reshape(groups, gq * anchors, -1)
        d_queries = torch.empty_like(queries, dtype=wide) if need[0] else None
        d_keys = torch.zeros_like(keys, dtype=wide) if need[1] else None
        weight = 1.0 / (b * anchors * steps)
        for g, r in _parts(groups, gq * anchors, gk * t, layout.block):
            logits = torch.bmm(queries[g, r], keys[g].mT).to(wide)
            column = positives[r][None, :, None].expand(len(logits), -1, 1)
            positive = logits.gather(2, column)
            among = None if candidates is None else candidates[g][:, sequence[r]]  # (g, r, m)
            if draws is not None and among is not None:
                picked = _picked(layout, among, draws[g, r], layout.first + sequence[r], positives[r], t)
                chosen = torch.cat((positive, logits.gather(2, picked)), dim=2)
                log_z = chosen.logsumexp(dim=2, keepdim=True)
                shares = (chosen - log_z).exp_()
                slope = (
                    logits.zero_().scatter_add_(2, picked, shares[:, :, 1:]).scatter_add_(2, column, shares[:, :, :1])
                )
            else:
                if among is not None:
                    logits.masked_fill_(~among.repeat_interleave(t, dim=2), -torch.inf).scatter_(2, column, positive)
                # log Z by the largest logit and its share: one exponential for the loss and the gradient together.
                slope = logits.softmax(dim=2)
                log_z = logits.amax(dim=2, keepdim=True) - slope.amax(dim=2, keepdim=True).log()
            per_step[k] += (log_z - positive).sum()
            slope = slope.scatter_add_(2, column, torch.full_like(positive, -1.0)).to(queries.dtype)
            if d_queries is not None:
                d_queries[g, r] = torch.bmm(slope, keys[g]).to(wide)
            if d_keys is not None:
                d_keys[g] += torch.bmm(slope.mT, queries[g, r])
        per_step[k] /= b * anchors
        if d_predictions is not None and d_queries is not None:
            d_predictions[:, :anchors, slot_q] += weight * d_queries.view(b, anchors, d)
        if d_latents is not None and d_keys is not None:
            d_latents[:, :, slot_k] += weight * d_keys.view(m, t, d)
    return _Gradients(per_step, d_predictions, d_latents)


class _CPC(torch.autograd.Function):
    """The gradients are taken in the forward pass, while a block of logits is at hand."""

    @staticmethod
    def forward(ctx: Any, predictions: Tensor, latents: Tensor, layout: _Layout) -> Tensor:
        found = _cpc(predictions, latents, layout, ctx.needs_input_grad[:2])
        ctx.save_for_backward(found.predictions, found.latents)
        ctx.types = predictions.dtype, latents.dtype
        return found.steps.mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if torch.is_grad_enabled():  # create_graph=True: the saved gradients know nothing of what they depend on
            raise RuntimeError("cpc has no second derivative; write the softmax out where you need one")
        d_predictions, d_latents = (
            None if saved is None else saved.mul(grad).to(dtype) for saved, dtype in zip(ctx.saved_tensors, ctx.types)
        )
        return d_predictions, d_latents, None


def _layout(
    predictions: Tensor,
    latents: Tensor,
    group: int | None,
    candidates: Tensor | None,
    draws: Tensor | None,
    first: int,
    block: int | None,
) -> _Layout:
    b, t, kq, _ = predictions.shape
    m, frames, kk, _ = latents.shape
    if frames != t or (kq != kk and 1 not in (kq, kk)):
        raise ValueError(f"predictions {tuple(predictions.shape)} and latents {tuple(latents.shape)} do not match")
    if max(kq, kk) >= t:
        raise ValueError(f"{max(kq, kk)} steps ahead need more than {t} frames; take longer windows or fewer steps")
    if group is not None and (b != m or b % group or first):
        raise ValueError(f"{b} sequences, and {m} to compare with, do not come in groups of {group}")
    if block is None:
        block = GPU_BLOCK if latents.is_cuda else CPU_BLOCK
    return _Layout(group, candidates, draws, first, block)


def cpc(
    context_predictions: Float[Tensor, "b t kq f"],
    latents: Float[Tensor, "m t *kf"],
    *,
    group: int | None = None,
    candidates: Bool[Tensor, "b m"] | None = None,
    draws: Int[Tensor, "b t n"] | None = None,
    first: int = 0,
    block: int | None = None,
) -> Float[Tensor, ""]:
    """Mean over steps k = 1..K and anchors of -log softmax(<prediction_k(t), latents>)[t + k], nats (Oord et al. 2018).

    `context_predictions[:, t, k - 1]` predicts the latents of frame t + k; latents are (m, t, f), or (m, t, k, f)
    where each step has its own, and then the predictions may be one for all steps (b, t, 1, f). An anchor's candidates
    are all frames of its group of `group` consecutive sequences (1: its own sequence alone; None: all m), of which
    `candidates` may leave out sequences; its positive always counts. `draws`, n random numbers >= 0 for each anchor,
    picks n of the other candidates in place of all. With latents of several processes, `first` is the sequence that
    belongs to prediction 0. `block` is the number of logits held at once; no negative vectors are ever gathered.

    Blank predictions give log(number of candidates). A second derivative raises RuntimeError.

    >>> cpc(torch.zeros(8, 16, 3, 4), torch.randn(8, 16, 4), group=8)   # log 128
    tensor(4.8520)
    """
    if latents.ndim == 3:
        latents = latents.unsqueeze(2)
    layout = _layout(context_predictions, latents, group, candidates, draws, first, block)
    # The products are in the type they are given in; autocast has done its work before.
    with torch.autocast(device_type=latents.device.type, enabled=False):
        loss: Tensor = _CPC.apply(context_predictions, latents, layout)
    return loss


@torch.no_grad()
def cpc_steps(
    context_predictions: Float[Tensor, "b t kq f"],
    latents: Float[Tensor, "m t *kf"],
    *,
    group: int | None = None,
    candidates: Bool[Tensor, "b m"] | None = None,
    draws: Int[Tensor, "b t n"] | None = None,
    first: int = 0,
    block: int | None = None,
) -> Float[Tensor, " k"]:
    """`cpc` of each step k by itself, without gradient.

    >>> cpc_steps(torch.zeros(8, 16, 3, 4), torch.randn(8, 16, 4), group=1)   # log 16
    tensor([2.7726, 2.7726, 2.7726])
    """
    if latents.ndim == 3:
        latents = latents.unsqueeze(2)
    layout = _layout(context_predictions, latents, group, candidates, draws, first, block)
    with torch.autocast(device_type=latents.device.type, enabled=False):
        return _cpc(context_predictions, latents, layout, (False, False)).steps


def group_candidates(
    b: int, group: int | None, candidates: Bool[Tensor, "b b"] | None, *, device: torch.device
) -> Bool[Tensor, "b b"]:
    """Which other sequences of its group, of those in `candidates`, each of b sequences is compared with."""
    size = b if group is None else group
    if b % size:
        raise ValueError(f"{b} sequences do not come in groups of {size}")
    number = torch.arange(b, device=device)
    other = (number[:, None] != number[None, :]) & (number[:, None] // size == number[None, :] // size)
    return other if candidates is None else other & candidates


def lag_free_nce(
    queries: Float[Tensor, "b t f"],
    keys: Float[Tensor, "b u f"],
    *,
    group: int | None = None,
    candidates: Bool[Tensor, "b b"] | None = None,
) -> Float[Tensor, ""]:
    """A frame against every frame of its own sequence, among the frames of other sequences; nats.

    The surprise of the positive u' is -log(e^s(t,u') / (e^s(t,u') + sum over candidates e^s)), with s the dot product,
    and its mean is over all anchors t and all positives u' of the sequence: the expectation over a lag drawn at random,
    taken exactly. So no order of the frames matters. Candidates are the frames of the other sequences of the group of
    `group` consecutive ones (None: of the batch), of which `candidates` may leave out some; anchors with none do not
    count, and a batch without any gives 0.

    Blank queries give log(1 + number of candidate frames).

    >>> lag_free_nce(torch.zeros(4, 8, 2), torch.randn(4, 8, 2))   # log(1 + 3 * 8)
    tensor(3.2189)
    """
    b = len(queries)
    size = b if group is None else group
    among = group_candidates(b, group, candidates, device=queries.device)
    total = queries.new_zeros((), dtype=torch.promote_types(queries.dtype, torch.float32))
    queries, keys = queries.to(total.dtype), keys.to(total.dtype)
    for start in range(0, b, size):
        part = slice(start, start + size)
        with torch.autocast(device_type=queries.device.type, enabled=False):
            scores = torch.einsum("btf,cuf->btcu", queries[part], keys[part])  # (g, t, g, u)
        mask = among[part, part]
        usable = mask.any(dim=1)
        # A row without candidates keeps finite numbers, and is left out of the sum.
        masked = scores.masked_fill(~(mask | ~usable[:, None])[:, None, :, None], -torch.inf)
        negatives = masked.flatten(2).logsumexp(dim=2)  # (g, t)
        own = scores.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (g, t, u)
        surprise = F.softplus(negatives[:, :, None] - own).mean(dim=(1, 2))
        total = total + torch.where(usable, surprise, 0.0).sum()
    return total / among.any(dim=1).sum().clamp(min=1)


def switch_nll(
    objects: Float[Tensor, "m f"],
    frames: Float[Tensor, "b u f"],
    *,
    same: Bool[Tensor, "m b"],
    different: Bool[Tensor, "m b"],
) -> Float[Tensor, " 2"]:
    """-log q(a_id) of "the object stayed" and of "it was switched", a logistic regression on <object, frame>; nats.

    The mean over frames of the `same` object, and that over those of a `different` one: the loss is the mean of both.
    Pairs that are neither do not count; where an answer never occurs, its mean is 0.

    Blank objects give log 2 twice.

    >>> here = torch.eye(3, dtype=torch.bool)
    >>> switch_nll(torch.zeros(3, 2), torch.randn(3, 5, 2), same=here, different=~here)
    tensor([0.6931, 0.6931])
    """
    wide = torch.promote_types(objects.dtype, torch.float32)
    with torch.autocast(device_type=objects.device.type, enabled=False):
        scores = torch.einsum("mf,buf->mbu", objects.to(wide), frames.to(wide))
    stay = F.softplus(-scores).mean(dim=2)  # -log sigmoid
    leave = F.softplus(scores).mean(dim=2)
    return torch.stack(
        [
            torch.where(mask, surprise, 0.0).sum() / mask.sum().clamp(min=1)
            for mask, surprise in ((same, stay), (different, leave))
        ]
    )
