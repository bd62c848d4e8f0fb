"""ReLIC, ReLICv2, MoCo and actions over many views: two gloo processes equal one on the joined batch, step by step."""

import pytest
import torch
import torch.distributed as dist
from test_gloo import WORLD, average, run
from torch import Tensor, nn

from stec.core.actions import Bins, MoreViews, ViewPair
from stec.core.identity import MoCo, ReLIC, ReLICv2
from stec.core.manipulation import BinnedActions, EveryPair
from stec.core.networks import MomentumEncoder
from stec.core.objective import InverseModel, STECObjective, encode

B, LARGE, SMALL, STEPS, QUEUE = 8, 3, 2, 3, 41


def head(width: int = 4) -> nn.Module:
    """No BatchNorm: its statistics are test_batchnorm_gloo.py's business."""
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, width))


MODELS = {
    "relic": lambda: ReLIC(head(), temperature=0.3, alpha=0.8, momentum=0.9, predictor=nn.Linear(4, 4)),
    "relic, same view": lambda: ReLIC(head(), temperature=0.3, alpha=0.8, momentum=0.9, same_view=True),
    "relic, no momentum": lambda: ReLIC(head(), temperature=0.3, alpha=0.8, momentum=None),
    "relicv2": lambda: ReLICv2(head(), temperature=0.3, alpha=0.8, momentum=0.9, predictor=nn.Linear(4, 4)),
    "relicv2, no momentum": lambda: ReLICv2(head(), temperature=0.3, alpha=0.8, momentum=None),
    # 16 keys a step: the ring of 41 wraps in the third
    "moco": lambda: MoCo(head(), temperature=0.3, queue=QUEUE, momentum=0.9, features=4),
    "every pair": lambda: EveryPair(BinnedActions(nn.Linear(10, 3 * 6), Bins.uniform(-2.0, 2.0, 6))),
}


def joined_pair(step: int) -> ViewPair:
    """Three large views and two small ones; pairs are valid more often in the first process's half."""
    generator = torch.Generator().manual_seed(step)
    v = LARGE + SMALL
    large = torch.randn(LARGE, B, 8, dtype=torch.float64, generator=generator)
    small = torch.randn(SMALL, B, 6, dtype=torch.float64, generator=generator)
    action = torch.randn(v, v, B, 3, dtype=torch.float64, generator=generator)
    valid = torch.rand(v, v, B, generator=generator) < torch.linspace(0.9, 0.1, B)
    more = MoreViews((large[2], *small), LARGE, action, valid)
    return ViewPair(large[0], large[1], action[0, 1], valid[0, 1], torch.zeros(B, dtype=torch.long), more=more)


def part_of(pair: ViewPair, rank: int) -> ViewPair:
    """The rows of one process."""
    assert pair.more is not None
    world = dist.get_world_size() if dist.is_initialized() else WORLD
    mine = slice(rank * B // world, (rank + 1) * B // world)
    more = MoreViews(
        tuple(view[mine] for view in pair.more.views), LARGE, pair.more.action[:, :, mine], pair.more.valid[:, :, mine]
    )
    x, x_prime, action, valid, label = (part[mine] for part in pair[:5])
    return ViewPair(x, x_prime, action, valid, label, more=more)


def trained(name: str, rank: int | None) -> list[Tensor]:
    """A few steps of training: each step's loss and gradients, then the state, in which a queue lies.

    With a rank, what DistributedDataParallel computes: the mean over processes of each one's gradient.
    """
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.AdaptiveAvgPool1d(4), nn.Linear(4, 5)).double()
    model: InverseModel = MODELS[name]()
    objective = STECObjective({"model": model}, {"model": 0.7}).double()
    target = MomentumEncoder(encoder, momentum=0.9)
    optimizer = torch.optim.SGD([*encoder.parameters(), *model.parameters()], lr=0.2)
    found = []
    for step in range(STEPS):
        pair = joined_pair(step) if rank is None else part_of(joined_pair(step), rank)
        seen = encode(target, pair, large_only=True) if model.needs_target else None
        loss = objective(encode(encoder, pair), seen, pair)["loss"]
        optimizer.zero_grad()
        loss.backward()
        parameters = [p for p in [*encoder.parameters(), *model.parameters()] if p.requires_grad]
        values = [loss.detach(), *(p.grad for p in parameters if p.grad is not None)]
        assert len(values) == len(parameters) + 1
        if rank is not None:
            average(values)
        found += [value.clone() for value in values]
        optimizer.step()
        for module in (target, *model.modules()):
            if isinstance(module, MomentumEncoder):
                module.update(0.9)
    return [*found, *model.state_dict().values()]


def all_models(rank: int) -> dict[str, list[Tensor]]:
    return {name: trained(name, rank) for name in MODELS}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    """What each process holds after all models: one start of two processes serves them all."""
    return run(all_models, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize("name", MODELS)
def test_two_processes_equal_one_on_the_joined_batch(name: str, found: list[dict[str, list[Tensor]]]) -> None:
    expected = trained(name, None)
    assert sum(bool((value.abs() > 1e-4).any()) for value in expected) > 2 * STEPS
    for process in found:
        assert len(process[name]) == len(expected)
        for mine, one in zip(process[name], expected):
            torch.testing.assert_close(mine, one, rtol=1e-10, atol=1e-12)


def test_the_queues_of_two_processes_hold_the_joined_keys(found: list[dict[str, list[Tensor]]]) -> None:
    torch.manual_seed(0)
    start = MODELS["moco"]().double()
    state = [dict(zip(start.state_dict(), process["moco"][-len(start.state_dict()) :])) for process in found]
    queues = [each["queue"] for each in state]
    assert torch.equal(*queues)
    assert [each["pointer"].item() for each in state] == [STEPS * 2 * B % QUEUE] * WORLD
    assert (queues[0] - start.queue).norm(dim=1).min() > 0.01  # every key has been replaced


def test_candidates_and_counts_beyond_the_process_matter() -> None:
    """Without them the cases above would say nothing: halves alone have another loss."""
    for name in set(MODELS) - {"moco"}:  # whose candidates are those of the queue
        torch.manual_seed(0)
        encoder, model = nn.Sequential(nn.AdaptiveAvgPool1d(4), nn.Linear(4, 5)).double(), MODELS[name]().double()
        losses = []
        with torch.no_grad():
            for pair in (joined_pair(0), part_of(joined_pair(0), 0), part_of(joined_pair(0), 1)):
                features = encode(encoder, pair)
                losses.append(model(features, encode(encoder, pair, large_only=True), pair))
        assert (losses[0] - (losses[1] + losses[2]) / 2).abs().item() > 1e-6, name
