"""The order of the data, as a function of (seed, step): nothing to remember, so an interrupted run goes on exactly."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from stec.core import distributed
from stec.core.actions import step_seed


class EpochBatches:
    """Batches of indices: every epoch a new permutation, the incomplete last batch dropped.

    With W processes each takes its own `batch_size / W` of every batch, so that W processes see together what one
    would. `steps_done` tells how many steps a resumed run has behind it; iteration begins there, also within an epoch.
    With a `checksum` of the data that the indices stand for, a checkpoint made on other data is refused.

    Raises ValueError where the batch is larger than the data set, and in iteration where it does not divide among the
    processes, which are known only then.

    >>> [len(batch) for batch in EpochBatches(10, batch_size=4, seed=0)]
    [4, 4]
    """

    def __init__(self, n: int, *, batch_size: int, seed: int, checksum: int | None = None) -> None:
        if batch_size < 2:
            raise ValueError(f"batch size is {batch_size}; a contrastive loss needs at least 2")
        if batch_size > n:
            raise ValueError(f"batch size {batch_size} is larger than the data set of {n}; choose at most {n}")
        self.n = n
        self.batch_size = batch_size
        self.seed = seed
        self.checksum = checksum
        self.steps_done: Callable[[], int] = lambda: 0

    def __len__(self) -> int:
        """Steps in an epoch."""
        return self.n // self.batch_size

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to."""
        return self.steps_done() // len(self)

    def __iter__(self) -> Iterator[Tensor]:
        if self.batch_size % distributed.world_size():
            raise ValueError(f"batch size {self.batch_size} does not divide among {distributed.world_size()} processes")
        epoch, position = divmod(self.steps_done(), len(self))
        generator = torch.Generator().manual_seed(step_seed(self.seed, epoch, stream=1))
        order = self.order(generator)
        share = self.batch_size // distributed.world_size()
        for step in range(position, len(self)):
            start = step * self.batch_size + distributed.rank() * share
            yield order[start : start + share]

    def order(self, generator: torch.Generator) -> Int64[Tensor, " n"]:
        """One epoch's, drawn from `generator`."""
        return torch.randperm(self.n, generator=generator)

    def state_dict(self) -> dict[str, Any]:
        """What must be the same when a run goes on."""
        state = {"n": self.n, "batch_size": self.batch_size, "seed": self.seed}
        return state if self.checksum is None else {**state, "checksum": self.checksum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that a checkpoint was made on this order of the data; ValueError where it was not."""
        mine = self.state_dict()
        if "checksum" not in state:  # the checkpoint's version kept none
            mine.pop("checksum", None)
        if state != mine:
            names = [name for name in {**mine, **state} if state.get(name) != mine.get(name)]
            other = ", ".join(f"{name} {state.get(name)} there, {mine.get(name)} here" for name in names)
            raise ValueError(f"the checkpoint was made with other data or batches: {other}; use the same")
