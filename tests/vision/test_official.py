"""The released code's checkpoints: every output of its networks, from our modules with the weights read."""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from released import (
    Weights,
    released_classes,
    released_features,
    released_manipulation,
    released_projection,
    released_weights,
    save_released,
)
from safetensors.torch import load_file, save_file

from stec.core.actions import ViewPair
from stec.core.manipulation import BinnedActions
from stec.core.networks import mlp, projection_head
from stec.core.objective import Features
from stec.core.probe import OnlineProbe
from stec.vision.affine import official_bins
from stec.vision.encoders import Stem, resnet18, resnet50
from stec.vision.official import OfficialCheckpoint, Sizes, read_official


@dataclasses.dataclass
class Case:
    """An architecture, and what should be told of it."""

    stem: Stem
    arch: str = "resnet18"
    size: int = 32
    out: int = 64
    bins: int = 6
    manipulation: tuple[int, ...] = (12,)
    classes: int = 10

    @property
    def weights(self) -> Weights:
        return released_weights(
            self.arch,
            kernel=3 if self.stem == "cifar" else 7,
            out=self.out,
            bins=self.bins,
            manipulation=self.manipulation,
            classes=self.classes,
        )


CASES = {
    "cifar": Case("cifar"),
    "cifar100, 128, linear": Case("cifar", out=128, manipulation=(), classes=100),
    "stl, two hidden layers": Case("stl", size=48, out=128, manipulation=(12, 20)),
    "imagenet, ten bins": Case("imagenet", arch="resnet50", size=64, out=128, bins=10, classes=1000),
    "resnet50 on cifar, two bins": Case("cifar", arch="resnet50", bins=2),
}


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.mark.parametrize("legacy", [False, True])
def test_every_output_is_that_of_the_released_networks(case: Case, legacy: bool, tmp_path: Path) -> None:
    """In float64: features, projection, logits of every action component, class logits."""
    weights = case.weights
    found = read_official(save_released(tmp_path / "a.ckpt", weights, legacy=legacy))
    sizes = found.sizes
    assert sizes == Sizes(
        case.arch,
        3 if case.stem == "cifar" else 7,
        4,
        16,
        case.out,
        case.manipulation,
        case.bins,
        case.classes,
    )
    network = {"resnet18": resnet18, "resnet50": resnet50}[sizes.arch](case.stem, width=sizes.width)
    d = network.feature_dim
    projector = projection_head(d, sizes.projection_hidden or 0, sizes.projection_out or 0)
    bins = official_bins(sizes.bins or 0)
    manipulation = BinnedActions(mlp(2 * d, sizes.manipulation_hidden or (), 6 * bins.bins), bins)
    probe = OnlineProbe(d, sizes.classes or 0)
    for module, part in (
        (network, found.encoder),
        (projector, found.projector),
        (manipulation.head, found.manipulation),
        (probe, found.probe),
    ):
        assert part is not None
        module.load_state_dict(part)
        module.double().eval()

    x, x_prime = torch.rand(2, 3, 3, case.size, case.size, dtype=torch.float64)
    h, h_prime = network(x), network(x_prime)
    expected, expected_prime = (released_features(weights, v, pooled=case.stem == "imagenet") for v in (x, x_prime))
    assert expected.std() > 0.01
    torch.testing.assert_close(h, expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(projector(h), released_projection(weights, expected), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(probe(h), released_classes(weights, expected), atol=1e-9, rtol=1e-9)
    logits = released_manipulation(weights, expected, expected_prime)  # (b, K, 2, 3)
    ours = manipulation.logits(Features(h, h_prime))  # (b, 6, K)
    for row in range(2):
        for column in range(3):
            for k in range(case.bins):
                torch.testing.assert_close(
                    ours[:, 3 * row + column, k], logits[:, k, row, column], atol=1e-9, rtol=1e-9
                )


def test_the_loss_is_that_of_the_released_code(tmp_path: Path) -> None:
    """Labels (2, 3) and bins over [-2, 2] and [-0.5, 0.5], the mean over the batch and the six entries."""
    weights = released_weights()
    found = read_official(save_released(tmp_path / "a.ckpt", weights))
    model = BinnedActions(mlp(64, [12], 36), official_bins())
    model.head.load_state_dict(found.manipulation or {})
    model.double().eval()
    h, h_prime = torch.randn(2, 50, 32, dtype=torch.float64)
    label = torch.randn(50, 2, 3)
    high = torch.tensor([2.0, 2.0, 0.5])
    bins = ((label + high) / (2 * high) * 6 - 0.5).round().long().clamp(0, 5)
    expected = torch.nn.functional.cross_entropy(released_manipulation(weights, h, h_prime), bins)
    pair = ViewPair(None, None, label.flatten(1), torch.ones(50).bool(), torch.zeros(50).long())
    assert model(Features(h, h_prime), None, pair).item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_the_encoder_keeps_its_values_types_and_torchvision_names(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {name: v.to(dtype) if v.is_floating_point() else v for name, v in released_weights().items()}
    found = read_official(save_released(tmp_path / "a.ckpt", weights))
    expected = {n.removeprefix("encoder."): v for n, v in weights.items() if n.startswith("encoder.") and "fc" not in n}
    assert set(found.encoder) == set(expected)
    for name, value in expected.items():
        assert found.encoder[name].dtype == value.dtype
        assert torch.equal(found.encoder[name], value)
    save_file(found.encoder, tmp_path / "a.safetensors")  # no two share memory
    assert set(load_file(tmp_path / "a.safetensors")) == set(expected)
    assert found.left_out == ["encoder.fc.bias", "encoder.fc.weight"]


def test_what_the_file_says_of_itself(tmp_path: Path) -> None:
    path = save_released(tmp_path / "a.ckpt", released_weights(), {"feat_dim": 128})
    found = read_official(path)
    assert found.hyper_parameters["feat_dim"] == 128
    assert found.sizes.projection_out == 8  # the weights count
    assert found.hyper_parameters["temperature"] == 0.5  # a number of numpy
    assert found.hyper_parameters["results_path"] == "runs/one"
    assert found.hyper_parameters["flags"] == {"fp32": False, "gpus": [0, 1]}
    assert found.step == 48_000
    assert found.says["pytorch-lightning_version"] == "1.5.9"
    assert found.says["callbacks"] == "(2 entries)"
    assert len(found.sha256) == 64
    assert read_official(path).sha256 == found.sha256


def test_batch_norms_without_a_count_of_batches(tmp_path: Path) -> None:
    """As in files of torch before 0.4.1: 0 is filled in for each; what is there stays."""
    weights, path = released_weights(), tmp_path / "a.ckpt"
    kept = "encoder.bn1.num_batches_tracked"
    fewer = {name: v for name, v in weights.items() if name == kept or not name.endswith("num_batches_tracked")}
    whole = read_official(save_released(path, weights))
    found = read_official(save_released(path, fewer))
    for part in ("encoder", "projector", "manipulation", "probe"):
        ours, theirs = getattr(found, part), getattr(whole, part)
        assert set(ours) == set(theirs)
        for name, value in ours.items():
            filled = name.endswith("num_batches_tracked") and (part, name) != ("encoder", "bn1.num_batches_tracked")
            torch.testing.assert_close(value, torch.tensor(0) if filled else theirs[name], rtol=0, atol=0)
    resnet18("cifar", width=4).load_state_dict(found.encoder)


def renamed(weights: Weights) -> Weights:
    return {f"module.{name}": value for name, value in weights.items()}


@pytest.mark.parametrize("form", ["distributed", "bare", "namespace", "nothing said"])
def test_other_forms_of_the_same(form: str, tmp_path: Path) -> None:
    weights, path = released_weights(), tmp_path / "a.ckpt"
    says: dict[str, Any] = {"feat_dim": 64}
    if form == "distributed":
        save_released(path, renamed(weights))
    elif form == "bare":
        torch.save(weights, path)
    else:
        save_released(path, weights, hyper_parameters=argparse.Namespace(**says) if form == "namespace" else None)
    found = read_official(path)
    assert torch.equal(found.encoder["conv1.weight"], weights["encoder.conv1.weight"])
    assert found.sizes.bins == 6
    if form == "namespace":
        assert found.hyper_parameters == says
    elif form in ("nothing said", "bare"):
        assert found.hyper_parameters == {}


def without(*starts: str) -> Weights:
    return {name: value for name, value in released_weights().items() if not name.startswith(starts)}


def test_parts_that_are_missing_as_a_whole(tmp_path: Path) -> None:
    path = save_released(tmp_path / "a.ckpt", without("projection", "binned", "supervised"))
    found = read_official(path)
    assert (found.projector, found.manipulation, found.probe) == (None, None, None)
    assert found.sizes == ("resnet18", 3, 4, None, None, None, None, None)


def read(path: Path, weights: Weights, **options: bool) -> OfficialCheckpoint:
    return read_official(save_released(path, weights), **options)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (without("projection.model.bn_output"), r"projection lacks bn_output.bias.*--encoder-only"),
        (without("supervised_head.linear_layer.bias"), r"supervised_head lacks linear_layer.bias"),
        (without("binned_prediction_model.model.linear_final"), "lacks linear_final.bias, linear_final.weight"),
        (
            {**released_weights(), "projection.model.output.bias": torch.zeros(8)},
            "projection has output.bias, which the released code does not build.*--encoder-only",
        ),
        (released_weights(manipulation=()) | {"binned_prediction_model.model.linear_final.bias": torch.zeros(35)},
         "35 rows; the released code's has K for each of 6"),
    ],
    ids=["no last norm", "no bias", "no last layer", "a surplus", "35 rows"],
)  # fmt: skip
def test_parts_that_are_torn(weights: Weights, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"a.ckpt: .*{words}"):
        read(tmp_path / "a.ckpt", weights)
    found = read(tmp_path / "a.ckpt", weights, encoder_only=True)
    assert len(found.encoder) == 120
    assert found.projector is None


def test_encoders_that_stec_does_not_have(tmp_path: Path) -> None:
    deeper = {name.replace("layer1.1", "layer1.2"): v for name, v in released_weights().items() if "layer1.1" in name}
    grey = released_weights() | {"encoder.conv1.weight": torch.zeros(4, 1, 3, 3)}
    five = released_weights() | {"encoder.conv1.weight": torch.zeros(4, 3, 5, 5)}
    for weights, words in ((released_weights() | deeper, r"\(3, 2, 2, 2\)"), (grey, r"\(4, 1, 3, 3\)"), (five, "5, 5")):
        with pytest.raises(ValueError, match=f"a.ckpt: its encoder has .*{words}.*ResNet-18 and ResNet-50"):
            read(tmp_path / "a.ckpt", weights)


def test_files_of_others(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"backbone.conv1.weight": torch.zeros(1), "online.fc.bias": torch.zeros(1)}}, path)
    with pytest.raises(ValueError, match=r"a.ckpt is no checkpoint of the released.*its parts are backbone, online"):
        read_official(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="it holds no weights"):
        read_official(path)
    torch.save({"state_dict": {}, "global_step": 1, "stec": {"format": 1, "record": {}}}, path)
    with pytest.raises(ValueError, match="was written by stec already"):
        read_official(path)
    path.write_text("hello")
    with pytest.raises(ValueError, match=r"a.ckpt is torn or is no checkpoint"):
        read_official(path)
    save_released(path, released_weights() | {"encoder.bn1.weight": 3})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"encoder.bn1.weight in .*a.ckpt is torn or is no tensor \(it is a int\)"):
        read_official(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["callbacks", "hyper_parameters", "state_dict", "key"])
def test_code_is_refused_by_name_and_never_runs(place: str, legacy: bool, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    weights: dict[str, Any] = dict(released_weights())
    more: dict[str, Any] = {}
    if place == "state_dict":
        weights["projection.model.extra"] = Evil()
    elif place == "key":
        more["callbacks"] = {Evil(): 1}
    elif place == "callbacks":
        more["callbacks"] = {"a": Evil()}
    says = {"data_dir": Evil()} if place == "hyper_parameters" else {}
    path = save_released(tmp_path / "evil.ckpt", weights, says, legacy=legacy, **more)
    with pytest.raises(ValueError, match=r"evil.ckpt holds code: .* run os.mkdir. Nothing was run.*--skip-foreign"):
        read_official(path)
    if place == "state_dict":
        with pytest.raises(ValueError, match=r"projection.model.extra in .*evil.ckpt is torn or is no tensor"):
            read_official(path, skip_foreign=True)
    else:
        found = read_official(path, skip_foreign=True)
        assert found.foreign == ["os.mkdir"]
        assert torch.equal(found.encoder["conv1.weight"], weights["encoder.conv1.weight"])
        if place == "hyper_parameters":
            assert found.hyper_parameters["data_dir"] == "<os.mkdir>"
    assert not (tmp_path / "ran").exists()
