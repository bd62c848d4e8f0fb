"""The order in which an epoch reads shards: shuffled, known beforehand, and each file about once."""

import math
import zlib
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from stec.core.batches import EpochBatches

MIXED = 4  # shards whose samples are shuffled together
LANES = 8  # parts of a batch that read shards of their own
IN_USE = 2 * MIXED * LANES  # shards at once, over all processes: the block of each lane, and the next


def shard_order(shard: Int64[Tensor, " n"], *, mixed: int, generator: torch.Generator) -> Int64[Tensor, " n"]:
    """A permutation of samples that lie in these shards: shuffled shards, shuffled together in blocks of `mixed`.

    >>> shard_order(torch.tensor([0, 0, 0, 1, 1, 1]), mixed=1, generator=torch.Generator().manual_seed(0))
    tensor([2, 1, 0, 3, 4, 5])
    """
    place = torch.randperm(int(shard.max()) + 1, generator=generator)  # of each shard in this epoch
    order = torch.randperm(len(shard), generator=generator)
    return order[(place[shard[order]] // mixed).argsort(stable=True)]


def in_lanes(order: Int64[Tensor, " n"], *, batch_size: int, lanes: int) -> Int64[Tensor, " n"]:
    """The same order, cut into `lanes` stretches, from which every batch takes one part each, side by side.

    What fills no batch comes last, as before.

    >>> in_lanes(torch.arange(9), batch_size=4, lanes=2)
    tensor([0, 1, 4, 5, 2, 3, 6, 7, 8])
    """
    steps = len(order) // batch_size
    used = order[: steps * batch_size].view(lanes, steps, batch_size // lanes)
    return torch.cat((used.transpose(0, 1).flatten(), order[steps * batch_size :]))


class ShardBatches(EpochBatches):
    """As EpochBatches, in the order of shards: `shard` (n,) says where each sample lies.

    `mixed` shards are shuffled together. A batch has `lanes` parts, the largest divisor of the batch size that divides
    `LANES`; about `lanes` * `mixed` shards are in use at once, over all processes.

    >>> [batch.tolist() for batch in ShardBatches(torch.tensor([0, 0, 1, 1]), batch_size=2, seed=0, mixed=1)]
    [[2, 0], [3, 1]]
    """

    def __init__(self, shard: Int64[Tensor, " n"], *, batch_size: int, seed: int, mixed: int = MIXED) -> None:
        super().__init__(len(shard), batch_size=batch_size, seed=seed)
        if mixed < 1:
            raise ValueError(f"{mixed} shards mixed; need at least 1")
        self.shard = shard
        self.mixed = mixed
        self.lanes = math.gcd(batch_size, LANES)

    def order(self, generator: torch.Generator) -> Int64[Tensor, " n"]:
        """One epoch's, drawn from `generator`: shuffled in blocks of shards, then in lanes."""
        mixed = shard_order(self.shard, mixed=self.mixed, generator=generator)
        return in_lanes(mixed, batch_size=self.batch_size, lanes=self.lanes)

    def state_dict(self) -> dict[str, Any]:
        """What must be the same when a run goes on: also which sample lies in which shard."""
        layout = zlib.crc32(self.shard.numpy().tobytes())
        return {**super().state_dict(), "mixed": self.mixed, "lanes": self.lanes, "shards": layout}
