"""Equation 2, the chain rule behind it, and the proof that the interface carries the other methods."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stec.core.actions import Bins, ViewPair
from stec.core.identity import BYOL, BarlowTwins, ReLIC, SimCLR, SimSiam, VICReg
from stec.core.losses import binned_nll, info_nce, nt_xent
from stec.core.manipulation import BinnedActions, RegressedActions
from stec.core.networks import MomentumEncoder, mlp, projection_head
from stec.core.objective import Features, InverseModel, STECObjective, encode


def a_pair(b: int = 6, d: int = 4) -> ViewPair:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2 * b, 8, generator=generator)
    return ViewPair(
        x[:b],
        x[b:],
        torch.randn(b, d, generator=generator),
        torch.ones(b, dtype=torch.bool),
        torch.zeros(b, dtype=torch.long),
    )


def an_objective(weight: float = 0.3) -> STECObjective:
    torch.manual_seed(0)
    return STECObjective(
        {
            "identity": SimCLR(projection_head(5, 7, 3), temperature=0.5),
            "manipulation": BinnedActions(mlp(10, [9], 4 * 6), Bins.uniform(-2.0, 2.0, 6)),
        },
        {"identity": 2.0, "manipulation": weight},
    )


def test_the_loss_is_the_weighted_sum_of_named_terms() -> None:
    terms = an_objective()(encode(nn.Linear(8, 5), a_pair()), None, a_pair())
    assert set(terms) == {"identity", "manipulation", "loss"}
    torch.testing.assert_close(terms["loss"], 2.0 * terms["identity"] + 0.3 * terms["manipulation"])


@pytest.mark.parametrize(
    ("names", "weights"), [(["identity"], ["identities"]), (["loss"], ["loss"]), ([], []), (["a"], ["a", "b"])]
)
def test_names_must_agree(names: list[str], weights: list[str]) -> None:
    model = SimCLR(nn.Identity(), temperature=0.5)
    with pytest.raises(ValueError, match="same names"):
        STECObjective(dict.fromkeys(names, model), dict.fromkeys(weights, 1.0))


def test_chain_rule_on_random_joint_tables() -> None:
    """Eq. 1: KL over (a_id, a_manip) = L_id + p(a_id = 0) L_manip, since a switched object has one dummy action."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        k = 6
        p_id, q_id = torch.rand(2, 2, dtype=torch.float64, generator=generator) + 0.05
        p_id, q_id = p_id / p_id.sum(), q_id / q_id.sum()
        p_m, q_m = torch.rand(2, k, dtype=torch.float64, generator=generator).softmax(1)
        # joint over {a_id = 0} x k actions and the single (1, unknown)
        p = torch.cat((p_id[:1] * p_m, p_id[1:]))
        q = torch.cat((q_id[:1] * q_m, q_id[1:]))
        joint = (p * (p / q).log()).sum()
        identity = (p_id * (p_id / q_id).log()).sum()
        manipulation = (p_m * (p_m / q_m).log()).sum()
        torch.testing.assert_close(joint, identity + p_id[0] * manipulation, rtol=1e-12, atol=1e-12)
        # With a perfect copy the divergence is the code's loss: -log q of the true action.
        true = int(torch.randint(k, (), generator=generator))
        nll = binned_nll(q_m.log()[None, None], torch.tensor([[true]]))
        torch.testing.assert_close(nll - q_id[0].log(), -q[true].log())


def test_an_invalid_pair_carries_no_manipulation_gradient() -> None:
    model = an_objective().models["manipulation"].eval()
    pair = a_pair()
    h, h_prime = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    valid = torch.tensor([True, True, False, True, False, True])
    loss = model(Features(h, h_prime), None, pair._replace(valid=valid))
    (gradient,) = torch.autograd.grad(loss, h)
    assert (gradient[~valid] == 0).all()
    assert (gradient[valid].abs().sum(dim=1) > 0).all()


def test_zero_logits_give_log_k_and_the_true_bins_give_zero() -> None:
    pair, bins = a_pair(), Bins.uniform(-2.0, 2.0, 6)
    zero = BinnedActions(mlp(10, [], 24), bins)
    nn.init.zeros_(zero.head.output.weight)
    nn.init.zeros_(zero.head.output.bias)
    features = Features(torch.randn(6, 5), torch.randn(6, 5))
    assert zero(features, None, pair).item() == pytest.approx(math.log(6), abs=1e-6)

    class Oracle(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return F.one_hot(bins(pair.action), 6).float().flatten(1) * 100

    assert BinnedActions(Oracle(), bins)(features, None, pair).item() == pytest.approx(0, abs=1e-6)


def test_logits_belong_to_their_component() -> None:
    """Column block k of the head is component k: teach the head one component's bins and only its loss falls."""
    pair, bins = a_pair(), Bins.uniform(-2.0, 2.0, 6)
    target = bins(pair.action)

    class KnowsThird(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            logits = torch.zeros(6, 4, 6)
            logits[:, 2] = F.one_hot(target[:, 2], 6) * 100.0
            return logits.flatten(1)

    loss = BinnedActions(KnowsThird(), bins)(Features(torch.zeros(6, 5), torch.zeros(6, 5)), None, pair)
    assert loss.item() == pytest.approx(3 / 4 * math.log(6), abs=1e-6)


def test_regressed_actions_at_the_truth() -> None:
    pair = a_pair()
    std = torch.tensor([1.0, 2.0, 0.5, 1.0])

    class Says(nn.Module):
        def __init__(self, value: Tensor) -> None:
            super().__init__()
            self.value = value

        def forward(self, h: Tensor) -> Tensor:
            return self.value

    features = Features(torch.zeros(6, 5), torch.zeros(6, 5))
    assert RegressedActions(Says(pair.action), std=std)(features, None, pair).item() == 0.0
    off = RegressedActions(Says(pair.action + std), std=std)(features, None, pair)
    assert off.item() == pytest.approx(0.5, abs=1e-6)
    with pytest.raises(ValueError, match="constant components"):
        RegressedActions(nn.Identity(), std=torch.tensor([1.0, 0.0]))


def test_simclr_projects_both_views_in_one_pass() -> None:
    """BatchNorm in the projector sees 2b rows: two passes of b would give other numbers."""
    torch.manual_seed(0)
    projector = projection_head(5, 7, 3)
    h, h_prime = torch.randn(6, 5), torch.randn(6, 5) + 3
    loss = SimCLR(projector, temperature=0.5)(Features(h, h_prime), None, a_pair())
    joint = projector(torch.cat((h, h_prime)))
    torch.testing.assert_close(loss, nt_xent(joint[:6], joint[6:], 0.5))
    assert not torch.allclose(loss, nt_xent(projector(h), projector(h_prime), 0.5), atol=1e-3)


def test_encode_makes_one_pass_over_both_views() -> None:
    calls: list[int] = []

    class Counts(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            calls.append(len(x))
            return x[:, :3], x[:, 3:]

    pair = a_pair()
    features = encode(Counts(), pair)
    assert calls == [12]
    torch.testing.assert_close(features.x[1], pair.x[:, 3:])
    torch.testing.assert_close(features.x_prime[0], pair.x_prime[:, :3])
    alone = encode(Counts(), pair._replace(x_prime=None))
    assert alone.x_prime is None
    assert calls == [12, 6]


# --- the interface carries other methods ----------------------------------------------------------------------------


class CPC(InverseModel):
    """Over time: one view, whose features are (context, latents)."""

    def __init__(self, predictor: nn.Module) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, online: Features, target: Features | None, pair: ViewPair) -> Tensor:
        context, latents = online.x
        predicted, actual = self.predictor(context[:, :-1]).flatten(0, 1), latents[:, 1:].flatten(0, 1)
        return info_nce(predicted, actual, positives=torch.arange(len(actual)), temperature=1.0)


OTHERS: dict[str, Callable[[], InverseModel]] = {
    "BYOL": lambda: BYOL(nn.Linear(5, 4), nn.Linear(4, 4), momentum=0.99),
    "SimSiam": lambda: SimSiam(nn.Linear(5, 4), nn.Linear(4, 4)),
    "VICReg": lambda: VICReg(nn.Linear(5, 4), variance_weight=25.0),
    "BarlowTwins": lambda: BarlowTwins(nn.Linear(5, 4), redundancy=0.0051),
    "ReLIC": lambda: ReLIC(nn.Linear(5, 4), temperature=0.5, alpha=1.0, momentum=0.99),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_identity_models_fit_beside_manipulation(name: str) -> None:
    """Under one encoder, with a momentum encoder where they ask for one; every term is named, weighted and summed."""
    model = OTHERS[name]()
    manipulation = BinnedActions(mlp(10, [9], 4 * 6), Bins.uniform(-2.0, 2.0, 6))
    objective = STECObjective(
        {"identity": model, "manipulation": manipulation},
        {"identity": 3.0, "manipulation": 0.5, **dict.fromkeys(model.further, 0.7)},
    )
    encoder = nn.Linear(8, 5)
    target = MomentumEncoder(encoder, momentum=0.99)
    online = encode(encoder, a_pair())
    assert objective.needs_target == (name in ("BYOL", "ReLIC"))
    terms = objective(online, encode(target, a_pair()) if objective.needs_target else None, a_pair())
    assert set(terms) == {"identity", "manipulation", "loss"} | ({"regulariser"} if name == "VICReg" else set())
    weighted = 3.0 * terms["identity"] + 0.5 * terms["manipulation"]
    torch.testing.assert_close(terms["loss"], weighted + 0.7 * terms.get("regulariser", torch.zeros(())))
    for term in (value for label, value in terms.items() if label != "loss"):
        (gradient,) = torch.autograd.grad(term, encoder.weight, retain_graph=True)
        assert gradient.abs().sum() > 0


def test_a_sequence_model_fits() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.latents, self.context = nn.Linear(8, 6), nn.GRU(6, 5, batch_first=True)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            z = self.latents(x.unflatten(1, (-1, 8)))
            return self.context(z)[0], z

    pair = ViewPair(
        torch.randn(3, 80), None, torch.zeros(3, 0), torch.zeros(3, dtype=torch.bool), torch.zeros(3).long()
    )
    encoder = Encoder()
    objective = STECObjective({"time_sensitive": CPC(nn.Linear(5, 6))}, {"time_sensitive": 1.0})
    terms = objective(encode(encoder, pair), None, pair)
    terms["loss"].backward()
    assert terms["time_sensitive"].isfinite()
    assert encoder.context.weight_ih_l0.grad is not None


def heads_of_wrong_width() -> list[tuple[Callable[[], object], str]]:
    """Found at construction, since the head and the bins tell their widths."""
    two, any_number = Bins.uniform([-2.0, 0.0], [2.0, 1.0], 6), Bins.uniform(-2.0, 2.0, 6)
    return [
        (lambda: BinnedActions(nn.Linear(8, 10), two), "the head gives 10 values; need 2 components x 6 bins = 12"),
        (lambda: BinnedActions(mlp(8, [5], 6), two), "the head gives 6 values; need 2 components x 6 bins = 12"),
        (
            lambda: BinnedActions(mlp(8, [5], 10), any_number),
            "gives 10 values; need components x 6 bins, a multiple of 6",
        ),
        (lambda: RegressedActions(mlp(8, [5], 3), std=torch.ones(2)), "the head gives 3 values; need 2, one for each"),
    ]


@pytest.mark.parametrize(("build", "message"), heads_of_wrong_width())
def test_a_head_of_wrong_width_is_named_when_it_is_built(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


class Wide(nn.Module):
    """A head that does not tell its width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, h: Tensor) -> Tensor:
        return h.new_zeros(len(h), self.width)


def test_a_lazy_head_learns_its_width_from_the_features() -> None:
    head = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 12))
    model = BinnedActions(head, Bins.uniform([-2.0, 0.0], [2.0, 1.0], 6))
    assert model.logits(Features(torch.zeros(3, 5), torch.zeros(3, 5))).shape == (3, 2, 6)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            BinnedActions(Wide(10), Bins.uniform([-2.0, 0.0], [2.0, 1.0], 6)),
            "gives 10 values; need 2 components x 6 bins = 12",
        ),
        (BinnedActions(Wide(18), Bins.uniform(-2.0, 2.0, 6)), "gives 18 values; need 2 components x 6 bins = 12"),
        (BinnedActions(Wide(10), Bins.uniform(-2.0, 2.0, 6)), "need components x 6 bins, a multiple of 6"),
        (
            BinnedActions(mlp(12, [], 12), Bins.uniform(-2.0, 2.0, 6)),
            "head takes 12 values; the features are 5 wide, need 2 x 5 = 10",
        ),
        (RegressedActions(Wide(3), std=torch.ones(2)), "gives 3 values; need 2"),
        (
            RegressedActions(mlp(5, [4], 2), std=torch.ones(2)),
            "head takes 5 values; the features are 5 wide, need 2 x 5 = 10",
        ),
        (RegressedActions(Wide(3), std=torch.ones(3)), "std is for 3 components, the actions have 2"),
    ],
)
def test_a_head_of_wrong_width_is_named_at_the_first_call(model: InverseModel, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(Features(torch.zeros(6, 5), torch.zeros(6, 5)), None, a_pair(d=2))


def test_features_that_are_no_vectors_are_named() -> None:
    model = BinnedActions(mlp(10, [], 12), Bins.uniform(-2.0, 2.0, 6))
    with pytest.raises(ValueError, match=r"gives \(6, 5, 3\) for x; .* one vector a view"):
        model(Features(torch.zeros(6, 5, 3), torch.zeros(6, 5, 3)), None, a_pair(d=2))
    with pytest.raises(ValueError, match=r"gives NoneType for x'"):
        model(Features(torch.zeros(6, 5), None), None, a_pair(d=2))


def test_a_pair_of_what_is_known_is_valid_and_unlabelled() -> None:
    x, x_prime, action = torch.rand(3, 8), torch.rand(3, 8), torch.rand(3, 2, dtype=torch.float64)
    pair = ViewPair.of(x, x_prime, action)
    assert pair.x is x
    assert pair.x_prime is x_prime
    assert pair.action is action
    assert pair.valid.tolist() == [True] * 3
    assert pair.label.tolist() == [-1] * 3
    assert pair[5:] == (None, None, None)
    valid, label = torch.tensor([True, False, True]), torch.tensor([4, 5, 6])
    told = ViewPair.of(x, x_prime, action, valid=valid, label=label)
    assert told.valid is valid
    assert told.label is label
