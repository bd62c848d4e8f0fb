"""Twenty steps of every preset family, term by term, as files that a refactor must reproduce.

They are taken in float64, for twenty steps of a small network enlarge a difference of rounding a hundred thousand
times: in float32 sums in another order, as another number of threads has them, give other curves. `make golden` writes
the files anew; the commit that changes one says why the numbers changed.
"""

import csv
import dataclasses
import io
import os
import platform
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from tones import Speech, make_speech, tiny
from torch import nn

from recipes.audio.run import pretrain as train_speech
from recipes.vision.presets import PRESETS, preset
from recipes.vision.run import pretrain as train_images

FILES = Path(__file__).parent / "golden"
WRITE = os.environ.get("STEC_GOLDEN") == "write"
STEPS = 20
DIGITS = 9  # terms are logged in float32
RELATIVE, ABSOLUTE = 1e-6, 1e-7

IMAGES = [name for name in PRESETS if name.startswith(("tiny-", "small-", "table2-stl10-augself-200"))]
IMAGES += ["quickstart", "cifar10-resnet18-byol-stec", "cifar10-resnet18-moco", "cifar10-resnet18-vicreg-stec"]
SOLARISED = ("tiny-stec", "tiny-byol-stec")  # pairs of which carry no action
SPEECH: dict[str, dict[str, Any]] = {
    "cpc": {},
    "cpc-drawn": {"samples": 3, "own_sequence": False},
    "cpc-transformer": {"predictor": "transformer", "score": "mean", "negatives": "all"},
    "cpc-pooled": {"time_insensitive": "pooled"},
    "cpc-frames": {"time_insensitive": "frames"},
    "cpc-switch": {"time_insensitive": "switch", "together": "speaker", "object": "chapter"},
    "cpc-cosine": {"optimizer": "adamw", "schedule": "cosine", "weight_decay": 0.01, "warmup_epochs": 1},
    "cpc-mlp": {"predictor": "mlp"},
    "cpc-same": {"negatives": "same group", "together": "speaker"},
    "gim": {"paddings": "gim", "input_mean": -6.78e-4, "input_std": 0.063, "samples": 3},
    "cpc-audio": {
        "normalisation": "channel",
        "recurrence": "lstm",
        "predictor": "transformer",
        "score": "mean",
        "samples": 5,
        "sampling": "all",
        "together": "speaker",
    },
    "supervised": {"supervised": True},
}


class Double(lightning.Callback):
    """Networks and losses in float64; views and waveforms stay as they are made."""

    def setup(self, trainer: lightning.Trainer, learner: lightning.LightningModule, stage: str) -> None:
        learner.double()
        for module in learner.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear, nn.GRU, nn.LSTM)):
                module.register_forward_pre_hook(lambda _, given: (given[0].double(), *given[1:]))


def here() -> str:
    """What the numbers depend on beside the code."""
    version = ".".join(torch.__version__.split(".")[:2])
    return f"torch {version}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def curves(folder: Path) -> list[dict[str, str]]:
    """The terms of the first steps of a run that read its losses at every step."""
    with (folder / "logs" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[:STEPS]
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    return [{name: f"{float(value):.{DIGITS}g}" for name, value in row.items()} for row in rows]


def compare(name: str, rows: list[dict[str, str]]) -> None:
    """Hold the rows against the committed file, or write it."""
    path = FILES / f"{name}.csv"
    if WRITE:
        path.parent.mkdir(exist_ok=True)
        with path.open("w", newline="") as file:
            file.write(f"# {here()}\n")
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return
    header, _, text = path.read_text().partition("\n")
    if header != f"# {here()}":
        pytest.skip(f"{path.name} is of {header[2:]}, this is {here()}")
    expected = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == list(expected[0])
    for row, wanted in zip(rows, expected, strict=True):
        found = {key: float(value) for key, value in row.items()}
        there = {key: float(value) for key, value in wanted.items()}
        assert found == pytest.approx(there, rel=RELATIVE, abs=ABSOLUTE, nan_ok=True), f"step {wanted['step']}"


@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str, tmp_path: Path) -> None:
    config = preset(name)
    wide = config.projection_hidden > 1024
    config = dataclasses.replace(
        config,
        data="rendered",
        limit=64,
        batch_size=16,
        epochs=5,
        warmup_epochs=1,
        width=4,
        projection_hidden=32 if wide else 16,
        projection_out=min(config.projection_out, 16),
        predictor_hidden=8,
        manipulation_hidden=(8, 8) if isinstance(config.manipulation_hidden, tuple) else 8,
        queue=48,
        precision="32-true",
        check_every=1,
        checkpoint_every=5,
    )
    if config.augmentation.size:
        config = dataclasses.replace(config, augmentation=dataclasses.replace(config.augmentation, size=None))
    if name in SOLARISED:
        config = dataclasses.replace(config, augmentation=dataclasses.replace(config.augmentation, p_solarise=0.3))
    train_images(config, tmp_path / "run", quiet=True, callbacks=[Double()])
    compare(name, curves(tmp_path / "run"))


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    return make_speech(tmp_path_factory.mktemp("speech"))


@pytest.mark.parametrize("name", list(SPEECH))
def test_speech(name: str, speech: Speech, tmp_path: Path) -> None:
    labels = speech.labels if SPEECH[name].get("supervised") else None
    config = tiny(speech, epochs=7, checkpoint_every=7, labels=labels, **SPEECH[name])
    train_speech(config, tmp_path / "run", quiet=True, callbacks=[Double()])
    compare(f"speech-{name}", curves(tmp_path / "run"))


def test_every_file_has_a_run() -> None:
    """A family that was renamed or taken away leaves no file behind."""
    assert {path.stem for path in FILES.glob("*.csv")} == {*IMAGES, *(f"speech-{name}" for name in SPEECH)}
