"""Exported encoders: the card's own lines, run as they stand, give the features of the run's encoder."""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from released import released_weights, save_released
from safetensors.torch import load_file

from recipes import records
from recipes.vision import export
from recipes.vision.config import Config
from recipes.vision.export import Arguments, loading
from recipes.vision.import_official import Arguments as Import
from recipes.vision.import_official import import_official
from recipes.vision.presets import preset
from recipes.vision.run import build_learner, load_learner
from stec.core.checkpoints import save_checkpoint


def config_of(stem: str, **changes: Any) -> Config:
    name = {"cifar": "cifar10-resnet18-stec", "stl": "stl10-resnet18-simclr", "imagenet": "imagenet-resnet50-stec"}[
        stem
    ]
    return dataclasses.replace(preset(name), arch="resnet18", **changes)


def write_run(folder: Path, config: Config) -> Path:
    """A run's folder with a checkpoint of networks that have seen data: BatchNorm's statistics are not 0 and 1."""
    learner = build_learner(config, (32, 32), 10, batches=None).train()
    with torch.no_grad():
        learner.encoder(torch.rand(4, 3, 32, 32))
    path = folder / "checkpoints" / "step=1.ckpt"
    save_checkpoint(path, learner.state_dict(), learner.record, step=1)
    return path


def results(method: str = "S-TEC exact") -> list[records.Record]:
    found = [
        records.Result("accuracy", 0.9187, "linear", {"train": 50_000}),
        records.Result("manipulation minus chance", -0.61, "held-out", {}),
    ]
    return [
        records.record(method=method, preset="p", data="cifar10", seed=3, seconds=None, results=found),
        records.record(method="raw pixels", preset="p", data="cifar10", seed=3, seconds=None, results=found[:1]),
    ]


def code(card: str) -> list[str]:
    """The lines of the card's first block of Python."""
    return [line for line in blocks(card)[0].splitlines() if line]


def blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


@pytest.mark.parametrize("stem", ["cifar", "stl", "imagenet"])
def test_the_cards_lines_load_it_with_torchvision_alone(
    stem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_run(tmp_path / "run", config_of(stem))
    export.export(Arguments(path, tmp_path / "out"))
    lines = code((tmp_path / "out" / "README.md").read_text())
    assert lines[0] == "import safetensors.torch, torch, torchvision"
    assert len(lines) - 1 == (2 if stem == "imagenet" else 3)
    monkeypatch.chdir(tmp_path / "out")
    scope: dict[str, Any] = {}
    exec("\n".join(lines), scope)
    net = scope["net"]
    assert type(net) is torchvision.models.ResNet
    net.fc = torch.nn.Identity()
    encoder = load_learner(path)[0].encoder.double().eval()
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net.double().eval()(x), encoder(x), atol=1e-9, rtol=1e-9)
    fresh = torchvision.models.resnet18()
    fresh.conv1 = net.conv1
    weights = torch.load("encoder.pt", weights_only=True)
    told = fresh.load_state_dict(weights, strict=False)
    assert (told.missing_keys, told.unexpected_keys) == (["fc.weight", "fc.bias"], [])
    for name, value in load_file("encoder.safetensors").items():
        assert torch.equal(value, weights[name])
        assert torch.equal(value.double(), encoder.state_dict()[name].double())


@pytest.mark.parametrize(("stem", "width"), [("stl", 8), ("cifar", 64), ("imagenet", 4)])
def test_the_cards_lines_load_it_with_stec(
    stem: str, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of any width and stem, and the command shows the same lines."""
    path = write_run(tmp_path / "run", config_of(stem, width=width))
    monkeypatch.setattr("sys.argv", ["x", "--checkpoint", str(path), "--out", str(tmp_path / "out")])
    export.main()
    block = blocks((tmp_path / "out" / "README.md").read_text())[-2]
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    start = shown.index("import safetensors.torch")
    assert shown[start:][: len(block.splitlines())] == block.splitlines()
    monkeypatch.chdir(tmp_path / "out")
    scope: dict[str, Any] = {"images": torch.rand(2, 3, 40, 40)}
    exec(block, scope)
    assert scope["features"].shape == (2, 8 * width)
    x = scope["images"].double()
    with torch.no_grad():
        expected = load_learner(path)[0].encoder.double().eval()(x)
        torch.testing.assert_close(scope["encoder"].double()(x), expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(scope["features"].double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_both_files_of_weights_are_readable_as_the_umask_says(umask: int, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", config_of("cifar", width=4))
    before = os.umask(umask)
    try:
        export.export(Arguments(path, tmp_path / "out"))
    finally:
        os.umask(before)
    for name in ("encoder.safetensors", "encoder.pt"):
        assert (tmp_path / "out" / name).stat().st_mode & 0o777 == 0o666 & ~umask, name


def test_the_card_and_the_settings(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", config_of("cifar", width=8))
    records.write(results(), tmp_path / "run" / "results.json")
    export.export(Arguments(path, tmp_path / "out", licence="CC-BY-4.0"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith('---\nlicense: "cc-by-4.0"\n')
    assert "# resnet18 by S-TEC exact on cifar10" in card
    assert "`recipes.vision.pretrain cifar10-resnet18-stec`" in card
    assert "| S-TEC exact | accuracy | 0.9187 | linear | evaluate | cifar10 | 3 |" in card
    assert "| S-TEC exact | manipulation minus chance | -0.6100 | held-out | evaluate | cifar10 | 3 |" in card
    assert "| raw pixels | accuracy" in card
    assert "The weights: CC-BY-4.0. The data: CIFAR-10 (Krizhevsky 2009), published without a licence" in card
    assert "Of width 8, which torchvision does not build" in card
    assert len(blocks(card)) == 2
    assert "torch.hub.load(" in blocks(card)[1]
    assert "in [0, 1], not normalised" in card
    facts = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {k: facts[k] for k in ("arch", "stem", "width", "feature_dim", "licence", "preset", "imported")} == {
        "arch": "resnet18",
        "stem": "cifar",
        "width": 8,
        "feature_dim": 64,
        "licence": "CC-BY-4.0",
        "preset": "cifar10-resnet18-stec",
        "imported": None,
    }
    assert facts["settings"]["temperature"] == 0.5
    assert str(tmp_path) not in card + json.dumps(facts)


def test_without_results_and_licence_the_card_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path / "run", config_of("imagenet", width=4))
    monkeypatch.setattr("sys.argv", ["x", "--checkpoint", str(path), "--out", str(tmp_path / "out")])
    export.main()
    assert "the card states no licence for the weights" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith('---\nlicense: "other"\n')
    assert "The weights: not stated by whoever exported them" in card
    assert "None recorded; `python -m recipes.vision.evaluate` makes them." in card
    assert "resized to 256 pixels and cut to 224" in card


def test_an_imported_encoder_says_where_it_comes_from(tmp_path: Path) -> None:
    weights = released_weights()
    source = import_official(Import(save_released(tmp_path / "r.ckpt", weights), tmp_path / "run"))
    assert source.checkpoint is not None
    export.export(Arguments(source.checkpoint, tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"imported from r.ckpt (SHA-256 {source.official.sha256})" in card
    found = load_file(tmp_path / "out" / "encoder.safetensors")
    assert all(torch.equal(value, weights[f"encoder.{name}"]) for name, value in found.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["imported"]["sha256"] == source.official.sha256


def test_other_results_and_mistakes(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", config_of("cifar", width=4))
    records.write(results("another"), tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"there is no file .*none.json"):
        export.export(Arguments(path, tmp_path / "out", results=tmp_path / "none.json"))
    export.export(Arguments(path, tmp_path / "out", results=tmp_path / "other.json"))
    assert "| another | accuracy" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(ValueError, match=r"out holds a run or an encoder already; choose another --out"):
        export.export(Arguments(path, tmp_path / "out"))
    with pytest.raises(ValueError, match=r"run holds a run"):
        export.export(Arguments(path, tmp_path / "run"))
    save_checkpoint(tmp_path / "speech.ckpt", {}, {"config": {}}, step=0)
    with pytest.raises(ValueError, match=r"speech.ckpt is no checkpoint of images"):
        export.export(Arguments(tmp_path / "speech.ckpt", tmp_path / "other"))


def test_the_lines_are_two_with_the_stem_of_imagenet() -> None:
    two = loading(config_of("imagenet"))
    assert two == [
        "net = torchvision.models.resnet18()",
        'net.load_state_dict(safetensors.torch.load_file("encoder.safetensors"), strict=False)  # only fc is missing',
    ]
    assert loading(config_of("imagenet", width=32)) is None
