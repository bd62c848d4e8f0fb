"""ReLIC's loss: candidates are to be told apart, and equally so from whichever views they are seen."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stec.core.losses.contrastive import CPU_BLOCK, GPU_BLOCK


class _Relic(torch.autograd.Function):
    """Both terms and both gradients in one pass over row blocks of logits, as in info_nce.

    With P the softmax of a pair, Y the one-hot of its positives and T the mean of the other pairs' softmaxes, the
    gradients by the logits are P - Y of the contrast and, T being held fixed, P - T of the divergence.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, first: int, same_view: bool, block: int
    ) -> tuple[Tensor, Tensor]:
        (v, b, _), (large, m, _) = queries.shape, keys.shape
        pairs = [(i, j) for i in range(v) for j in range(large) if i != j]  # those of two large views come first
        fixed = large * (large - 1)
        # The columns of all pairs stand for the same roles: the other view's objects, then the same view's.
        candidates = [torch.cat((keys[j], keys[i])) if same_view else keys[j] for i, j in pairs]
        need = ctx.needs_input_grad[0]
        d_contrast, d_invariance = (torch.zeros_like(queries) if need else None for _ in range(2))
        contrast, invariance = queries.new_zeros(2).unbind()
        for start in range(0, b, block):
            rows = slice(start, min(start + block, b))
            own = torch.arange(first + rows.start, first + rows.stop, device=keys.device)[None, :, None]
            own = own.expand(len(pairs), -1, 1)
            logits = torch.stack([queries[i, rows] @ c.T for (i, _), c in zip(pairs, candidates)])
            if same_view:
                logits.scatter_(2, own + m, -torch.inf)  # a view is no candidate for itself
            log_p = logits.log_softmax(dim=2)
            p = log_p.exp()
            if same_view:
                log_p.scatter_(2, own + m, 0.0)  # 0 log 0
            negentropy = p[:fixed] * log_p[:fixed]
            totals = p[:fixed].sum(dim=0), negentropy.sum(dim=0)
            contrast = contrast - log_p.gather(2, own).sum()
            for n, (i, _) in enumerate(pairs):
                mean, of_others = (_mean_of_others(x, t, n) for x, t in zip((p[:fixed], negentropy), totals))
                invariance = invariance + (of_others - mean * log_p[n]).sum()
                if d_contrast is None or d_invariance is None:
                    continue
                # The one-hot is subtracted before the product: after it, TF32 would leave the rounding of a whole key.
                d = p[n].scatter_add(1, own[n], p.new_full(own[n].shape, -1.0))
                d_contrast[i, rows].addmm_(d, candidates[n])
                d_invariance[i, rows].addmm_(p[n] - mean, candidates[n])
        ctx.save_for_backward(d_contrast, d_invariance)
        ctx.terms = len(pairs) * b
        return contrast / ctx.terms, invariance / ctx.terms

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_invariance: Tensor) -> tuple[Tensor, None, None, None, None]:
        if torch.is_grad_enabled():  # create_graph=True: the saved gradients know nothing of what they depend on
            raise RuntimeError("relic has no second derivative; write the softmax out where you need one")
        d_contrast, d_invariance = ctx.saved_tensors
        return (grad * d_contrast + grad_invariance * d_invariance) / ctx.terms, None, None, None, None


def _mean_of_others(values: Tensor, total: Tensor, n: int) -> Tensor:
    """The mean over values other than the n-th, which may be none of them."""
    if n >= len(values):
        return total / len(values)
    if len(values) == 2:  # without rounding, so that views that agree have a divergence of 0
        return values[1 - n]
    return (total - values[n]) / (len(values) - 1)


def relic(
    queries: Float[Tensor, "v b f"],
    keys: Float[Tensor, "large m f"],
    *,
    temperature: float,
    first: int = 0,
    same_view: bool = False,
    block: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Contrast and invariance of ReLIC (Mitrovic et al. 2021), in nats, each the mean over objects and pairs of views.

    `queries` are the online network's, of v views of b objects, `keys` the target network's, of the first `large` of
    these views and of m objects, those of all processes: query row r shows the object of key row `first` + r. Rows
    are normalised to unit length here. A pair (i, j), j != i, of query view i and key view j gives each object a
    distribution over candidates, p_ij = softmax(<query_i, keys_j> / temperature). The contrast is -log p_ij of the
    object itself. The invariance is KL(p_kl || p_ij), the mean over all other pairs (k, l) of large views; gradient
    flows to p_ij alone, and none to keys. With two views these are p_12 and p_21, each drawn to the other.

    Candidates are the m objects in view j; with `same_view` also the others in view i, where all views are large.
    Collapsed rows give a contrast of log m, or log(2m - 1), and the invariance 0. `block` is the number of objects
    whose logits are held at once. A second derivative raises RuntimeError; shapes that do not fit raise ValueError.

    >>> relic(torch.ones(2, 4, 3), torch.ones(2, 4, 3), temperature=0.5)   # log 4
    (tensor(1.3863), tensor(0.))
    """
    (v, b, _), (large, m, _) = queries.shape, keys.shape
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; need a positive value")
    if not 2 <= large <= v or not 0 < b <= m - first:
        raise ValueError(
            f"queries {tuple(queries.shape)} and keys {tuple(keys.shape)}, first {first}: the views of the keys must "
            "be the first of the queries' views, at least two, and a key row must be there for each query row"
        )
    if same_view and large < v:
        raise ValueError(f"same_view needs keys of all {v} views, there are {large}; leave small views out")
    if block is None:
        columns = large * (v - 1) * m * (2 if same_view else 1)
        block = max(1, (GPU_BLOCK if keys.is_cuda else CPU_BLOCK) // columns)
    # Under autocast a product in bf16 would lose the small differences between similarities.
    with torch.autocast(device_type=queries.device.type, enabled=False):
        wide = torch.promote_types(queries.dtype, torch.float32)
        unit = F.normalize(queries.to(wide), dim=2)
        fixed = F.normalize(keys.detach().to(wide), dim=2)
        contrast, invariance = _Relic.apply(unit / temperature, fixed, first, same_view, block)
    return contrast, invariance
