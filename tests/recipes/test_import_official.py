"""A checkpoint of the released code taken over: loaded by our recipes, evaluated by its own head, mistakes named."""

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from folders import ten_classes
from PIL import Image
from released import (
    Weights,
    released_classes,
    released_features,
    released_manipulation,
    released_projection,
    released_weights,
    save_released,
)
from safetensors import safe_open
from safetensors.torch import load_file

from recipes import records
from recipes.run_folder import last_checkpoint
from recipes.vision import evaluate
from recipes.vision.import_official import Arguments, Imported, import_official, show
from recipes.vision.import_official import main as command
from recipes.vision.official_settings import claims, data_of, stem_of
from recipes.vision.presets import preset
from recipes.vision.run import load_learner
from stec.core.checkpoints import load_checkpoint
from stec.core.objective import Features
from stec.vision.official import Sizes


def take_over(tmp_path: Path, weights: Weights, says: dict[str, Any] | None = None, **options: Any) -> Imported:
    path = save_released(tmp_path / "released.ckpt", weights, says)
    return import_official(Arguments(path, tmp_path / "out", **options))


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], int]] = {
    # how the weights are made, what the file says, what the configuration has to be, pixels
    "cifar10": ({}, {}, {"preset": "cifar10-resnet18-stec-official", "stem": "cifar", "lambda_manip": 1.0}, 32),
    "cifar100, though called cifar10": (
        {"classes": 100, "out": 64},
        {"feat_dim": 128, "num_classes": 10},
        {"preset": "cifar100-resnet18-stec-official", "data": "cifar100", "projection_out": 64},
        32,
    ),
    "stl10": (
        {"kernel": 7, "out": 128, "bins": 10, "manipulation": (16,)},
        {"dataset": "stl10", "first_conv": True, "temperature": 0.2, "manip_lambda": 0.3, "optimizer": "sgd"},
        {"preset": "stl10-resnet18-stec-official", "stem": "stl", "temperature": 0.2, "bins": 10, "optimizer": "sgd"},
        48,
    ),
    "imagenet": (
        {"arch": "resnet50", "kernel": 7, "classes": 1000, "hidden": 24},
        {"dataset": "imagenet", "maxpool1": True, "batch_size": 210, "gpus": 8, "max_epochs": 100},
        {"preset": "imagenet-resnet50-stec-official", "stem": "imagenet", "batch_size": 1680, "epochs": 100},
        64,
    ),
    "simclr": ({}, {"manip_lambda": 0.0}, {"preset": "cifar10-resnet18-simclr", "lambda_manip": 0.0}, 32),
    "no classes": (
        {"classes": 7},
        {"manip_lambda": None, "dataset": "mine", "learning_rate": "fast", "warmup_epochs": 2000},
        {"preset": "cifar10-resnet18-stec-official", "data": "folder", "lr": 4.0, "epochs": 1000, "warmup_epochs": 10},
        32,
    ),
    "linear manipulation head": ({"manipulation": ()}, {"manip_hidden_mlp": "0"}, {"manipulation_hidden": ()}, 32),
    "two hidden layers": ({"manipulation": (12, 20)}, {}, {"manipulation_hidden": (12, 20)}, 32),
}


@pytest.mark.parametrize("name", CASES)
def test_our_checkpoint_has_the_outputs_of_the_released_networks(name: str, tmp_path: Path) -> None:
    made, says, wanted, size = CASES[name]
    weights = released_weights(**made)
    outcome = take_over(tmp_path, weights, says)
    assert outcome.checkpoint is not None
    learner, config, record = load_learner(outcome.checkpoint)
    assert {field: getattr(config, field) for field in wanted} == wanted
    assert (config.identity, config.action, config.adapt) == ("simclr", "official", "name")
    assert record["imported"]["sha256"] == outcome.official.sha256
    learner = learner.double().eval()
    x, x_prime = torch.rand(2, 2, 3, size, size, dtype=torch.float64)
    h, h_prime = learner.encoder(x), learner.encoder(x_prime)
    pooled = config.stem == "imagenet"
    expected, expected_prime = (released_features(weights, v, pooled=pooled) for v in (x, x_prime))
    models: Any = learner.objective.models
    assert learner.probe is not None
    pairs = [
        (h, expected),
        (models["identity"].projector(h), released_projection(weights, expected)),
        (learner.probe(h), released_classes(weights, expected)),
    ]
    if config.lambda_manip:
        logits = released_manipulation(weights, expected, expected_prime).flatten(2).transpose(1, 2)
        pairs.append((models["manipulation"].logits(Features(h, h_prime)), logits))
        high = torch.tensor([[2.0], [2.0], [0.5]]).repeat(2, 1)
        inner = torch.arange(1, config.bins) / config.bins
        torch.testing.assert_close(models["manipulation"].bins.edges.float(), high * (2 * inner - 1))
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_the_encoder_beside_it(tmp_path: Path) -> None:
    weights = {name: v.half() if v.is_floating_point() else v for name, v in released_weights().items()}
    outcome = take_over(tmp_path, weights)
    found = load_file(outcome.encoder)
    assert set(found) == {n.removeprefix("encoder.") for n in weights if n.startswith("encoder.") and ".fc." not in n}
    for name, value in found.items():
        assert value.dtype == weights[f"encoder.{name}"].dtype
        assert torch.equal(value, weights[f"encoder.{name}"])
    with safe_open(outcome.encoder, framework="pt") as file:
        assert file.metadata()["stem"] == "cifar"
    assert outcome.checkpoint is not None
    ours = load_checkpoint(outcome.checkpoint)
    assert ours.step == 48_000
    assert ours.part("encoder")["conv1.weight"].dtype == torch.float32
    assert torch.equal(ours.part("encoder")["conv1.weight"], weights["encoder.conv1.weight"].float())
    assert last_checkpoint(tmp_path / "out") == outcome.checkpoint
    json.dumps(ours.record)  # plain values


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ten_classes(tmp_path_factory.mktemp("images"))


def test_evaluate_gives_the_accuracy_of_the_released_head(images: Path, tmp_path: Path) -> None:
    weights = released_weights()
    tests = sorted((images / "test").rglob("*.png"))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in tests])
    features = released_features(weights, pixels.permute(0, 3, 1, 2) / 255, pooled=False)
    labels = torch.arange(10).repeat_interleave(3)
    # The head gives each image to the nearest mean of a class: right more often than by chance, and not always.
    means = features.view(10, 3, -1).mean(dim=1)
    weights["supervised_head.linear_layer.weight"] = means.float()
    weights["supervised_head.linear_layer.bias"] = (-means.square().sum(dim=1) / 2).float()
    share = (released_classes(weights, features).argmax(dim=1) == labels).double().mean().item()
    assert 0.2 < share < 0.95
    outcome = take_over(tmp_path, weights)
    assert outcome.checkpoint is not None
    arguments = evaluate.Arguments(outcome.checkpoint, root=images, data="folder", protocols=("online",))
    (record,) = evaluate.evaluate(arguments)
    (result,) = record.results
    assert (result.metric, result.protocol, result.value) == ("accuracy", "online", pytest.approx(share, abs=5e-5))
    assert result.details == {"test": 30, "classes": 10, "images": "as they are"}
    assert record.settings["imported"] == outcome.official.sha256


def test_the_command_says_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_released(tmp_path / "released.ckpt", released_weights(), {"feat_dim": 128, "arch": "resnet50"})
    monkeypatch.setattr("sys.argv", ["x", str(path), "--out", str(tmp_path / "out")])
    command()
    lines = capsys.readouterr().out.splitlines()
    text = " ".join(lines)
    assert [line for line in lines if "differs" in line and "resnet18" in line and "resnet50" in line]
    assert [line for line in lines if "differs" in line and "projection, output" in line and " 8 " in line]
    assert len([line for line in lines if "differs" in line]) == 2
    assert "comment [bold]five[/bold] [/runs]" in text  # as it stands in the file
    assert "encoder.fc is a classifier that the released code builds and never uses" in text
    assert "optimizer_states (1 entries)" in text
    assert "S-TEC official, nearest preset" in text
    assert "imported.ckpt" in text
    with pytest.raises(ValueError, match=r"out holds a run or an encoder already"):
        command()


SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    # what the file says, what the configuration has to be, what could not be taken over
    "zeros": (
        {"discrimination_lambda": 0, "weight_decay": 0.0, "warmup_epochs": 0},
        {"lambda_id": 0, "weight_decay": 0.0, "warmup_epochs": 0},
        set(),
    ),
    "text": (
        {"manip_lambda": "0.3", "weight_decay": "1e-4", "learning_rate": " 2 ", "batch_size": "64", "gpus": "2"},
        {"lambda_manip": 0.3, "weight_decay": 1e-4, "lr": 2.0, "batch_size": 128},
        set(),
    ),
    "zero as text": ({"manip_lambda": "0"}, {"lambda_manip": 0.0}, set()),
    "whole numbers": ({"manip_lambda": 1, "learning_rate": 4}, {"lambda_manip": 1, "lr": 4}, set()),
    "unusable": (
        {
            "optimizer": "adam",
            "temperature": 0,
            "learning_rate": "fast",
            "weight_decay": -1,
            "discrimination_lambda": float("nan"),
            "max_epochs": 5,
            "batch_size": 0,
        },
        {"optimizer": "lars", "temperature": 0.5, "lr": 4.0, "weight_decay": 1e-6, "lambda_id": 2.0, "epochs": 1000},
        {
            "optimizer",
            "temperature",
            "learning_rate",
            "weight_decay",
            "discrimination_lambda",
            "max_epochs",
            "batch_size",
        },
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_taken_over_or_shown_to_differ(name: str, tmp_path: Path) -> None:
    says, wanted, differing = SETTINGS[name]
    outcome = take_over(tmp_path, released_weights(), says)
    assert outcome.checkpoint is not None
    _, config, record = load_learner(outcome.checkpoint)
    assert {field: getattr(config, field) for field in wanted} == wanted
    assert {field: record["config"][field] for field in wanted} == wanted
    assert {claim.key for claim in claims(outcome.official, config) if claim.differs} == differing


def test_what_the_file_says_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    outcome = take_over(tmp_path, released_weights(), {"comment": "\x1b[2Jgone", "arch": "[/nothing]"})
    with contextlib.redirect_stdout(io.StringIO()):
        show(outcome)


def test_the_encoder_alone(tmp_path: Path) -> None:
    weights = {name: value for name, value in released_weights().items() if name.startswith("encoder.")}
    with pytest.raises(ValueError, match=r"released.ckpt has no projection; --encoder-only"):
        take_over(tmp_path, weights)
    assert not (tmp_path / "out").exists()  # nothing is left behind
    outcome = take_over(tmp_path, weights, encoder_only=True)
    assert outcome.checkpoint is None
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"encoder.safetensors"}
    show(outcome)


def test_a_file_without_an_online_head(images: Path, tmp_path: Path) -> None:
    weights = {n: v for n, v in released_weights().items() if not n.startswith(("supervised", "binned"))}
    outcome = take_over(tmp_path, weights)
    assert outcome.checkpoint is not None
    assert load_learner(outcome.checkpoint)[0].probe is None
    arguments = evaluate.Arguments(outcome.checkpoint, root=images, data="folder", protocols=("online",))
    with pytest.raises(ValueError, match="the checkpoint has no online head, the test set 10 classes"):
        evaluate.evaluate(arguments)


def test_parts_that_do_not_fit_together(tmp_path: Path) -> None:
    weights = released_weights() | {"projection.model.hidden.weight": torch.zeros(16, 31)}
    with pytest.raises(ValueError, match=r"released.ckpt, projection, .*hidden_0.weight \(16, 31\) in the file"):
        take_over(tmp_path, weights)
    weights = {n: v for n, v in released_weights().items() if n != "encoder.layer3.1.bn2.running_var"}
    for encoder_only in (False, True):
        with pytest.raises(ValueError, match=r"released.ckpt, encoder, .*1 missing, first layer3.1.bn2.running_var"):
            take_over(tmp_path, weights, encoder_only=encoder_only)


def test_code_is_refused_or_passed_over_but_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    says = {"data_dir": Evil()}
    with pytest.raises(ValueError, match=r"holds code: .*os.mkdir"):
        take_over(tmp_path, released_weights(), says)
    outcome = take_over(tmp_path, released_weights(), says, skip_foreign=True)
    show(outcome)
    assert "passed over and never run: os.mkdir" in capsys.readouterr().out
    assert outcome.checkpoint is not None
    load_learner(outcome.checkpoint)
    assert not (tmp_path / "ran").exists()


def test_other_recipes_tell_how_to_read_a_released_file(tmp_path: Path) -> None:
    path = save_released(tmp_path / "released.ckpt", released_weights())
    with pytest.raises(ValueError, match=r"released.ckpt was not written by stec.*recipes.vision.import_official"):
        load_learner(path)
    torch.save({"state_dict": released_weights(), "global_step": 1}, path)  # without any object
    with pytest.raises(ValueError, match=r"released.ckpt was not written by stec.*recipes.vision.import_official"):
        load_learner(path)
    save_released(path, released_weights(), {"data_dir": os.system})
    with pytest.raises(ValueError, match=r"released.ckpt holds code: .* os.system"):
        load_learner(path)
    outcome = take_over(tmp_path, released_weights())
    assert outcome.checkpoint is not None
    with pytest.raises(ValueError, match=r"imported.ckpt was written by stec already"):
        import_official(Arguments(outcome.checkpoint, tmp_path / "again"))


def sizes(kernel: int, classes: int | None = 10) -> Sizes:
    return Sizes("resnet18", kernel, 64, 512, 64, (512,), 6, classes)


def test_the_stem_is_told_or_asked_for() -> None:
    assert stem_of(sizes(3), {"dataset": "stl10", "maxpool1": True}, None) == "cifar"
    assert stem_of(sizes(7), {"maxpool1": False}, None) == "stl"
    assert stem_of(sizes(7), {"maxpool1": 1, "dataset": "imagenet2012"}, None) == "imagenet"
    assert stem_of(sizes(7), {"dataset": "stl10"}, None) == "stl"
    assert stem_of(sizes(7), {}, "imagenet") == "imagenet"
    for says in ({}, {"dataset": "cifar10"}, {"dataset": "stl10", "maxpool1": True}, {"maxpool1": "yes"}):
        with pytest.raises(ValueError, match=r"7x7.*does not decide.*give --stem"):
            stem_of(sizes(7), says, None)
    for kernel, given in ((3, "stl"), (7, "cifar")):
        with pytest.raises(ValueError, match=f"--stem {given}, but .* {kernel}x{kernel}"):
            stem_of(sizes(kernel), {}, given)  # type: ignore[arg-type]


def test_data_by_name_where_it_fits_else_by_stem_and_classes() -> None:
    assert data_of(sizes(3), "cifar", {"dataset": "cifar10"}) == "cifar10"
    assert data_of(sizes(3, 100), "cifar", {"dataset": "cifar10"}) == "cifar100"
    assert data_of(sizes(3, None), "cifar", {"dataset": "cifar100"}) == "cifar100"
    assert data_of(sizes(7), "stl", {}) == "stl10"
    assert data_of(sizes(7, 1000), "imagenet", {"dataset": ["a"]}) == "imagenet"
    assert data_of(sizes(7), "imagenet", {"dataset": "stl10"}) == "folder"


def test_resnet18_on_imagenet_has_no_preset_but_settings(tmp_path: Path) -> None:
    weights = released_weights(kernel=7, classes=1000)
    config = take_over(tmp_path, weights, {"dataset": "imagenet", "maxpool1": True}).config
    assert (config.preset, config.arch) == ("imagenet-resnet50-stec-official", "resnet18")
    assert config.augmentation == preset(config.preset).augmentation


def test_records_of_an_imported_checkpoint_lie_in_its_folder(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = take_over(tmp_path, released_weights(), data="folder")
    words = f"--root {images} --protocols online --actions True"
    monkeypatch.setattr("sys.argv", ["x", "--checkpoint", str(outcome.checkpoint), *words.split()])
    evaluate.main()
    (record,) = records.read(tmp_path / "out" / "results.json")
    assert [x.metric for x in record.results] == ["accuracy", "manipulation", "manipulation minus chance"]
