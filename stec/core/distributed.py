"""What several processes need so that they compute what one would on the joined batch. No-ops on one process.

DistributedDataParallel averages gradients over processes. So a term whose local value is the mean over local rows,
with candidates gathered from all processes, has the gradient of the mean over all rows, as long as the gradient
flows back through the gather to the process that a candidate came from.
"""

import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Shaped
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
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad.chunk(world_size())[rank()]


def gather(local: Shaped[Tensor, "b *rest"]) -> Shaped[Tensor, "wb *rest"]:
    """The rows of all processes in rank order, with gradient. Every process must hold equally many rows."""
    if world_size() == 1:
        return local
    result: Tensor = _Gather.apply(local)
    return result


def mean(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The mean over processes, added in float64: in whatever order, and of equal values exactly that value."""
    if world_size() == 1:
        return values
    wide = values.double()
    dist.all_reduce(wide)
    return (wide / world_size()).to(values.dtype)


def part_of_mean(mean: Float[Tensor, ""], count: Int[Tensor, ""]) -> Float[Tensor, ""]:
    """Rescale the mean over `count` local items, so that its mean over processes is the mean over all items.

    The counts may differ between processes, as those of valid pairs do.
    """
    if world_size() == 1:
        return mean
    return mean * (count.double() * world_size() / total(count).clamp(min=1)).to(mean.dtype)


def total(count: Int[Tensor, ""]) -> Int[Tensor, ""]:
    """The sum of a count over processes."""
    if world_size() == 1:
        return count
    everywhere = count.detach().clone()
    dist.all_reduce(everywhere)
    return everywhere
