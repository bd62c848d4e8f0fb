"""What several processes need so that they compute what one would on the joined batch. No-ops on one process.

DistributedDataParallel averages gradients over processes. So a term whose local value is the mean over local rows,
with candidates gathered from all processes, has the gradient of the mean over all rows, as long as the gradient
flows back through the gather to the process that a candidate came from.
"""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx


def world_size() -> int:
    """Number of processes; 1 where torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process; 0 where torch.distributed is not initialised."""
    return dist.get_rank() if world_size() > 1 else 0


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums every process's gradient for the rows that came from here."""

    @staticmethod
    def forward(ctx: FunctionCtx, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:  # type: ignore[override]
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad.chunk(world_size())[rank()]


def gather(local: Float[Tensor, "b *rest"]) -> Float[Tensor, "wb *rest"]:
    """The rows of all processes in rank order, with gradient. Every process must hold equally many rows."""
    if world_size() == 1:
        return local
    result: Tensor = _Gather.apply(local)
    return result


def share_of_mean(count: Tensor) -> Tensor:
    """The factor that turns a mean over `count` local items into this process's part of the mean over all items.

    The mean over processes of `share_of_mean(n) * local_mean` is the mean over all items, however unequal the n are.
    """
    if world_size() == 1:
        return torch.ones_like(count, dtype=torch.float32)
    total = count.detach().float().clone()
    dist.all_reduce(total)
    return count.float() * world_size() / total.clamp(min=1)
