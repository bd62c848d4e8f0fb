"""Micro-batches that give the gradient of the whole batch, for losses that compare every view with every other.

The loss of a contrastive model is no sum over images, so adding up the gradients of small batches is another, easier
task. But it reads the features alone: encode micro-batch by micro-batch without keeping activations, take the loss and
its gradient at all features together, then encode each micro-batch again to carry the gradient into the encoder. The
price is one more forward pass (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size").
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Statistics = Literal["micro", "frozen"]


class MicroBatches:
    """An encoder that keeps the activations of at most `size` views, the features of all, in passes of equal size.

    `statistics` says what BatchNorm in the encoder normalises by. `"micro"`: the views of each micro-batch, so that the
    encoder is the one of a smaller batch, as it is on several devices without synchronisation; where processes share
    statistics, their micro-batches are joined. `"frozen"`: the running statistics, which then no longer move; for
    encoders that were trained before. Statistics of the whole batch would tie every layer of a micro-batch to all
    others, and need the memory that is to be saved. Without BatchNorm the two are the same, and equal to the plain
    encoder.

    Running statistics move once for each micro-batch, not again in the second pass; dropout repeats its draw.

    `encoder` is the module whose BatchNorm layers are meant; `call` what is called in its place, such as its compiled
    form. Raises ValueError for `size` below 1 or unknown `statistics`.

    >>> encoder = MicroBatches(nn.Linear(3, 2), size=4)
    >>> encoder(torch.zeros(10, 3)).shape  # in passes of 4, 3 and 3
    torch.Size([10, 2])
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        size: int,
        statistics: Statistics = "micro",
        call: Callable[[Any], Any] | None = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"a micro-batch of {size} views; need at least 1")
        if statistics not in ("micro", "frozen"):
            raise ValueError(f"statistics is {statistics!r}; use 'micro' or 'frozen'")
        self.encoder = encoder
        self.size = size
        self.statistics = statistics
        self.call = call or encoder

    def __call__(self, views: Tensor) -> Any:
        """A tensor, or a tuple of tensors, with the batch first, as the encoder gives them."""
        parts = [
            checkpoint(self.call, part, use_reentrant=False, context_fn=self._passes)
            for part in views.tensor_split(-(-len(views) // self.size))
        ]
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)
        return tuple(torch.cat(column) for column in zip(*parts))

    def _passes(self) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        """What surrounds the first pass of a micro-batch, which keeps features alone, and its repetition."""
        before: list[Tensor] = []
        return self._first(before), self._second(before)

    @contextlib.contextmanager
    def _first(self, before: list[Tensor]) -> Iterator[None]:
        before += [buffer.clone() for buffer in self.encoder.buffers()]
        with self._normalising():
            yield

    @contextlib.contextmanager
    def _second(self, before: list[Tensor]) -> Iterator[None]:
        """It begins with the buffers that the first began with, and leaves them as the first passes of all did."""
        after = [buffer.clone() for buffer in self.encoder.buffers()]
        self._set_buffers(before)
        try:
            with self._normalising():
                yield
        finally:
            self._set_buffers(after)

    @torch.no_grad()
    def _set_buffers(self, values: list[Tensor]) -> None:
        for buffer, value in zip(self.encoder.buffers(), values):
            buffer.copy_(value)

    @contextlib.contextmanager
    def _normalising(self) -> Iterator[None]:
        """BatchNorm as `statistics` says."""
        norms = [m for m in self.encoder.modules() if isinstance(m, _BatchNorm) and m.training]
        frozen = norms if self.statistics == "frozen" else []
        for norm in frozen:
            norm.eval()
        try:
            yield
        finally:
            for norm in frozen:
                norm.train()
