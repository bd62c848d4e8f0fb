"""Gloo processes together give the terms and the gradient of one process on the joined batch."""

import os
import socket
from collections.abc import Callable, Iterable
from datetime import timedelta
from itertools import chain
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from stec.core.actions import Bins, ViewPair
from stec.core.batches import EpochBatches
from stec.core.distributed import gather, part_of_mean
from stec.core.identity import SimCLR
from stec.core.manipulation import BinnedActions, RegressedActions
from stec.core.networks import mlp
from stec.core.objective import STECObjective, encode
from stec.core.shards import ShardBatches

WORLD = 2


def networks() -> tuple[nn.Module, STECObjective]:
    """No BatchNorm: its statistics are test_batchnorm_gloo.py's business."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 5)).double()
    objective = STECObjective(
        {
            "identity": SimCLR(mlp(5, [], 4), temperature=0.2),
            "manipulation": BinnedActions(mlp(10, [], 3 * 6), Bins.uniform(-2.0, 2.0, 6)),
            "regression": RegressedActions(mlp(10, [], 3), std=torch.ones(3)),
        },
        {"identity": 2.0, "manipulation": 0.7, "regression": 0.3},
    ).double()
    return encoder, objective


def joined_pair() -> ViewPair:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 8, 8, dtype=torch.float64, generator=generator)
    action = torch.randn(8, 3, dtype=torch.float64, generator=generator)
    # Unequal over the processes: 4 of 4 valid in the first half, 1 of 4 in the second.
    valid = torch.tensor([True] * 5 + [False] * 3)
    return ViewPair(x[0], x[1], action, valid, torch.zeros(8, dtype=torch.long))


def gradients(pair: ViewPair) -> tuple[list[Tensor], Tensor]:
    encoder, objective = networks()
    terms = objective(encode(encoder, pair), None, pair)
    terms["loss"].backward()
    parameters = [*encoder.parameters(), *objective.parameters()]
    names = [*objective.names, "loss"]
    return [p.grad for p in parameters if p.grad is not None], torch.stack([terms[name].detach() for name in names])


def share(pair: ViewPair, rank: int) -> ViewPair:
    """The rows of one process; of two where none run."""
    world = dist.get_world_size() if dist.is_initialized() else WORLD
    return ViewPair(*(None if part is None else part.chunk(world)[rank] for part in pair))  # type: ignore[arg-type]


def average(values: Iterable[Tensor]) -> None:
    """The mean over processes in place, as DistributedDataParallel takes it of gradients."""
    for value in values:
        dist.all_reduce(value)
        value /= dist.get_world_size()


def part_of_objective(rank: int) -> dict[str, list[Tensor]]:
    """What DistributedDataParallel computes: the mean over processes of each one's gradient."""
    pair = joined_pair()
    grads, terms = gradients(share(pair, rank))
    average([*grads, terms])
    return {"gradients": grads, "terms": [terms]}


def part_of_gather(rank: int) -> dict[str, list[Tensor]]:
    local = (torch.arange(3.0, dtype=torch.float64) + 10 * rank)[:, None].requires_grad_()
    rows = gather(local)
    # Every process weights the rows differently; a row's gradient is the sum of what all processes say of it.
    (rows * (rank + 1)).sum().backward()
    mean = part_of_mean(torch.tensor(10.0 if rank == 0 else 2.0), torch.tensor(3 if rank == 0 else 1))
    assert local.grad is not None
    return {"rows": [rows.detach()], "gradient": [local.grad], "mean": [mean]}


def orders() -> dict[str, EpochBatches]:
    """23 rows in batches of 8: two, and 7 rows that fill no third."""
    return {
        "any": EpochBatches(23, batch_size=8, seed=3),
        "shards": ShardBatches(torch.arange(23) // 5, batch_size=8, seed=3, mixed=2),
    }


def part_of_batches(rank: int) -> dict[str, list[Tensor]]:
    """The rows of this process; and whether it refused a batch of 9, which would leave one a row more than another."""
    found = {name: list(batches) for name, batches in orders().items()}
    try:
        list(EpochBatches(23, batch_size=9, seed=3))
    except ValueError as error:
        found["refused"] = [torch.tensor(f"does not divide among {dist.get_world_size()} processes" in str(error))]
    return found


def work(rank: int, part: Callable[[int], dict[str, list[Tensor]]], world: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(seconds=60))
    try:
        torch.save(part(rank), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def run(
    part: Callable[[int], dict[str, list[Tensor]]], folder: Path, *, world: int = WORLD
) -> list[dict[str, list[Tensor]]]:
    """What `part` returns in each of the processes, which start and end together."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(work, args=(part, world, port, str(folder)), nprocs=world, join=True)  # type: ignore[attr-defined]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def test_two_processes_equal_one_on_the_joined_batch(tmp_path: Path) -> None:
    expected, terms = gradients(joined_pair())
    for found in run(part_of_objective, tmp_path):
        torch.testing.assert_close(found["terms"][0], terms, rtol=1e-12, atol=0)
        assert len(found["gradients"]) == len(expected)
        for mine, one in zip(found["gradients"], expected):
            torch.testing.assert_close(mine, one, rtol=1e-10, atol=1e-14)


def test_gather_returns_the_gradient_to_where_a_row_came_from(tmp_path: Path) -> None:
    for rank, found in enumerate(run(part_of_gather, tmp_path)):
        assert found["rows"][0][:, 0].tolist() == [0, 1, 2, 10, 11, 12]
        assert found["gradient"][0][:, 0].tolist() == [3.0, 3.0, 3.0]  # 1 from the first process, 2 from the second
        assert found["mean"][0].item() == pytest.approx(15.0 if rank == 0 else 1.0)  # their mean: (3 * 10 + 2) / 4


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_every_batch_evenly_and_all_drop_the_rest(world: int, tmp_path: Path) -> None:
    """No last batch is uneven: none is seen twice, and what one process leaves out of an epoch all leave out."""
    found = run(part_of_batches, tmp_path, world=world)
    for name, batches in orders().items():
        parts = [[batch.tolist() for batch in process[name]] for process in found]
        assert {len(batch) for part in parts for batch in part} == {8 // world}
        assert [[*chain(*together)] for together in zip(*parts)] == [batch.tolist() for batch in batches]
        assert len({row for part in parts for batch in part for row in batch}) == 16
    assert [bool(process["refused"][0]) for process in found] == world * [True]
