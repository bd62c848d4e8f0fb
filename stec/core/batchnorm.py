"""BatchNorm by the statistics of all processes, where torch has none: on CPUs."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stec.core.distributed import gather, world_size


class JointBatchNorm(_BatchNorm):
    """BatchNorm1d, 2d or 3d whose mean and variance in training are those of the rows of all processes.

    What one process computes on the joined batch, gradients included (`torch.nn.SyncBatchNorm` on GPUs); processes may
    hold unequal rows. On one process and in evaluation it is torch's BatchNorm. Statistics are taken in float32 or
    better. Weights have BatchNorm's names. Raises ValueError for an input of less than two dimensions.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"an input of shape {tuple(input.shape)}; need rows of channels, (b, c) or (b, c, ...)")

    @torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
    def forward(self, input: Float[Tensor, "b c *rest"]) -> Float[Tensor, "b c *rest"]:
        """Normalised by all processes' statistics, which move the running ones as in torch's BatchNorm."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        over = [0, *range(2, x.dim())]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        here = x.mean(dim=over)
        spread = (x - here.view(shape)).square().sum(dim=over)
        counted = torch.full_like(here, x.numel() // x.shape[1])
        counts, means, spreads = gather(torch.stack((counted, here, spread))[None]).unbind(dim=1)  # each (w, c)
        n = counts.sum(dim=0)
        mean = (counts * means).sum(dim=0) / n
        # Chan et al. 1983: deviations from each process's mean, and those of these means from the mean of all.
        variance = (spreads + counts * (means - mean).square()).sum(dim=0) / n
        self._move(mean.detach(), variance.detach() * (n / (n - 1)))
        y = (x - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _move(self, mean: Tensor, unbiased: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


def join_batchnorm(module: nn.Module) -> nn.Module:
    """The module with every BatchNorm below it replaced, in place, by one that shares its parameters and buffers."""
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        joint = JointBatchNorm(
            module.num_features,
            module.eps,
            module.momentum,
            affine=module.affine,
            track_running_stats=module.track_running_stats,
        )
        for name, parameter in module.named_parameters():
            setattr(joint, name, parameter)
        for name, buffer in module.named_buffers():
            setattr(joint, name, buffer)
        return joint.train(module.training)
    for name, child in module.named_children():
        module.add_module(name, join_batchnorm(child))
    return module
