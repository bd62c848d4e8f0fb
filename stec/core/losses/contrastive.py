"""Contrastive losses over pairs of views.

`info_nce` is the softmax over candidates that all contrastive models share: queries, keys, which key is the positive,
which key does not count. It never holds the whole matrix of logits, nor a mask or one-hot of its size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stec.core.losses.action import mean_over_valid

# Logits held at once, in elements. 16 MiB of float32 stay in the cache of a processor; a GPU wants larger products.
CPU_BLOCK = 1 << 22
GPU_BLOCK = 1 << 26


class _InfoNCE(torch.autograd.Function):
    """Row blocks of logits are made, used for the loss and its gradient, and dropped.

    With P the softmax and Y the one-hot of the positives, D = (P - Y) / n: dL/dqueries = D keys and
    dL/dkeys = D^T queries (both over tau, which the caller folds into the queries). A row's gradient needs that row
    alone, so it is taken in the forward pass, while the block is in the cache.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, positives: Tensor, excluded: Tensor | None, block: int
    ) -> Tensor:
        n = len(queries)
        need_queries, need_keys = ctx.needs_input_grad[:2]
        d_queries = torch.empty_like(queries) if need_queries else None
        d_keys = torch.zeros_like(keys) if need_keys else None
        nll = queries.new_zeros(())
        for start in range(0, n, block):
            part = slice(start, start + block)
            logits = queries[part] @ keys.T
            if excluded is not None:
                logits.scatter_(1, excluded[part, None], -torch.inf)
            log_p = logits.log_softmax(dim=1)  # one pass over the block where logsumexp and a difference take six
            del logits
            positive = log_p.gather(1, positives[part, None])
            nll -= positive.sum()
            if not (need_queries or need_keys):
                continue
            d = log_p.exp_()
            d.scatter_add_(1, positives[part, None], torch.full_like(positive, -1.0))
            if d_queries is not None:
                torch.mm(d, keys, out=d_queries[part])
            if d_keys is not None:
                d_keys.addmm_(d.T, queries[part])
        ctx.save_for_backward(d_queries, d_keys)
        ctx.rows = n
        return nll / n

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        if torch.is_grad_enabled():  # create_graph=True: the saved gradients know nothing of what they depend on
            raise RuntimeError("info_nce has no second derivative; write the softmax out where you need one")
        d_queries, d_keys = ctx.saved_tensors
        scale = grad / ctx.rows
        return (
            None if d_queries is None else d_queries * scale,
            None if d_keys is None else d_keys * scale,
            None,
            None,
            None,
        )


def info_nce(
    queries: Float[Tensor, "n f"],
    keys: Float[Tensor, "m f"],
    *,
    positives: Int[Tensor, " n"],
    temperature: float,
    excluded: Int[Tensor, " n"] | None = None,
    block: int | None = None,
) -> Float[Tensor, ""]:
    """Mean over queries of -log softmax(queries keys^T / temperature)[positive], in nats (Oord et al. 2018).

    `positives` and `excluded` are columns: the key that belongs to each query, and one that is no candidate for it
    (itself). `block` is the number of rows of logits held at once; by default what suits the device. Memory is
    O((n + m) f + block m), forward and backward together. A second derivative raises RuntimeError.

    >>> one = torch.eye(3)
    >>> info_nce(one, one, positives=torch.arange(3), temperature=1.0)   # log(1 + 2/e)
    tensor(0.5514)
    """
    if block is None:
        budget = GPU_BLOCK if keys.is_cuda else CPU_BLOCK
        block = max(1, budget // len(keys))
    # Under autocast a product in bf16 would lose the small differences between similarities.
    with torch.autocast(device_type=queries.device.type, enabled=False):
        wide = torch.promote_types(queries.dtype, torch.float32)
        loss: Tensor = _InfoNCE.apply(queries.to(wide) / temperature, keys.to(wide), positives, excluded, block)
    return loss


def nt_xent(
    z: Float[Tensor, "b f"],
    z_prime: Float[Tensor, "b f"],
    temperature: float,
    *,
    everyone: tuple[Float[Tensor, "wb f"], Float[Tensor, "wb f"]] | None = None,
    first: int = 0,
    block: int | None = None,
) -> Float[Tensor, ""]:
    """NT-Xent (Chen et al. 2020): each of 2b views against its partner among all other views; Eq. 4 and 5, in nats.

    Rows are normalised to unit length here. The mean is over the 2b views; a view itself is no candidate. `everyone`
    are the views of all processes (with gradient), among which this process's pairs begin at `first`. `block` as in
    `info_nce`.

    Collapsed z gives log(2b - 1); perfectly aligned pairs with orthogonal negatives log(1 + (2b - 2) e^(-1/tau)).

    >>> nt_xent(torch.ones(4, 2), torch.ones(4, 2), 0.5)   # log 7
    tensor(1.9459)
    """
    if z.shape != z_prime.shape or not len(z):
        raise ValueError(f"z {tuple(z.shape)} and z_prime {tuple(z_prime.shape)} must hold partners row by row")
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; need a positive value")
    b = len(z)
    wide = torch.promote_types(z.dtype, torch.float32)
    queries = F.normalize(torch.cat((z, z_prime)).to(wide), dim=1)
    keys = queries if everyone is None else F.normalize(torch.cat(everyone).to(wide), dim=1)
    half = len(keys) // 2
    mine = torch.arange(first, first + b, device=z.device)
    return info_nce(
        queries,
        keys,
        positives=torch.cat((mine + half, mine)),
        excluded=torch.cat((mine, mine + half)),
        temperature=temperature,
        block=block,
    )


def two_way_nce(
    u: Float[Tensor, "b f"],
    v: Float[Tensor, "b f"],
    temperature: float,
    *,
    everyone: tuple[Float[Tensor, "m f"], Float[Tensor, "m f"]] | None = None,
    first: int = 0,
    candidates: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, ""]:
    """Each u against its partner among the v, and each v among the u: the mean of both, in nats.

    Similarity is the cosine over `temperature`. Unlike `nt_xent`, no u is a candidate for a u (as in COLA, Saeed et al.
    2021). `candidates` tells which rows of the other side count beside the partner, which always does; a row without
    any does not count, and a batch without any gives 0. `everyone` and `first` as in `nt_xent`. The b x m matrix is
    held.

    Collapsed features give log b.

    >>> two_way_nce(torch.ones(4, 2), torch.ones(4, 2), 0.5)   # log 4
    tensor(1.3863)
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; need a positive value")
    partner = torch.arange(first, first + len(u), device=u.device)
    counted = torch.ones(len(u), dtype=torch.bool, device=u.device)
    if candidates is not None:
        counted = candidates.scatter(1, partner[:, None], False).any(dim=1)
    losses = []
    for queries, keys in zip((u, v), (v, u) if everyone is None else everyone[::-1]):
        with torch.autocast(device_type=u.device.type, enabled=False):
            wide = torch.promote_types(u.dtype, torch.float32)
            logits = F.normalize(queries.to(wide), dim=1) @ F.normalize(keys.to(wide), dim=1).T / temperature
        if candidates is not None:
            logits = logits.masked_fill(~candidates.scatter(1, partner[:, None], True), -torch.inf)
        losses.append(F.cross_entropy(logits, partner, reduction="none"))
    return mean_over_valid((losses[0] + losses[1]) / 2, counted)
