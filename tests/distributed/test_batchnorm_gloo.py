"""BatchNorm of several processes against torch's on the joined batch."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_gloo import average, run
from torch import Tensor, nn

from stec.core.actions import Bins, ViewPair
from stec.core.batchnorm import JointBatchNorm, join_batchnorm
from stec.core.identity import SimCLR
from stec.core.manipulation import BinnedActions
from stec.core.networks import mlp, projection_head
from stec.core.objective import STECObjective, encode


def encoder() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5, momentum=None))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()


def objective() -> STECObjective:
    torch.manual_seed(1)
    models: dict[str, nn.Module] = {
        "identity": SimCLR(projection_head(5, 7, 4), temperature=0.2),
        "manipulation": BinnedActions(mlp(10, [6], 3 * 6), Bins.uniform(-2.0, 2.0, 6)),
    }
    return STECObjective(models, {"identity": 2.0, "manipulation": 0.7}).double()  # type: ignore[arg-type]


def joined() -> ViewPair:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 12, 3, 7, 7, dtype=torch.float64, generator=generator) * 3 + 5
    action = torch.randn(12, 3, dtype=torch.float64, generator=generator)
    return ViewPair(x[0], x[1], action, torch.arange(12) < 7, torch.zeros(12, dtype=torch.long))


def step(pair: ViewPair, *, joint: bool) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Gradients, buffers and the loss."""
    both = nn.ModuleList([encoder(), objective()])
    if joint:
        join_batchnorm(both)
        assert sum(isinstance(module, JointBatchNorm) for module in both.modules()) >= 3
    loss = both[1](encode(both[0], pair), None, pair)["loss"]
    loss.backward()
    return [p.grad for p in both.parameters() if p.grad is not None], list(both.buffers()), loss.detach()


def part_of_step(rank: int) -> dict[str, list[Tensor]]:
    world = dist.get_world_size()
    pair = ViewPair(*(None if part is None else part.chunk(world)[rank] for part in joined()))  # type: ignore[arg-type]
    gradients, buffers, loss = step(pair, joint=True)
    average([*gradients, loss])
    return {"gradients": gradients, "buffers": buffers, "loss": [loss]}


def part_of_uneven(rank: int) -> dict[str, list[Tensor]]:
    """7 rows, the first process with 4 or more of them; outputs, gradient of the input, running statistics."""
    rows = [4, 3] if dist.get_world_size() == 2 else [3, 2, 1, 1]
    x = joined().x[:7].split(rows)[rank].clone().requires_grad_()
    norm = join_batchnorm(nn.BatchNorm2d(3).double())
    y = norm(x)
    (y * torch.arange(7.0).split(rows)[rank].view(-1, 1, 1, 1)).square().sum().backward()
    narrow = norm.eval()(x.detach())
    return {"y": [y.detach()], "x": [x.grad], "statistics": list(norm.buffers()), "evaluated": [narrow]}


@pytest.mark.parametrize("world", [2, 4])
def test_a_network_with_batchnorm_has_the_gradient_of_the_joined_batch(world: int, tmp_path: Path) -> None:
    gradients, buffers, loss = step(joined(), joint=False)
    for found in run(part_of_step, tmp_path, world=world):
        torch.testing.assert_close(found["loss"][0], loss, rtol=1e-12, atol=0)
        for mine, one in zip(found["gradients"], gradients, strict=True):
            torch.testing.assert_close(mine, one, rtol=1e-9, atol=1e-12)
        for mine, one in zip(found["buffers"], buffers, strict=True):
            torch.testing.assert_close(mine, one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("world", [2, 4])
def test_unequal_rows(world: int, tmp_path: Path) -> None:
    x = joined().x[:7].clone().requires_grad_()
    norm = nn.BatchNorm2d(3).double()
    y = norm(x)
    (y * torch.arange(7.0).view(-1, 1, 1, 1)).square().sum().backward()
    found = run(part_of_uneven, tmp_path, world=world)
    torch.testing.assert_close(torch.cat([part["y"][0] for part in found]), y.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat([part["x"][0] for part in found]), x.grad, rtol=1e-9, atol=1e-12)
    evaluated = norm.eval()(x.detach())
    torch.testing.assert_close(torch.cat([part["evaluated"][0] for part in found]), evaluated, rtol=1e-12, atol=1e-12)
    for part in found:
        for mine, one in zip(part["statistics"], norm.buffers(), strict=True):
            torch.testing.assert_close(mine, one, rtol=1e-12, atol=1e-12)


def test_on_one_process_it_is_batchnorm() -> None:
    network = encoder()
    joint = join_batchnorm(copy.deepcopy(network))
    images = joined().x
    assert torch.equal(joint(images), network(images))
    assert list(joint.state_dict()) == list(network.state_dict())
    assert all(map(torch.equal, joint.buffers(), network.buffers()))


def test_what_is_replaced_shares_its_parameters() -> None:
    network = encoder()
    before = dict(network.named_parameters())
    assert all(before[name] is parameter for name, parameter in join_batchnorm(network).named_parameters())
