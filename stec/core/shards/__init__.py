"""Shards: many samples in few large files, an index of what is where, and an order that reads each file about once.

A folder of shards is uncompressed tar files in the layout of WebDataset (Aizman et al. 2019), `samples.npy` with a row
for each sample (its byte offset, its bytes, and what its modality knows of it) and `shards.json`, which is written last
and names all of it. `stec.core.shards.writing` writes one, `stec.core.shards.files` reads samples by their offsets.

The order of an epoch is a function of (seed, epoch) and of the index: the shards are shuffled and cut into blocks of
`mixed`, and the samples of a block are shuffled together. Nothing is read to know it, so a run goes on at any step.
Parts of every batch, its lanes, read stretches of that order that are far apart; so W processes, each with its own
lanes, read shards of their own and yet see together what one would.
"""

from stec.core.shards.index import (
    FORMAT,
    INDEX,
    JOURNAL,
    TABLE,
    Location,
    Shard,
    ShardIndex,
    check_name,
    check_names,
    check_size,
    check_url,
    is_sharded,
    read_index,
)
from stec.core.shards.order import IN_USE, LANES, MIXED, ShardBatches, in_lanes, shard_order

__all__ = [
    "FORMAT",
    "INDEX",
    "IN_USE",
    "JOURNAL",
    "LANES",
    "MIXED",
    "TABLE",
    "Location",
    "Shard",
    "ShardBatches",
    "ShardIndex",
    "check_name",
    "check_names",
    "check_size",
    "check_url",
    "in_lanes",
    "is_sharded",
    "read_index",
    "shard_order",
]
