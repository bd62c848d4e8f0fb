"""Models over time: two gloo processes give the terms and the gradient of one process on the joined batch."""

import pytest
import torch
from test_gloo import average, run, share
from torch import Tensor, nn

from stec.core.actions import ViewPair
from stec.core.objective import InverseModel, STECObjective, encode
from stec.core.sequence import CPC, FrameIdentity, LinearPredictor, PooledIdentity, SwitchIdentity

B, T, C, Z = 12, 9, 5, 4


class Sequences(nn.Module):
    """A causal context over latents: what an encoder of speech gives."""

    def __init__(self) -> None:
        super().__init__()
        self.latent, self.step = nn.Linear(3, Z), nn.Linear(Z, C)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.tanh(self.latent(x))
        return torch.tanh(self.step(z)).cumsum(dim=1), z


def head(width: int) -> nn.Module:
    return nn.Linear(width, 6)


def cpc(width: int = Z, **options: object) -> CPC:
    return CPC(LinearPredictor(C, width, steps=3), **{"negatives": "batch group", "batch_group": 3, **options})  # type: ignore[arg-type]


MODELS = {
    "cpc batch group": lambda: cpc(),
    "cpc batch group, others": lambda: cpc(own_sequence=False),
    "cpc all": lambda: cpc(negatives="all"),
    "cpc all, others": lambda: cpc(negatives="all", own_sequence=False),
    "cpc same group": lambda: cpc(negatives="same group"),
    "cpc sequence": lambda: cpc(negatives="sequence"),
    "pooled all": lambda: PooledIdentity(head(C), temperature=0.3),
    "pooled other groups": lambda: PooledIdentity(head(C), temperature=0.3, others="other groups"),
    "pooled latents, last": lambda: PooledIdentity(head(Z), temperature=0.3, part="latents", pooling="last"),
    "frames": lambda: FrameIdentity(head(C), head(Z), batch_group=3),
    "switch": lambda: SwitchIdentity(head(C), head(Z)),
    "switch other groups": lambda: SwitchIdentity(head(C), head(Z), others="other groups"),
}


def networks(name: str) -> tuple[nn.Module, STECObjective]:
    torch.manual_seed(0)
    model: InverseModel = MODELS[name]()
    return Sequences().double(), STECObjective({"model": model}, {"model": 0.7}).double()


def joined_pair(*, two: bool) -> ViewPair:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, B, T, 3, dtype=torch.float64, generator=generator)
    # Objects and groups meet across the processes: rows 0 to 5 and 6 to 11 share utterance 1 and speakers 0 to 2. The
    # first three rows show one object, so that the processes differ in how many pairs and anchors count.
    objects = torch.tensor([1, 1, 1, 3, 4, 5, 6, 1, 8, 9, 10, 11])
    groups = torch.tensor([0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2])
    nothing = torch.zeros(B, 0, dtype=torch.float64)
    return ViewPair(
        x[0], x[1] if two else None, nothing, torch.ones(B, dtype=torch.bool), groups, object=objects, group=groups
    )


def cases() -> list[tuple[str, bool]]:
    """Every model with two views; the halves of one for some of those that compare stretches."""
    return [*((name, True) for name in MODELS), *((name, False) for name in ("cpc all", "pooled all", "frames"))]


def gradients(name: str, pair: ViewPair) -> list[Tensor]:
    """The loss, then the gradient of every parameter."""
    encoder, objective = networks(name)
    loss = objective(encode(encoder, pair), None, pair)["loss"]
    loss.backward()
    parameters = [*encoder.parameters(), *objective.parameters()]
    return [loss.detach(), *(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)]


def part_of_cases(rank: int) -> dict[str, list[Tensor]]:
    """What DistributedDataParallel computes: the mean over processes of each one's gradient."""
    found = {f"{name} {two}": gradients(name, share(joined_pair(two=two), rank)) for name, two in cases()}
    for values in found.values():
        average(values)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    """What each process holds after all cases: one start of two processes serves them all."""
    return run(part_of_cases, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize(("name", "two"), cases(), ids=lambda value: str(value))
def test_two_processes_equal_one_on_the_joined_batch(
    name: str, two: bool, found: list[dict[str, list[Tensor]]]
) -> None:
    loss, *expected = gradients(name, joined_pair(two=two))
    assert sum(bool(gradient.abs().max() > 1e-6) for gradient in expected) >= 4
    for process in found:
        mean_loss, *mean = process[f"{name} {two}"]
        torch.testing.assert_close(mean_loss, loss, rtol=1e-10, atol=0)
        assert len(mean) == len(expected)
        for mine, one in zip(mean, expected):
            torch.testing.assert_close(mine, one, rtol=1e-8, atol=1e-12)


def test_candidates_beyond_the_process_matter() -> None:
    """Without them the cases above would say nothing: halves alone have another loss, by far more than 1e-10."""
    for name in ("cpc all", "pooled all", "pooled other groups", "switch"):
        pair = joined_pair(two=True)
        half = share(pair, 0)
        other = share(pair, 1)
        apart = (gradients(name, half)[0] + gradients(name, other)[0]) / 2
        assert abs(float(apart - gradients(name, pair)[0])) > 1e-6, name
