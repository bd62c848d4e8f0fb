"""Losses as pure functions: torch and arithmetic only, in nats, computed in float32 or better.

`info_nce` is the softmax over candidates that all contrastive models share: queries, keys, which key is the positive,
which key does not count. It never holds the whole matrix of logits, nor a mask or one-hot of its size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Logits held at once, in elements. 16 MiB of float32 stay in the cache of a processor; a GPU wants larger products.
CPU_BLOCK = 1 << 22
GPU_BLOCK = 1 << 26
NO_BIN = torch.iinfo(torch.int64).min


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
            positive = logits.gather(1, positives[part, None])
            log_z = logits.logsumexp(dim=1, keepdim=True)
            nll += (log_z - positive).sum()
            if not (need_queries or need_keys):
                continue
            d = logits.sub_(log_z).exp_()
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


def mean_over_valid(values: Float[Tensor, "b *rest"], valid: Bool[Tensor, " b"] | None) -> Float[Tensor, ""]:
    """Mean over the rows marked valid; exactly 0, with gradient 0, where there is none."""
    if valid is None:
        return values.mean()
    rows = values.flatten(1).mean(dim=1) if values.ndim > 1 else values
    return torch.where(valid, rows, 0.0).sum() / valid.sum().clamp(min=1)


def binned_nll(
    logits: Float[Tensor, "b d k"], bins: Int[Tensor, "b d"], valid: Bool[Tensor, " b"] | None = None
) -> Float[Tensor, ""]:
    """Eq. 3: -log softmax(logits)[bin], mean over valid pairs and over the d components, in nats.

    Equal logits give log k; no valid pair gives exactly 0. The paper sums over components: d times this.

    >>> binned_nll(torch.zeros(2, 4, 6), torch.zeros(2, 4, dtype=torch.long))   # log 6
    tensor(1.7918)
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    logits = logits.to(wide)
    if valid is not None:  # whatever an invalid row holds, it reaches neither the loss nor the gradient
        logits, bins = logits.where(valid[:, None, None], 0.0), bins.where(valid[:, None], 0)
    # No bin is to be ignored: one out of range is an error.
    nll = F.cross_entropy(logits.flatten(0, 1), bins.flatten(), reduction="none", ignore_index=NO_BIN)
    return mean_over_valid(nll.view_as(bins), valid)


def gaussian_nll(
    mean: Float[Tensor, "b d"],
    action: Float[Tensor, "b d"],
    std: Float[Tensor, " d"],
    valid: Bool[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    """((action - mean) / std)^2 / 2, mean over valid pairs and components: nats, up to the normal's constant.

    >>> gaussian_nll(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(2))
    tensor(0.5000)
    """
    difference = action - mean.to(torch.promote_types(mean.dtype, torch.float32))
    if valid is not None:
        difference = difference.where(valid[:, None], 0.0)
    return mean_over_valid((difference / std).square() / 2, valid)
