"""Identity models without negatives: two gloo processes give the terms and the gradient of one on the joined batch."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_gloo import average, joined_pair, run, share
from torch import Tensor, nn

from stec.core.actions import ViewPair
from stec.core.identity import BYOL, BarlowTwins, SimSiam, VICReg
from stec.core.networks import MomentumEncoder, mlp
from stec.core.objective import InverseModel, STECObjective, encode

# No BatchNorm: its statistics are test_batchnorm_gloo.py's business.
MODELS: dict[str, Callable[[], InverseModel]] = {
    "byol": lambda: BYOL(mlp(5, [], 4), mlp(4, [], 4), momentum=0.9),
    "byol without slow copies": lambda: BYOL(mlp(5, [], 4), mlp(4, [], 4), momentum=None),
    "simsiam": lambda: SimSiam(mlp(5, [], 4), mlp(4, [], 4)),
    "simsiam open": lambda: SimSiam(mlp(5, [], 4), mlp(4, [], 4), stop_gradient=False),
    "vicreg": lambda: VICReg(mlp(5, [], 4), variance_weight=25.0),
    "barlow": lambda: BarlowTwins(mlp(5, [], 4), redundancy=0.3),
}


def terms_and_gradients(name: str, pair: ViewPair) -> list[Tensor]:
    """Every term and their sum, then the gradient of every parameter that takes one."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 5)).double()
    model = MODELS[name]()
    weights = {"identity": 2.0, **dict.fromkeys(model.further, 0.7)}
    objective = STECObjective({"identity": model}, weights).double()
    target = MomentumEncoder(encoder, momentum=0.9)
    with torch.no_grad():  # slow copies that lag behind
        for parameter in [*encoder.parameters(), *objective.parameters()]:
            if parameter.requires_grad:
                parameter.mul_(1.2).add_(0.05)
    slow = encode(target, pair) if objective.needs_target else None
    terms = objective(encode(encoder, pair), slow, pair)
    terms["loss"].backward()
    gradients = [p.grad for p in [*encoder.parameters(), *objective.parameters()] if p.grad is not None]
    return [torch.stack([term.detach() for term in terms.values()]), *gradients]


def part_of_models(rank: int) -> dict[str, list[Tensor]]:
    """What DistributedDataParallel computes: the mean over processes of each one's terms and gradients."""
    found = {name: terms_and_gradients(name, share(joined_pair(), rank)) for name in MODELS}
    for values in found.values():
        average(values)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    """One start of two processes serves all models."""
    folder: Path = tmp_path_factory.mktemp("gloo")
    return run(part_of_models, folder)


@pytest.mark.parametrize("name", MODELS)
def test_two_processes_equal_one_on_the_joined_batch(name: str, found: list[dict[str, list[Tensor]]]) -> None:
    terms, *expected = terms_and_gradients(name, joined_pair())
    assert len(terms) == 2 + (name == "vicreg")
    assert len(expected) >= 6
    assert all(gradient.abs().max() > 1e-6 for gradient in expected if gradient.ndim == 2)
    for process in found:
        mean_terms, *mean = process[name]
        torch.testing.assert_close(mean_terms, terms, rtol=1e-10, atol=0)
        assert len(mean) == len(expected)
        for mine, one in zip(mean, expected):
            torch.testing.assert_close(mine, one, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["vicreg", "barlow"])
def test_rows_beyond_the_process_matter(name: str) -> None:
    """Without them the case above would say nothing: halves alone have other statistics, by far more than 1e-10."""
    apart = (
        terms_and_gradients(name, share(joined_pair(), 0))[0] + terms_and_gradients(name, share(joined_pair(), 1))[0]
    ) / 2
    assert (apart - terms_and_gradients(name, joined_pair())[0]).abs()[-1] > 1e-3
