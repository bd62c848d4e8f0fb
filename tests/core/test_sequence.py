"""CPC and the time-insensitive identity models against closed forms, loops in float64, and their symmetries."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from stec.core.actions import ViewPair
from stec.core.losses import cpc, cpc_steps, lag_free_nce, switch_nll, two_way_nce
from stec.core.objective import Features
from stec.core.sequence import (
    CPC,
    FrameIdentity,
    LinearPredictor,
    MLPPredictor,
    PooledIdentity,
    Predictor,
    Scores,
    SwitchIdentity,
    TransformerPredictor,
)


def pair(b: int, *, object: Tensor | None = None, group: Tensor | None = None) -> ViewPair:
    x = torch.zeros(b, 1)
    return ViewPair(x, None, torch.zeros(b, 0), torch.ones(b, dtype=torch.bool), torch.zeros(b).long(), object, group)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def value(loss: Tensor) -> float:
    return float(loss.detach())


def loop(predictions: Tensor, latents: Tensor, group: int, allowed: Tensor | None = None) -> Tensor:
    """CPC written out: every anchor, every step, every candidate."""
    b, t, steps, _ = predictions.shape
    per_step = []
    for k in range(1, steps + 1):
        surprises = []
        for i in range(b):
            start = i // group * group
            for s in range(t - k):
                query = predictions[i, s, k - 1]
                own = latents[i, s + k]
                scores = [query @ own]
                for j in range(start, start + group):
                    if allowed is None or allowed[i, j]:
                        scores += [query @ latents[j, u] for u in range(t) if (j, u) != (i, s + k)]
                surprises.append(torch.stack(scores).logsumexp(0) - query @ own)
        per_step.append(torch.stack(surprises).mean())
    return torch.stack(per_step)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("block", [7, 100, 1 << 20])
def test_cpc_and_its_gradients_against_the_loop(group: int, block: int) -> None:
    predictions, latents = random(4, 6, 3, 5).requires_grad_(), random(4, 6, 5, seed=1).requires_grad_()
    expected = loop(predictions, latents, group)
    wanted = torch.autograd.grad(expected.mean(), (predictions, latents))
    loss = cpc(predictions, latents, group=group, block=block)
    found = torch.autograd.grad(loss, (predictions, latents))
    assert torch.allclose(loss, expected.mean(), rtol=1e-12)
    assert torch.allclose(cpc_steps(predictions, latents, group=group, block=block), expected, rtol=1e-12)
    for a, b in zip(found, wanted):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_cpc_with_latents_of_each_step_and_one_prediction() -> None:
    predictions, latents = random(2, 6, 1, 5).requires_grad_(), random(2, 6, 3, 5, seed=1).requires_grad_()
    per_step = []
    for k in range(1, 4):
        wide = predictions.expand(-1, -1, k, -1)
        per_step.append(loop(wide, latents[:, :, k - 1], 2)[k - 1])
    expected = torch.stack(per_step).mean()
    loss = cpc(predictions, latents, group=2)
    assert torch.allclose(loss, expected, rtol=1e-12)
    wanted = torch.autograd.grad(expected, (predictions, latents))
    for a, b in zip(torch.autograd.grad(loss, (predictions, latents)), wanted):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_cpc_with_candidates_left_out_against_the_loop() -> None:
    predictions, latents = random(4, 5, 2, 3).requires_grad_(), random(4, 5, 3, seed=1).requires_grad_()
    allowed = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]).bool()
    expected = loop(predictions, latents, 2, allowed)
    loss = cpc(predictions, latents, group=2, candidates=allowed)
    assert torch.allclose(loss, expected.mean(), rtol=1e-12)
    wanted = torch.autograd.grad(expected.mean(), (predictions, latents))
    for a, b in zip(torch.autograd.grad(loss, (predictions, latents)), wanted):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_cpc_passes_gradcheck() -> None:
    predictions, latents = random(2, 5, 2, 3).requires_grad_(), random(2, 5, 3, seed=1).requires_grad_()
    draws = torch.randint(1 << 30, (2, 5, 4), generator=torch.Generator().manual_seed(0))
    for layout in ({"group": 1}, {"group": 2}, {"group": 2, "draws": draws}):
        assert torch.autograd.gradcheck(lambda p, z, layout=layout: cpc(p, z, **layout), (predictions, latents))


def test_cpc_has_no_second_derivative() -> None:
    predictions = random(2, 5, 2, 3).requires_grad_()
    loss = cpc(predictions, random(2, 5, 3))
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(loss, predictions, create_graph=True)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_draws_pick_every_other_candidate_equally_and_never_the_positive(group: int) -> None:
    """With logits that name their column, the picked ones can be read off the gradient."""
    t, n = 4, 6000
    allowed = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    latents = torch.eye(4 * t, dtype=torch.float64).view(4, t, 4 * t)
    predictions = torch.zeros(4, t, 1, 4 * t, dtype=torch.float64, requires_grad=True)
    draws = torch.randint(1 << 31, (4, t, n), generator=torch.Generator().manual_seed(0))
    grad = torch.autograd.grad(cpc(predictions, latents, group=group, candidates=allowed, draws=draws), predictions)[0][
        :, :-1, 0
    ] * (4 * (t - 1))
    for i in range(4):
        start = i // group * group
        columns = [j * t + u for j in range(start, start + group) if bool(allowed[i, j]) for u in range(t)]
        for s in range(t - 1):
            positive = i * t + s + 1
            others = [column for column in columns if column != positive]
            share = grad[i, s] * (n + 1)
            assert share[others].numpy() == pytest.approx(n / len(others), abs=5 * math.sqrt(n))
            assert float(share[positive]) == pytest.approx(1 - (n + 1))
            assert float(grad[i, s].abs().sum() - grad[i, s][[*others, positive]].abs().sum()) == pytest.approx(
                0, abs=1e-12
            )


@given(st.integers(2, 5), st.integers(3, 9), st.integers(1, 2), st.integers(1, 4))
def test_a_blank_context_gives_the_log_of_the_number_of_candidates(b: int, t: int, k: int, n: int) -> None:
    z = random(b, t, 3)
    blank = torch.zeros(b, t, k, 3, dtype=torch.float64)
    draws = torch.arange(b * t * n).view(b, t, n)
    assert float(cpc(blank, z)) == pytest.approx(math.log(b * t))
    assert float(cpc(blank, z, group=1)) == pytest.approx(math.log(t))
    assert float(cpc(blank, z, draws=draws)) == pytest.approx(math.log(1 + n))
    assert float(lag_free_nce(blank[:, :, 0], z)) == pytest.approx(math.log(1 + (b - 1) * t))


def features(b: int = 4, t: int = 10, *, seed: int = 0, views: int = 1) -> Features:
    x = [(random(b, t, 3, seed=seed + i), random(b, t, 5, seed=seed + 10 + i)) for i in range(views)]
    return Features(x[0], x[1] if views == 2 else None)


@pytest.mark.parametrize(
    ("negatives", "count"), [("sequence", 10), ("same group", 20), ("batch group", 20), ("all", 40)]
)
def test_named_negatives_have_their_chance_level(negatives: str, count: int) -> None:
    model = CPC(LinearPredictor(3, 5, steps=2), negatives=negatives, batch_group=2).double()  # type: ignore[arg-type]
    speakers = pair(4, group=torch.tensor([0, 0, 1, 1]))
    assert model.chance(features(), speakers) == pytest.approx(math.log(count))


def test_negatives_of_the_same_group_leave_out_others_and_own_sequences() -> None:
    speakers = pair(4, group=torch.tensor([0, 1, 0, 1]))
    model = CPC(LinearPredictor(3, 5, steps=2), negatives="same group", batch_group=4).double()
    assert model.chance(features(), speakers) == pytest.approx(math.log(20))
    model.own_sequence = False  # the positive, and the one other sequence of the speaker
    assert model.chance(features(), speakers) == pytest.approx(math.log(11))
    model.samples = 3
    assert model.chance(features(), speakers) == pytest.approx(math.log(4))


def test_negatives_of_the_same_group_need_groups() -> None:
    model = CPC(LinearPredictor(3, 5, steps=2), negatives="same group").double()
    with pytest.raises(ValueError, match=r"pair\.group"):
        model(features(), None, pair(4))


@pytest.mark.parametrize("own", [(2, 7), (7, 2)])
def test_a_linear_predictor_scores_alike_in_either_space(own: tuple[int, int]) -> None:
    """<W_k c, z> by hand, with context narrower than latents and wider."""
    d, f = own
    predictor = LinearPredictor(d, f, steps=3, scale=0.5).double()
    context, latents = random(2, 6, d), random(2, 6, f, seed=1)
    queries, keys = predictor(context, latents)
    assert queries.shape[3] == min(d, f)
    for k in range(3):
        q, z = queries[:, :, min(k, queries.shape[2] - 1)], keys[:, :, min(k, keys.shape[2] - 1)]
        expected = 0.5 * torch.einsum("btd,fd,buf->btu", context, predictor.weight[k], latents)
        assert torch.allclose(torch.einsum("bte,bue->btu", q, z), expected)


@pytest.mark.parametrize(
    "predictor",
    [MLPPredictor(3, 5, steps=2, hidden=4), TransformerPredictor(4, 5, steps=2, heads=2)],
    ids=["mlp", "transformer"],
)
def test_other_predictors_know_the_past_alone(predictor: nn.Module) -> None:
    torch.manual_seed(0)  # another start, as the order of tests draws it, may have no unit above its ReLU
    for part in predictor.modules():
        if isinstance(part, nn.Linear):
            part.reset_parameters()
    d = 3 if isinstance(predictor, MLPPredictor) else 4
    context, latents = random(2, 6, d).float().requires_grad_(), random(2, 6, 5).float()
    scores: Scores = predictor(context, latents)
    assert scores.queries.shape == (2, 6, 2, 5)
    slope = torch.autograd.grad(scores.queries[:, 3].square().sum(), context)[0]
    assert float(slope[:, 4:].abs().sum()) == 0
    assert float(slope[:, 3].abs().sum()) > 0


def test_samples_are_a_function_of_the_call_and_change_with_it() -> None:
    first, second = (CPC(LinearPredictor(3, 5, steps=2), negatives="all", samples=3) for _ in range(2))
    draw = [first._draw((4, 5, 3), torch.device("cpu")) for _ in range(2)]
    assert not torch.equal(draw[0], draw[1])
    second.load_state_dict(first.state_dict())
    assert int(second.calls) == 2
    assert torch.equal(first._draw((4, 5, 3), torch.device("cpu")), second._draw((4, 5, 3), torch.device("cpu")))
    bits = first._draw((64, 64, 16), torch.device("cpu"))
    assert float(bits.double().mean()) == pytest.approx((1 << 31) / 2, rel=0.01)
    assert float((bits % 7 == 3).double().mean()) == pytest.approx(1 / 7, rel=0.03)


def heads(d: int = 3, f: int = 5) -> tuple[nn.Module, nn.Module]:
    return nn.Linear(d, 6).double(), nn.Linear(f, 6).double()


def insensitive() -> dict[str, nn.Module]:
    return {
        "pooled": PooledIdentity(nn.Linear(3, 4).double(), temperature=0.5),
        "frames": FrameIdentity(*heads(), batch_group=4),
        "switch": SwitchIdentity(*heads()),
    }


def permuted(view: tuple[Tensor, Tensor], order: Tensor) -> tuple[Tensor, Tensor]:
    return view[0][:, order], view[1][:, order]


@pytest.mark.parametrize("form", ["pooled", "frames", "switch"])
@given(st.permutations(range(6)), st.permutations(range(6)))
def test_the_order_of_frames_is_nothing_to_the_time_insensitive_models(
    form: str, first: list[int], second: list[int]
) -> None:
    torch.manual_seed(0)
    model = insensitive()[form]
    two = features(4, 6, views=2)
    other = Features(permuted(two.x, torch.tensor(first)), permuted(two.x_prime, torch.tensor(second)))
    assert value(model(two, None, pair(4))) == pytest.approx(value(model(other, None, pair(4))), rel=1e-12)
    one = features(4, 12)
    halves = torch.cat((torch.tensor(first), 6 + torch.tensor(second)))
    other = Features(permuted(one.x, halves), None)
    assert value(model(one, None, pair(4))) == pytest.approx(value(model(other, None, pair(4))), rel=1e-12)


@given(st.permutations(range(6)).filter(lambda order: order != sorted(order)))
def test_the_order_of_frames_matters_to_the_time_sensitive_model(order: list[int]) -> None:
    torch.manual_seed(0)
    model = CPC(LinearPredictor(3, 5, steps=2), negatives="batch group", batch_group=4).double()
    one = features(4, 6)
    other = Features(permuted(one.x, torch.tensor(order)), None)
    assert abs(value(model(one, None, pair(4))) - value(model(other, None, pair(4)))) > 1e-6


def test_pooled_identity_is_the_two_way_softmax_of_means() -> None:
    model = PooledIdentity(nn.Linear(3, 4).double(), temperature=0.5)
    two = features(views=2)
    u, v = (nn.functional.normalize(model.projector(view[0].mean(dim=1)), dim=1) for view in two.pair)
    logits = u @ v.T / 0.5
    expected = -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()).mean() / 2
    assert torch.allclose(model(two, None, pair(4)), expected, rtol=1e-12)
    model.pooling = "last"
    u, v = (nn.functional.normalize(model.projector(view[0][:, -1]), dim=1) for view in two.pair)
    logits = u @ v.T / 0.5
    expected = -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()).mean() / 2
    assert torch.allclose(model(two, None, pair(4)), expected, rtol=1e-12)


@pytest.mark.parametrize("t", [6, 7])
def test_one_view_is_its_first_and_its_last_half(t: int) -> None:
    """Of 7 frames the first 3 and the last 3; frames and switch ask context of the first, latents of the last."""
    b, half, models = 4, t // 2, insensitive()
    context, latents = features(b, t).x
    first, last = slice(0, half), slice(t - half, t)

    pooled, frames, switch = models["pooled"], models["frames"], models["switch"]
    for part, pooling in (("context", "mean"), ("context", "last"), ("latents", "mean")):
        view = context if part == "context" else latents
        halves = [sum(view[:, i] for i in range(s.start, s.stop)) / half for s in (first, last)]
        if pooling == "last":
            halves = [view[:, half - 1], view[:, t - 1]]
        projector = pooled.projector if part == "context" else frames.latent_head
        model = PooledIdentity(projector, temperature=0.5, part=part, pooling=pooling)  # type: ignore[arg-type]
        u, v = (nn.functional.normalize(projector(stretch), dim=1) for stretch in halves)
        logits = u @ v.T / 0.5
        expected = -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()).mean() / 2
        assert value(model(features(b, t), None, pair(b))) == pytest.approx(value(expected), rel=1e-12), (part, pooling)

    q, z = frames.context_head(context)[:, first], frames.latent_head(latents)[:, last]
    surprises = []
    for i in range(b):
        for s in range(half):
            negative = sum(torch.exp(q[i, s] @ z[j, u]) for j in range(b) if j != i for u in range(half))
            surprises += [-torch.log((p := torch.exp(q[i, s] @ z[i, u])) / (p + negative)) for u in range(half)]
    expected = torch.stack(surprises).mean()
    assert value(frames(features(b, t), None, pair(b))) == pytest.approx(value(expected), rel=1e-12)

    objects = switch.context_head(context[:, first].mean(dim=1)) / math.sqrt(6)
    z = switch.latent_head(latents)[:, last]
    scores = torch.stack([torch.stack([z[i] @ objects[m] for i in range(b)]) for m in range(b)])
    same = torch.eye(b, dtype=torch.bool)
    expected = -(scores[same].sigmoid().log().mean() + (-scores[~same]).sigmoid().log().mean()) / 2
    assert value(switch(features(b, t), None, pair(b))) == pytest.approx(value(expected), rel=1e-12)


def test_rows_of_one_object_are_no_negatives_of_each_other() -> None:
    """Equal rows 0 and 1 of the same object: left out, they cost nothing; told apart, log 2."""
    u = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert float(two_way_nce(u, u, 1.0)) == pytest.approx(math.log(2))
    assert float(two_way_nce(u, u, 1.0, candidates=torch.zeros(2, 2, dtype=torch.bool))) == 0
    same = pair(4, object=torch.tensor([7, 7, 8, 9]))
    loss = {name: value(model(features(views=2), None, same)) for name, model in insensitive().items()}
    torch.manual_seed(0)
    for name, model in insensitive().items():
        assert loss[name] != pytest.approx(value(model(features(views=2), None, pair(4)))), name


@pytest.mark.parametrize("form", ["pooled", "frames", "switch"])
def test_other_groups_and_same_group_share_out_the_negatives(form: str) -> None:
    """A blank model's loss counts the candidates."""
    model = insensitive()[form]
    for parameter in model.parameters():
        parameter.data.zero_()
    if form == "pooled":
        model.projector.bias.data.fill_(1.0)  # collapsed, not of length 0
    speakers = pair(4, group=torch.tensor([0, 0, 0, 1]))
    counts = {"all": [3, 3, 3, 3], "same group": [2, 2, 2, 0], "other groups": [1, 1, 1, 3]}
    t = 10
    for others, count in counts.items():
        model.others = others  # type: ignore[assignment]
        loss = value(model(features(views=2), None, speakers))
        if form == "pooled":
            expected = sum(math.log(1 + n) for n in count if n) / sum(n > 0 for n in count)
        elif form == "frames":
            expected = sum(math.log(1 + n * t) for n in count if n) / sum(n > 0 for n in count)
        else:
            expected = math.log(2)
        assert loss == pytest.approx(expected), others


def test_lag_free_nce_against_the_loop_and_gradcheck() -> None:
    q, z = random(4, 3, 2).requires_grad_(), random(4, 5, 2, seed=1).requires_grad_()
    allowed = torch.tensor([[1, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 0], [0, 0, 1, 0]]).bool()
    surprises = []
    for i in range(4):
        others = [j for j in range(i // 2 * 2, i // 2 * 2 + 2) if j != i and allowed[i, j]]
        if not others:
            continue
        rows = []
        for t in range(3):
            negative = sum(torch.exp(q[i, t] @ z[j, u]) for j in others for u in range(5))
            rows += [-torch.log((p := torch.exp(q[i, t] @ z[i, u])) / (p + negative)) for u in range(5)]
        surprises.append(torch.stack(rows).mean())
    loss = lag_free_nce(q, z, group=2, candidates=allowed)
    assert len(surprises) == 2
    assert torch.allclose(loss, torch.stack(surprises).mean(), rtol=1e-12)
    assert torch.autograd.gradcheck(lambda a, b: lag_free_nce(a, b, group=2, candidates=allowed), (q, z))
    nothing = lag_free_nce(q, z, candidates=torch.zeros(4, 4, dtype=torch.bool))
    assert value(nothing) == 0
    assert all(float(g.abs().sum()) == 0 for g in torch.autograd.grad(nothing, (q, z)))


def test_switch_nll_against_binary_cross_entropy() -> None:
    u, z = random(3, 2).requires_grad_(), random(3, 4, 2, seed=1).requires_grad_()
    same = torch.eye(3, dtype=torch.bool)
    answers = torch.eye(3, dtype=torch.float64)[:, :, None].expand(3, 3, 4)
    scores = torch.einsum("mf,buf->mbu", u, z)
    surprise = nn.functional.binary_cross_entropy_with_logits(scores, answers, reduction="none")
    expected = torch.stack((surprise[same].mean(), surprise[~same].mean()))
    assert torch.allclose(switch_nll(u, z, same=same, different=~same), expected, rtol=1e-12)


def test_time_insensitive_losses_are_computed_in_float32_under_autocast() -> None:
    u, q, z = random(4, 16).float(), random(4, 3, 16).float(), random(4, 5, 16, seed=1).float()
    same = torch.eye(4, dtype=torch.bool)
    plain = lag_free_nce(q, z), switch_nll(u, z, same=same, different=~same)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = lag_free_nce(q, z), switch_nll(u, z, same=same, different=~same)
    for found, expected in zip(narrow, plain):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    # and features that come in bf16 are multiplied as what they are
    halves = lag_free_nce(q.bfloat16(), z.bfloat16()), lag_free_nce(q.bfloat16().float(), z.bfloat16().float())
    torch.testing.assert_close(*halves, rtol=0, atol=0)


def test_cpc_of_two_views_is_the_mean_of_both() -> None:
    model: CPC = CPC(LinearPredictor(3, 5, steps=2), negatives="batch group", batch_group=2).double()
    two = features(views=2)
    each = [model(Features(view, None), None, pair(4)) for view in two.pair]
    assert torch.allclose(model(two, None, pair(4)), torch.stack(each).mean(), rtol=1e-12)


@pytest.mark.unchecked
def test_bad_shapes_and_options_say_what_is_wrong() -> None:
    z = random(4, 5, 3)
    with pytest.raises(ValueError, match="groups of 3"):
        cpc(random(4, 5, 2, 3), z, group=3)
    with pytest.raises(ValueError, match="fewer steps"):
        cpc(random(4, 5, 5, 3), z)
    with pytest.raises(ValueError, match="do not match"):
        cpc(random(4, 6, 2, 3), z)
    predictor: Predictor = LinearPredictor(3, 5, steps=2)
    with pytest.raises(ValueError, match="are none"):
        CPC(predictor, negatives="sequence", own_sequence=False)
    with pytest.raises(ValueError, match="samples is 0"):
        CPC(predictor, negatives="all", samples=0)
    with pytest.raises(ValueError, match="no two halves"):
        PooledIdentity(nn.Identity(), temperature=1.0)(features(t=1), None, pair(4))
