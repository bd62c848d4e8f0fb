"""Heads in one pass: against a loop of torch.nn.Linear in float64, alone against among others, what they refuse."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from stec.core import frames
from stec.core.actions import step_seed
from stec.core.heads import PROTOCOLS, Head, TrainedHeads, train_heads

QUICK: dict[str, Any] = {"seed": 0, "epochs": 3, "batch_size": 32, "lr": 1e-2}


def _data(n: int = 300, f: int = 6, classes: int = 4, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy clouds, of which a linear head gets some right and some wrong; a third of the frames do not count."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, f, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(classes, (n,), generator=generator)
    x = 3 * centres[labels] + 2 * torch.randn(n, f, generator=generator) + 5
    return x, torch.where(torch.rand(n, generator=generator) < 1 / 3, -1, labels)


def _same(a: TrainedHeads, b: TrainedHeads, name: str, *, other: str | None = None, tolerance: float = 1e-4) -> bool:
    pairs = zip(a.layers[name], b.layers[other or name], strict=True)
    return all(torch.allclose(p, q, atol=tolerance) for ours, theirs in pairs for p, q in zip(ours, theirs))


@pytest.mark.parametrize("hidden", [None, 5])
@pytest.mark.parametrize("cosine", [True, False])
def test_weights_are_those_of_a_loop_in_float64(hidden: int | None, cosine: bool) -> None:
    x, y = _data()
    trained = train_heads({"c": x}, {"y": y}, {"h": Head("c", "y", 4, hidden)}, cosine=cosine, **QUICK)
    start = train_heads({"c": x}, {"y": y}, {"h": Head("c", "y", 4, hidden)}, **{**QUICK, "lr": 1e-30})
    layers = [nn.Linear(*weight.shape).double() for weight, _ in start.layers["h"]]
    for layer, (weight, bias) in zip(layers, start.layers["h"]):
        layer.weight.data, layer.bias.data = weight.T.double(), bias.double()
    net = nn.Sequential(*layers) if hidden is None else nn.Sequential(layers[0], nn.ReLU(), layers[1])
    scaled = (x.double() - x.double().mean(0)) / x.double().std(0, correction=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    step, losses = 0, []
    for epoch in range(3):
        nats = torch.zeros(0, dtype=torch.float64)
        generator = torch.Generator().manual_seed(step_seed(0, epoch, stream=1))
        for chunk, batches in frames.epoch_order(300, 10, 1, generator):
            for batch in batches:
                rows = [i for i in chunk[batch].tolist() if y[i] >= 0]
                loss = F.cross_entropy(net(scaled[rows]), y[rows], reduction="none")
                optimizer.param_groups[0]["lr"] = 1e-2 * (0.5 * (1 + math.cos(math.pi * step / 30)) if cosine else 1)
                optimizer.zero_grad()
                loss.mean().backward()
                optimizer.step()
                nats = torch.cat((nats, loss.detach()))
                step += 1
        losses.append(float(nats.mean()))
    assert step == 30
    assert trained.losses["h"] == pytest.approx(losses, rel=1e-5)
    for layer, (weight, bias) in zip(layers, trained.layers["h"]):
        assert torch.allclose(weight.double(), layer.weight.data.T, atol=1e-5)
        assert torch.allclose(bias.double(), layer.bias.data, atol=1e-5)
    logits = trained.logits("h", x)
    assert torch.allclose(logits.double(), net(scaled), atol=1e-4)
    assert torch.equal(trained.predict("h", x), logits.argmax(1))
    assert torch.equal(trained.correct("h", x, y), logits.argmax(1) == y)


def test_weights_start_xavier_normal_with_biases_of_0() -> None:
    x, y = _data(f=200)
    start = train_heads({"c": x}, {"y": y}, {"h": Head("c", "y", 100, 80)}, **{**QUICK, "lr": 1e-30})
    for (weight, bias), shape in zip(start.layers["h"], [(200, 80), (80, 100)]):
        assert weight.shape == shape
        assert float(weight.std()) == pytest.approx(math.sqrt(2 / sum(shape)), rel=0.03)
        assert float(bias.abs().max()) < 1e-20


def test_a_head_learns_the_same_alone_as_among_others() -> None:
    x, y = _data()
    features = {"c": x, "z": _data(f=9)[0]}
    labels = {"phone": y, "late": y.roll(2), "speaker": torch.arange(300) // 150}
    heads = {
        "phone": Head("c", "phone", 4),
        "late": Head("c", "late", 4),
        "phone of z": Head("z", "phone", 4),
        "speaker": Head("c", "speaker", 2),
        "hidden": Head("c", "phone", 4, 5),
        "late hidden": Head("c", "late", 4, 5),
    }
    together = train_heads(features, labels, heads, **QUICK)
    for name, head in heads.items():
        alone = train_heads(features, labels, {name: head}, **QUICK)
        assert _same(together, alone, name), name
        assert together.losses[name] == pytest.approx(alone.losses[name], rel=1e-4)
        values = features[head.features]
        assert torch.allclose(together.logits(name, values), alone.logits(name, values), atol=1e-3)
    assert not _same(together, together, "phone", other="late", tolerance=1e-2)


def test_what_is_drawn_is_a_function_of_the_seed() -> None:
    x, y = _data()
    first, again, other = (
        train_heads({"c": x}, {"y": y}, {"h": Head("c", "y", 4)}, **{**QUICK, "seed": seed}) for seed in (0, 0, 1)
    )
    assert _same(first, again, "h", tolerance=0.0)
    assert not _same(first, other, "h")


def test_rows_are_as_a_set_of_these_frames_alone() -> None:
    x, y = _data()
    rows = torch.arange(0, 300, 2)
    some = train_heads({"c": x}, {"y": y}, {"h": Head("c", "y", 4)}, rows=rows, **QUICK)
    alone = train_heads({"c": x[rows]}, {"y": y[rows]}, {"h": Head("c", "y", 4)}, **QUICK)
    assert _same(some, alone, "h", tolerance=1e-6)
    # A frame that is not among the rows may be anything.
    x[1], y[1] = torch.nan, 77
    assert _same(train_heads({"c": x}, {"y": y}, {"h": Head("c", "y", 4)}, rows=rows, **QUICK), some, "h")


def test_features_that_never_vary_stay_0_and_scale_does_not_matter() -> None:
    x, y = _data()
    x[:, 2] = 1e4
    heads = {"h": Head("c", "y", 4)}
    plain = train_heads({"c": x}, {"y": y}, heads, **QUICK)
    moved = x * torch.tensor([1e-3, 1.0, 1.0, 1e3, 1.0, 1.0]) + torch.tensor([0.0, 4.0, 0.0, 0.0, 0.0, 0.0])
    assert _same(plain, train_heads({"c": moved}, {"y": y}, heads, **QUICK), "h", tolerance=1e-3)
    away = x.clone()
    away[:, 2] = -3.0
    assert torch.equal(plain.logits("h", x), plain.logits("h", away))
    raw = train_heads({"c": x}, {"y": y}, heads, standardise=False, **QUICK)
    assert not torch.equal(raw.logits("h", x), raw.logits("h", away))
    weight, bias = raw.layers["h"][0]
    assert torch.allclose(raw.logits("h", x), x @ weight + bias, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_float_type_are_converted_and_left_as_they_are(dtype: torch.dtype) -> None:
    x, y = _data()
    narrow = x.to(dtype)
    before = narrow.clone()
    trained = train_heads({"c": narrow}, {"y": y}, {"h": Head("c", "y", 4)}, **QUICK)
    exact = train_heads({"c": before.float()}, {"y": y}, {"h": Head("c", "y", 4)}, **QUICK)
    assert _same(trained, exact, "h", tolerance=1e-6)
    assert torch.equal(narrow, before)
    assert trained.logits("h", narrow).dtype == torch.float32


def test_memory_mapped_features(tmp_path: Path) -> None:
    x, y = _data()
    x.numpy().tofile(tmp_path / "c.bin")
    mapped = torch.from_file(str(tmp_path / "c.bin"), shared=False, size=x.numel()).view_as(x)
    ours, theirs = (
        train_heads({"c": values}, {"y": y}, {"h": Head("c", "y", 4)}, block=16, **QUICK) for values in (mapped, x)
    )
    assert _same(ours, theirs, "h", tolerance=0.0)


@given(m=st.integers(1, 500), size=st.integers(1, 600), block=st.integers(1, 70), chunk=st.integers(1, 200))
def test_an_epoch_holds_every_frame_once_in_batches_of_like_size(m: int, size: int, block: int, chunk: int) -> None:
    steps = math.ceil(m / size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "CHUNK", chunk)
        order = list(frames.epoch_order(m, steps, block, torch.Generator().manual_seed(0)))
    batches = [rows[batch] for rows, some in order for batch in some]
    sizes = [len(batch) for batch in batches]
    assert sorted(torch.cat(batches).tolist()) == list(range(m))
    assert len(batches) == steps
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert all(bool((rows.diff() > 0).all()) for rows, _ in order)


def test_blocks_are_read_in_runs_and_mixed_within_a_chunk() -> None:
    generator = torch.Generator().manual_seed(0)
    (first, batches), *_ = frames.epoch_order(100_000, 100, 128, generator)
    runs = 1 + int((first.diff() != 1).sum())
    assert runs <= len(first) / 128 + 1
    assert len({int(row) // 128 for row in first[batches[0]]}) > 100  # a batch of 1,000 is no 8 runs


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_protocols_are_keywords(protocol: str) -> None:
    x, y = _data()
    done: list[tuple[int, int]] = []
    settings = PROTOCOLS[protocol]
    trained = train_heads(
        {"c": x},
        {"y": y},
        {"h": Head("c", "y", 4)},
        seed=0,
        progress=lambda epoch, of: done.append((epoch, of)),
        **settings,
    )
    assert done == [(i + 1, settings["epochs"]) for i in range(settings["epochs"])]
    assert trained.losses["h"][-1] < trained.losses["h"][0]


def test_blocks_of_rows_give_what_one_block_does(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = _data()
    trained = train_heads({"c": x}, {"y": y}, {"h": Head("c", "y", 4)}, **QUICK)
    whole, scaling = trained.logits("h", x), trained.scaling["c"]
    monkeypatch.setattr(frames, "CHUNK", 7)
    assert torch.allclose(trained.logits("h", x), whole, atol=1e-5)
    for ours, theirs in zip(frames.scaling("c", x, None, True, torch.device("cpu")), scaling):
        assert torch.allclose(ours, theirs, rtol=1e-6)


NAN = torch.full((300, 6), torch.nan)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": {"y": torch.zeros(299, dtype=torch.long)}}, r"same frames.*'y'\": 299"),
        ({"labels": {"y": torch.full((300,), 4)}}, "classes 0 to 3, labels 'y' run from 4 to 4; raise"),
        ({"labels": {"y": torch.full((300,), -2)}}, "no labelled frame"),
        ({"labels": {"y": torch.arange(300) % 4 - 2}}, "run from -2 to 1"),
        ({"labels": {"y": torch.full((300,), -1)}}, "'h' has no labelled frame in 'y'"),
        ({"rows": torch.arange(5), "labels": {"y": torch.arange(300).clamp(4) - 5}}, "'h' has no labelled frame"),
        ({"rows": torch.tensor([300])}, "each in 0 to 299"),
        ({"features": {"c": NAN}}, "features 'c': 300 of 300 frames hold NaN"),
        ({"features": {"z": NAN}}, "a head reads features 'c'; given are z"),
        ({"labels": {}}, "a head reads labels 'y'; given are none"),
        ({"heads": {}}, "no heads"),
        ({"heads": {"h": Head("c", "y", 4, 0)}}, "0 hidden units"),
        ({"epochs": 0}, "epochs is 0"),
        ({"lr": 0.0}, "lr 0.0"),
        ({"lr": 1e38, "standardise": False}, "heads h diverged in epoch 0 at lr 1e[+]38; lower lr"),
    ],
)
def test_refused(changes: dict[str, Any], words: str) -> None:
    x, y = _data()
    given: dict[str, Any] = {"features": {"c": x}, "labels": {"y": y}, "heads": {"h": Head("c", "y", 4)}, **QUICK}
    with pytest.raises(ValueError, match=words):
        train_heads(**{**given, **changes})


@pytest.mark.unchecked
def test_refused_of_trained_heads() -> None:
    x, y = _data()
    trained = train_heads({"c": x}, {"y": y}, {"h": Head("c", "y", 4)}, **QUICK)
    with pytest.raises(ValueError, match="no head 'g'; there are h"):
        trained.predict("g", x)
    with pytest.raises(ValueError, match="trained on 6 features, these are 5"):
        trained.logits("h", x[:, :5])
    with pytest.raises(ValueError, match="'h': the features hold NaN"):
        trained.predict("h", NAN)
    with pytest.raises(ValueError, match="300 frames have 299 labels"):
        trained.correct("h", x, y[1:])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_heads_on_a_gpu_equal_those_on_the_cpu() -> None:
    x, y = _data()
    heads = {"h": Head("c", "y", 4), "hidden": Head("c", "y", 4, 5)}
    on_cpu = train_heads({"c": x}, {"y": y}, heads, **QUICK)
    moved = train_heads({"c": x}, {"y": y}, heads, device="cuda", **QUICK)
    resident = train_heads({"c": x.cuda()}, {"y": y.cuda()}, heads, rows=torch.arange(300), **QUICK)
    for name in heads:
        expected = on_cpu.logits(name, x)
        assert torch.allclose(moved.logits(name, x), expected, atol=1e-3)
        assert torch.allclose(resident.logits(name, x.cuda()), expected, atol=1e-3)
        assert resident.correct(name, x.cuda(), y.cuda()).device.type == "cpu"
