"""Probes against closed forms, loops in float64 and scikit-learn; what they refuse; feature extraction."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from stec.core.probe import (
    OnlineProbe,
    ProbeResult,
    extract,
    knn_accuracy,
    linear_accuracy,
    linear_layer,
    logistic_accuracy,
)

Sets = tuple[Tensor, Tensor, Tensor, Tensor]


def _linear(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> ProbeResult:
    return linear_accuracy(train, train_labels, test, test_labels, seed=0, epochs=12, warmup_epochs=1, batch_size=64)


PROBES: dict[str, Callable[..., ProbeResult]] = {"knn": knn_accuracy, "logistic": logistic_accuracy, "linear": _linear}


def _blobs(n: int, *, classes: int, width: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Clouds around fixed directions; separable where `spread` is small."""
    generator = torch.Generator().manual_seed(seed)
    centres = 5 * torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (n,), generator=generator)
    return centres[labels] + spread * torch.randn(n, width, generator=generator), labels


def _sets(*, spread: float, n: int = 600, m: int = 300, classes: int = 4, width: int = 12) -> Sets:
    shape = {"classes": classes, "width": width, "spread": spread}
    return (*_blobs(n, seed=0, **shape), *_blobs(m, seed=1, **shape))  # type: ignore[arg-type]


@pytest.mark.parametrize("protocol", PROBES)
def test_separable_classes_are_read_off_without_error(protocol: str) -> None:
    result = PROBES[protocol](*_sets(spread=0.3))
    assert (result.accuracy, result.protocol, result.n_train, result.n_test) == (1.0, protocol, 600, 300)
    assert result.settings


@pytest.mark.parametrize("protocol", PROBES)
def test_shuffled_labels_are_at_chance(protocol: str) -> None:
    train, _, test, _ = _sets(spread=5.0, m=1000)
    generator = torch.Generator().manual_seed(2)
    labels, test_labels = (torch.randint(4, (n,), generator=generator) for n in (len(train), len(test)))
    accuracy = PROBES[protocol](train, labels, test, test_labels).accuracy
    assert abs(accuracy - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 1000)


def _knn_loop(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, k: int, temperature: float) -> float:
    """Row by row, in float64 and in Python numbers."""
    correct = 0
    for row, truth in zip(test.double(), test_labels.tolist()):
        cosines = [(float(row @ other) / float(row.norm() * other.norm()), i) for i, other in enumerate(train.double())]
        votes: dict[int, float] = {}
        for cosine, i in sorted(cosines, reverse=True)[:k]:
            votes[int(labels[i])] = votes.get(int(labels[i]), 0.0) + math.exp(cosine / temperature)
        correct += max(votes, key=lambda label: votes[label]) == truth
    return correct / len(test)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (5, 0.1), (20, 0.02), (80, 0.1), (80, 1.0)])
def test_knn_equals_the_loop(k: int, temperature: float) -> None:
    train, labels, test, test_labels = _sets(spread=11.0, n=80, m=60)
    expected = _knn_loop(train, labels, test, test_labels, k, temperature)
    assert 0.3 < expected < 0.98  # neither chance nor perfect: a mistake shows
    result = knn_accuracy(train, labels, test, test_labels, k=k, temperature=temperature)
    assert result.accuracy == expected
    assert result.settings == {"k": k, "temperature": temperature}


def test_knn_votes_by_weight_and_not_by_number() -> None:
    # One neighbour at cosine 1 against two at cosine 0.8: exp(1 / T) > 2 exp(0.8 / T) where T < 0.2 / log 2 = 0.289.
    train = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]])
    args = (train, torch.tensor([1, 0, 0]), torch.tensor([[3.0, 0.0]]), torch.tensor([1]))
    assert knn_accuracy(*args, k=3, temperature=0.28).accuracy == 1.0
    assert knn_accuracy(*args, k=3, temperature=0.30).accuracy == 0.0
    assert knn_accuracy(*args, k=3, temperature=1e-3).accuracy == 1.0  # exp(1000) would overflow


def test_knn_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = _sets(spread=6.0)
    whole = knn_accuracy(*sets, k=30)
    monkeypatch.setattr("stec.core.probe._BLOCK", 7 * 600 + 5)  # 7 test rows to a block; 300 is no multiple
    assert knn_accuracy(*sets, k=30) == whole
    monkeypatch.setattr("stec.core.probe._BLOCK", 1)
    assert knn_accuracy(*sets, k=30) == whole


def test_knn_with_few_rows_lets_all_vote_and_says_so() -> None:
    train, labels, test, test_labels = _sets(spread=6.0, n=50, m=40)
    result = knn_accuracy(train, labels, test, test_labels)
    assert result.settings["k"] == 50
    assert result.accuracy == _knn_loop(train, labels, test, test_labels, 50, 0.1)


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_knn_sees_directions_alone(scale: float, seed: int) -> None:
    train, labels, test, test_labels = _sets(spread=6.0, n=60, m=30)
    factors = scale * (0.5 + torch.rand(60, 1, generator=torch.Generator().manual_seed(seed)))
    expected = knn_accuracy(train, labels, test, test_labels, k=7)
    assert knn_accuracy(train * factors, labels, test * scale, test_labels, k=7) == expected


def test_labels_may_be_any_numbers() -> None:
    train, labels, test, test_labels = _sets(spread=0.3)
    names = torch.tensor([3, 900_000, 17, 5])
    for probe in (knn_accuracy, logistic_accuracy):
        assert probe(train, names[labels], test, names[test_labels]).accuracy == 1.0
    absent = torch.full_like(test_labels, 9)  # a class that training lacks cannot be guessed
    for name in PROBES:
        assert PROBES[name](train, labels, test, absent).accuracy == 0.0


@pytest.mark.parametrize("c", [0.0005, None, 1.0])
def test_logistic_equals_scikit_learn_in_float64(c: float | None) -> None:
    train, labels, test, test_labels = _sets(spread=15.0)
    train, test = 3 + 10 * train, 3 + 10 * test  # standardising has to undo this
    scaler = StandardScaler().fit(train.double().numpy())
    model = LogisticRegression(C=1 / 12 if c is None else c, max_iter=1000, tol=1e-8)
    model.fit(scaler.transform(train.double().numpy()), labels.numpy())
    expected = model.score(scaler.transform(test.double().numpy()), test_labels.numpy())
    result = logistic_accuracy(train, labels, test, test_labels, c=c)
    assert 0.3 < expected < 0.95
    assert result.accuracy == pytest.approx(expected, abs=1.5 / 300)  # a row near the border may fall elsewhere
    assert result.settings["converged"] is True
    assert result.settings["c"] == model.C


def test_logistic_prior_is_as_wide_for_any_number_of_features() -> None:
    train, labels, test, test_labels = _sets(spread=15.0)
    narrow = logistic_accuracy(train, labels, test, test_labels)
    wide = logistic_accuracy(train.repeat(1, 40), labels, test.repeat(1, 40), test_labels)
    assert wide.accuracy == pytest.approx(narrow.accuracy, abs=1.5 / 300)
    assert (narrow.settings["c"], wide.settings["c"]) == (1 / 12, 1 / 480)


def test_logistic_is_invariant_to_scale_and_offset_of_each_feature() -> None:
    train, labels, test, test_labels = _sets(spread=8.0)
    scale, offset = 10.0 ** torch.linspace(-3, 3, 12), torch.linspace(-5, 5, 12)
    plain = logistic_accuracy(train, labels, test, test_labels)
    moved = logistic_accuracy(scale * (train + offset), labels, scale * (test + offset), test_labels)
    assert moved.accuracy == pytest.approx(plain.accuracy, abs=1.5 / 300)


def test_logistic_passes_over_constant_features() -> None:
    train, labels, test, test_labels = _sets(spread=8.0)
    expected = logistic_accuracy(train, labels, test, test_labels).accuracy
    with_dead = [torch.cat((x, torch.zeros(len(x), 1), torch.full((len(x), 1), 0.1)), dim=1) for x in (train, test)]
    with_dead[1][:, -2:] = 1e6  # alive in the test rows alone
    result = logistic_accuracy(with_dead[0], labels, with_dead[1], test_labels)
    assert result.accuracy == pytest.approx(expected, abs=1.5 / 300)


def test_logistic_says_when_it_did_not_converge() -> None:
    sets = _sets(spread=8.0)
    with pytest.warns(UserWarning, match="did not converge in 3 iterations; raise max_iterations"):
        result = logistic_accuracy(*sets, c=1.0, max_iterations=3)
    assert result.settings["converged"] is False
    assert result.settings["iterations"] == 3


def _linear_weights(monkeypatch: pytest.MonkeyPatch, seed: int) -> tuple[float, Tensor]:
    """The accuracy, and the trained layer as it came from `linear_layer`."""
    layers: list[nn.Linear] = []

    def spy(in_features: int, classes: int, *, generator: torch.Generator | None = None) -> nn.Linear:
        layers.append(linear_layer(in_features, classes, generator=generator))
        return layers[-1]

    monkeypatch.setattr("stec.core.probe.linear_layer", spy)
    sets = _sets(spread=8.0)
    result = linear_accuracy(*sets, seed=seed, epochs=3, warmup_epochs=1, batch_size=128, weight_decay=0.1)
    return result.accuracy, torch.cat((layers[0].weight.detach(), layers[0].bias.detach()[:, None]), dim=1)


def test_linear_repeats_with_its_seed_and_not_with_another(monkeypatch: pytest.MonkeyPatch) -> None:
    (first, weights), (second, same), (_, other) = (_linear_weights(monkeypatch, seed) for seed in (0, 0, 1))
    assert first == second
    assert torch.equal(weights, same)
    assert not torch.equal(weights, other)


def test_linear_equals_a_loop_of_the_rule_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    _, got = _linear_weights(monkeypatch, seed=3)
    train, labels, _, _ = _sets(spread=8.0)
    generator = torch.Generator().manual_seed(3)
    weights = torch.cat((torch.empty(4, 12).normal_(0, 0.01, generator=generator), torch.zeros(4, 1)), dim=1).double()
    rows = torch.cat((train, torch.ones(600, 1)), dim=1).double()
    targets = torch.nn.functional.one_hot(labels, 4).double()
    buffer = torch.zeros_like(weights)
    step, per_epoch = 0, 4  # 600 // 128: the last 88 rows of an epoch are left out
    for _ in range(3):
        order = torch.randperm(600, generator=generator)
        for i in range(per_epoch):
            rate = step / 4 if step < 4 else 0.5 * (1 + math.cos(math.pi * (step - 4) / 8))
            batch = order[128 * i : 128 * (i + 1)]
            beliefs = torch.softmax(rows[batch] @ weights.T, dim=1)
            gradient = (beliefs - targets[batch]).T @ rows[batch] / 128 + 0.1 * weights
            buffer = 0.9 * buffer + gradient
            weights = weights - 0.04 * rate * (gradient + 0.9 * buffer)
            step += 1
    assert torch.allclose(got.double(), weights, atol=1e-4)


def test_linear_asks_for_new_features_every_epoch() -> None:
    train, labels, test, test_labels = _sets(spread=0.3)
    asked: list[int] = []
    scale = torch.ones((), requires_grad=True)

    def epoch_features(epoch: int) -> tuple[Tensor, Tensor]:
        asked.append(epoch)
        noise = torch.randn(train.shape, generator=torch.Generator().manual_seed(epoch))
        return scale * (train + 0.1 * noise), labels

    arguments = {"seed": 0, "epochs": 6, "warmup_epochs": 1, "batch_size": 64}
    result = linear_accuracy(epoch_features, None, test, test_labels, **arguments)
    assert asked == list(range(6))
    assert scale.grad is None
    assert result.accuracy == 1.0
    fixed = linear_accuracy(lambda epoch: (train, labels), None, test, test_labels, **arguments)
    assert fixed == linear_accuracy(train, labels, test, test_labels, **arguments)


def test_linear_refuses_what_cannot_train() -> None:
    train, labels, test, test_labels = _sets(spread=1.0)
    with pytest.raises(ValueError, match=r"batch_size is 1024, the training set has 600 rows; use at most 600"):
        linear_accuracy(train, labels, test, test_labels, seed=0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        linear_accuracy(train, labels, test, test_labels, seed=0, batch_size=0)
    with pytest.raises(ValueError, match="warmup_epochs is 10 of 10 epochs"):
        linear_accuracy(train, labels, test, test_labels, seed=0, epochs=10, batch_size=64)
    with pytest.raises(ValueError, match="pass train_labels=None"):
        linear_accuracy(lambda epoch: (train, labels), labels, test, test_labels, seed=0, batch_size=64)
    with pytest.raises(ValueError, match="train_labels is None"):
        linear_accuracy(train, None, test, test_labels, seed=0, batch_size=64)
    with pytest.raises(ValueError, match="epoch 1 gives 599 rows, epoch 0 gave 600"):
        linear_accuracy(lambda epoch: (train[epoch:], labels[epoch:]), None, test, test_labels, seed=0, batch_size=64)
    with pytest.raises(ValueError, match="diverged at lr 1e"):
        linear_accuracy(train, labels, test, test_labels, seed=0, batch_size=64, lr=1e38)


def _broken(sets: Sets, fault: str) -> Sets:
    train, labels, test, test_labels = (tensor.clone() for tensor in sets)
    if fault == "nan":
        train[[3, 5], 2] = torch.nan
    elif fault == "infinite":
        test[4, 0] = torch.inf
    elif fault == "unlabelled":
        labels[7] = -1
    elif fault == "unlabelled test":
        test_labels[:3] = -1
    elif fault == "one class":
        labels[:] = 2
    elif fault == "length":
        labels = labels[:-1]
    elif fault == "width":
        test = test[:, :-1]
    elif fault == "maps":
        train = train[:, :, None]
    elif fault == "empty":
        test, test_labels = test[:0], test_labels[:0]
    return train, labels, test, test_labels


@pytest.mark.unchecked
@pytest.mark.parametrize("protocol", PROBES)
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("nan", "2 of 600 training rows hold NaN or infinite"),
        ("infinite", "1 of 300 test rows hold NaN or infinite"),
        ("unlabelled", r"1 training rows have no label \(-1\)"),
        ("unlabelled test", r"3 test rows have no label"),
        ("one class", "all training rows are of class 2"),
        ("length", r"training features are \(600, 12\) and labels \(599,\)"),
        ("width", "training features are 12 wide, test features 11"),
        ("maps", r"training features are \(600, 12, 1\)"),
        ("empty", "no test rows"),
    ],
)
def test_rows_that_cannot_be_probed_are_refused_with_the_cure(protocol: str, fault: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PROBES[protocol](*_broken(_sets(spread=1.0), fault))


def test_settings_out_of_range_are_refused() -> None:
    sets = _sets(spread=1.0)
    with pytest.raises(ValueError, match="k is 0"):
        knn_accuracy(*sets, k=0)
    with pytest.raises(ValueError, match=r"temperature 0\.0"):
        knn_accuracy(*sets, temperature=0.0)
    with pytest.raises(ValueError, match=r"c is 0\.0"):
        logistic_accuracy(*sets, c=0.0)


def test_a_new_online_probe_gives_small_beliefs() -> None:
    torch.manual_seed(0)
    probe = OnlineProbe(400, 50)
    assert probe.linear.weight.std().item() == pytest.approx(0.01, rel=5 / math.sqrt(2 * 400 * 50))
    assert torch.equal(probe.linear.bias, torch.zeros(50))
    assert probe.loss_and_accuracy(torch.zeros(3, 400), torch.arange(3)).loss.item() == pytest.approx(math.log(50))


def test_online_probe_counts_labelled_rows_alone() -> None:
    probe = OnlineProbe(6, 3)
    features, labels = torch.randn(8, 6), torch.tensor([0, -1, 2, -1, 1, 1, -1, 0])
    score = probe.loss_and_accuracy(features, labels)
    beliefs = torch.log_softmax(features.double() @ probe.linear.weight.double().T, dim=1)
    kept = [i for i in range(8) if labels[i] >= 0]
    assert score.labelled.item() == 5
    assert score.loss.item() == pytest.approx(-sum(beliefs[i, labels[i]].item() for i in kept) / 5, rel=1e-5)
    assert score.accuracy.item() == pytest.approx(sum(int(beliefs[i].argmax() == labels[i]) for i in kept) / 5)


def test_online_probe_without_labels_loses_exactly_nothing() -> None:
    probe = OnlineProbe(6, 3)
    score = probe.loss_and_accuracy(torch.randn(4, 6), torch.full((4,), -1))
    assert score.loss.item() == 0.0
    assert score.labelled.item() == 0
    assert score.accuracy.isnan()
    score.loss.backward()
    for parameter in probe.parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_online_probe_sends_no_gradient_into_the_encoder() -> None:
    probe, features = OnlineProbe(6, 3), torch.randn(4, 6, requires_grad=True)
    probe.loss_and_accuracy(features, torch.tensor([0, 1, 2, -1])).loss.backward()
    assert features.grad is None
    assert probe.linear.weight.grad is not None


def test_online_loss_is_in_float32_in_low_precision() -> None:
    features, labels = torch.randn(4, 6), torch.tensor([0, 1, 2, -1])
    with torch.autocast("cpu", torch.bfloat16):
        assert OnlineProbe(6, 3).loss_and_accuracy(features, labels).loss.dtype == torch.float32
    narrow = OnlineProbe(6, 3).to(torch.bfloat16)
    assert narrow.loss_and_accuracy(features.to(torch.bfloat16), labels).loss.dtype == torch.float32


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)
        self.drop = nn.Dropout(0.5)
        self.body = nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.body(self.drop(self.norm(x)))
        return output


def _batches(sizes: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(b, 5), torch.arange(b)) for b in sizes]


def test_extract_gives_what_the_frozen_encoder_gives() -> None:
    encoder = _Encoder()
    nn.init.normal_(encoder.norm.running_mean)
    encoder.drop.eval()  # a part that was frozen before stays frozen after
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    batches = _batches((4, 4, 3))
    features, labels = extract(encoder, iter(batches), device="cpu")
    inputs = torch.cat([x for x, _ in batches]).double()
    normed = (inputs - encoder.norm.running_mean) / math.sqrt(1 + 1e-5)
    expected = normed @ encoder.body.weight.double().T + encoder.body.bias.double()
    assert torch.allclose(features.double(), expected, atol=1e-5)
    assert labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2]
    assert (features.dtype, features.device.type, features.requires_grad) == (torch.float32, "cpu", False)
    modes = (encoder.training, encoder.norm.training, encoder.drop.training, encoder.body.training)
    assert modes == (True, True, False, True)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name])


def test_extracted_features_can_be_trained_on() -> None:
    features, labels = extract(_Encoder(), _batches((8,)), device="cpu")
    OnlineProbe(7, 8).loss_and_accuracy(features, labels).loss.backward()  # inference tensors would refuse


def test_extract_in_mixed_precision_gives_float32_near_the_exact_features() -> None:
    encoder, batches = _Encoder(), _batches((16,))
    exact, _ = extract(encoder, batches, device="cpu")
    mixed, _ = extract(encoder, batches, device="cpu", autocast=torch.bfloat16)
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, exact)
    assert torch.allclose(mixed, exact, atol=0.05)
    again, _ = extract(encoder, batches, device="cpu")
    assert torch.equal(again, exact)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (lambda x: x[:, :, None], r"gives \(4, 5, 1\) for 4 labels"),
        (lambda x: (x, x), "gives tuple for 4 labels"),
        (lambda x: x[:-1], r"gives \(3, 5\) for 4 labels"),
    ],
)
def test_extract_refuses_outputs_that_are_not_one_row_each(output: Callable[[Tensor], object], words: str) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> object:
            return output(x)

    encoder = Odd()
    with pytest.raises(ValueError, match=words):
        extract(encoder, _batches((4,)), device="cpu")
    assert encoder.training  # put back after an error too


def test_extract_refuses_no_batches() -> None:
    with pytest.raises(ValueError, match="no batches"):
        extract(_Encoder(), [], device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_probes_on_a_gpu_equal_those_on_the_cpu() -> None:
    sets = _sets(spread=6.0)
    on_device: Sets = tuple(tensor.cuda() for tensor in sets)  # type: ignore[assignment]
    assert knn_accuracy(*on_device, k=30).accuracy == pytest.approx(knn_accuracy(*sets, k=30).accuracy, abs=1.5 / 300)
    assert logistic_accuracy(*on_device) == logistic_accuracy(*sets)
    assert _linear(*on_device).accuracy == pytest.approx(_linear(*sets).accuracy, abs=2.5 / 300)
