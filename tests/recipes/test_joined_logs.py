"""Processes that train together log what one process on the joined batch logs, and end with its weights."""

import csv
import os
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from killing import CONTEXT, Prepared, elastic, free_port
from torch import Tensor, nn

from recipes.progress import EpochProgress
from recipes.run import fit, quieten
from stec.core.actions import Bins, ViewPair
from stec.core.batches import EpochBatches
from stec.core.identity import MoCo, SimCLR, VICReg
from stec.core.learner import Learner
from stec.core.manipulation import BinnedActions
from stec.core.networks import mlp
from stec.core.objective import STECObjective
from stec.core.optim import by_kind
from stec.core.probe import OnlineProbe

N, BATCH, EPOCHS, CLASSES = 29, 8, 3, 3  # 3 steps an epoch, and a rest of 5 rows, which no process sees


def views(index: Tensor, generator: torch.Generator) -> ViewPair:
    """Views of some rows, whichever process draws them; labels and valid actions are not equally many on each."""
    table = torch.Generator().manual_seed(0)
    x = torch.randn(2, N, 6, generator=table, dtype=torch.float64)
    action = torch.randn(N, 2, generator=table, dtype=torch.float64)
    label = torch.randint(0, CLASSES, (N,), generator=table)
    label[torch.rand(N, generator=table) < 0.4] = -1
    valid = torch.rand(N, generator=table) < 0.6
    x[1] = x[0] + 0.5 * x[1] + action.repeat(1, 3)
    return ViewPair(x[0, index], x[1, index], action[index], valid[index], label[index])


class Rows:
    """The indices themselves."""

    def __init__(self, batches: EpochBatches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)


def train(folder: Path, world: int) -> None:
    """A training in float64, with BatchNorm in the encoder, a projector and the momentum encoder."""
    torch.set_num_threads(1)
    quieten()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    models = {
        "identity": SimCLR(mlp(5, [6], 4), temperature=0.2),
        "queue": MoCo(mlp(5, [], 4), temperature=0.3, queue=24, momentum=0.9, features=4),
        "variance": VICReg(mlp(5, [], 4), variance_weight=25.0),
        "manipulation": BinnedActions(mlp(10, [], 2 * 4), Bins.uniform(-2.0, 2.0, 4)),
    }
    weights = {"identity": 1.0, "queue": 0.5, "variance": 0.1, "regulariser": 0.1, "manipulation": 2.0}
    batches = EpochBatches(N, batch_size=BATCH, seed=3)
    learner = Learner(
        nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 5)),
        STECObjective(models, weights),
        views=views,
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        adapt=by_kind,
        weight_decay=1e-4,
        warmup_steps=2,
        total_steps=EPOCHS * len(batches),
        seed=0,
        probe=OnlineProbe(5, CLASSES),
        target_momentum=0.9,
        check_every=2,
        record={"config": {}, "batches": batches.state_dict()},
    )
    config = types.SimpleNamespace(epochs=EPOCHS, warmup_epochs=1, checkpoint_every=1, check_every=2, devices=world)
    with EpochProgress(quiet=True) as progress:
        fit(
            learner,
            Rows(batches),
            batches,
            folder,
            config=config,
            precision="64-true",
            paths={},
            progress=progress,
            resume=False,
        )


def command(folder: Path, rank: int, world: int, port: int) -> None:
    """One of the processes, its output in a file."""
    log = os.open(folder.with_suffix(".log"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if world > 1:
        Prepared(elastic(rank, world, port))()
    train(folder, world)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The runs of 1, 2 and 4 processes."""
    made = {}
    for world in (1, 2, 4):
        folder, port = tmp_path_factory.mktemp(f"world{world}") / "run", free_port()
        folder.mkdir()
        processes = [CONTEXT.Process(target=command, args=(folder, rank, world, port)) for rank in range(world)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == world * [0], folder.with_suffix(".log").read_text()
        made[world] = folder
    return made


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "logs" / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def weights(folder: Path) -> dict[str, Tensor]:
    """Of the last step."""
    content = torch.load(folder / "checkpoints" / f"step={EPOCHS * (N // BATCH)}.ckpt", weights_only=True)
    state: dict[str, Tensor] = content["state_dict"]
    return state


@pytest.mark.parametrize("world", [2, 4])
def test_the_weights_are_those_of_one_process(world: int, folders: dict[int, Path]) -> None:
    one, several = weights(folders[1]), weights(folders[world])
    assert one.keys() == several.keys()
    assert {"target.module.0.weight", "probe.linear.weight", "objective.models.queue.queue"} <= one.keys()
    for name, value in one.items():
        torch.testing.assert_close(several[name], value, rtol=1e-9, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("world", [2, 4])
def test_the_losses_are_those_of_one_process(world: int, folders: dict[int, Path]) -> None:
    """Everything that is logged."""
    one, several = rows(folders[1]), rows(folders[world])
    assert [row["step"] for row in one] == [row["step"] for row in several]
    for mine, other in zip(one, several):
        assert mine.keys() == other.keys()
        for name in mine:
            assert other[name] == pytest.approx(mine[name], rel=1e-6, abs=1e-7), name
