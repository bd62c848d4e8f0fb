"""MoCo's loss: a query's key among keys of the past."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stec.core.losses.contrastive import CPU_BLOCK, GPU_BLOCK


class _QueueNCE(torch.autograd.Function):
    """The gradient is taken in the forward pass, as in info_nce: the queue may be overwritten before the backward."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, queue: Tensor, block: int) -> Tensor:
        d_queries = torch.empty_like(queries) if ctx.needs_input_grad[0] else None
        nll = queries.new_zeros(())
        for start in range(0, len(queries), block):
            part = slice(start, start + block)
            own = (queries[part] * keys[part]).sum(dim=1, keepdim=True)
            logits = queries[part] @ queue.T
            log_z = torch.logaddexp(own, logits.logsumexp(dim=1, keepdim=True))
            nll += (log_z - own).sum()
            if d_queries is not None:
                torch.mm(logits.sub_(log_z).exp_(), queue, out=d_queries[part])
                d_queries[part].addcmul_(torch.expm1(own - log_z), keys[part])
        ctx.save_for_backward(d_queries)
        ctx.rows = len(queries)
        return nll / ctx.rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        if torch.is_grad_enabled():  # create_graph=True: the saved gradient knows nothing of what it depends on
            raise RuntimeError("queue_nce has no second derivative; write the softmax out where you need one")
        (d_queries,) = ctx.saved_tensors
        return d_queries * (grad / ctx.rows), None, None, None


def queue_nce(
    queries: Float[Tensor, "n f"],
    keys: Float[Tensor, "n f"],
    queue: Float[Tensor, "k f"],
    *,
    temperature: float,
    block: int | None = None,
) -> Float[Tensor, ""]:
    """Each query's own key against the k keys of a queue: the mean of -log softmax, in nats (He et al. 2020).

    Queries and keys are normalised to unit length here; the queue holds unit rows. Other keys of the batch are no
    candidates. Gradient flows to the queries alone. The queue is not copied where its type is float32 or that of the
    queries, and may be overwritten before the backward pass. `block` is the number of rows of logits held at once;
    memory is O(n f + block k). A second derivative raises RuntimeError.

    Collapsed rows give log(k + 1).

    >>> queue_nce(torch.ones(2, 1), torch.ones(2, 1), torch.ones(7, 1), temperature=0.5)   # log 8
    tensor(2.0794)
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; need a positive value")
    if block is None:
        block = max(1, (GPU_BLOCK if queue.is_cuda else CPU_BLOCK) // len(queue))
    # Under autocast a product in bf16 would lose the small differences between similarities.
    with torch.autocast(device_type=queries.device.type, enabled=False):
        wide = torch.promote_types(queries.dtype, torch.float32)
        unit = F.normalize(queries.to(wide), dim=1) / temperature
        fixed = F.normalize(keys.detach().to(wide), dim=1)
        loss: Tensor = _QueueNCE.apply(unit, fixed, queue.detach().to(wide), block)
    return loss
