"""Probes of an encoder on another data set: at which size, on how many images, beside which baselines."""

import dataclasses
import sys
from pathlib import Path

import lightning
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional

from recipes import records
from recipes.vision import inputs, networks, transfer
from recipes.vision.measure import plain_batches
from recipes.vision.presets import preset
from recipes.vision.run import load_learner, pretrain
from recipes.vision.transfer import Arguments
from stec.core.probe import extract, knn_accuracy
from stec.vision.data import ImageSet
from stec.vision.rendered import rendered_images

WNIDS = ("n01", "n02", "n03")


def lay_out(root: Path, train: int = 12, val: int = 8) -> Path:
    """The first three rendered classes as a small Tiny-ImageNet, 64 pixels a side."""
    (root / "val" / "images").mkdir(parents=True)
    images, labels, _ = rendered_images(10 * (train + val), size=64, seed=5)
    lines = []
    for k, wnid in enumerate(WNIDS):
        (root / "train" / wnid / "images").mkdir(parents=True)
        for i, pixels in enumerate(images[labels == k].permute(0, 2, 3, 1).numpy()):
            if i < train:
                Image.fromarray(pixels).save(root / "train" / wnid / "images" / f"{i}.png")
            else:
                Image.fromarray(pixels).save(root / "val" / "images" / f"{k}_{i}.png")
                lines.append(f"{k}_{i}.png\t{wnid}\t0\t0\t63\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run on 30 rendered images of 32 pixels, whose views have the images' own size."""
    config = dataclasses.replace(
        preset("quickstart"),
        width=4,
        limit=30,
        batch_size=15,
        epochs=1,
        warmup_epochs=0,
        precision="32-true",
        projection_hidden=16,
        projection_out=8,
        manipulation_hidden=16,
    )
    assert config.augmentation.size is None
    return pretrain(config, tmp_path_factory.mktemp("runs") / "run", quiet=True).checkpoint


def tiny(checkpoint: Path, root: Path, **changes: object) -> Arguments:
    arguments = Arguments(checkpoint, "tiny-imagenet", root)
    return dataclasses.replace(arguments, **changes)  # type: ignore[arg-type]


def test_the_layout_is_read_for_pretraining_and_for_probes(root: Path) -> None:
    config = dataclasses.replace(preset("quickstart"), data="tiny-imagenet", root=root, limit=None)
    source = inputs.training_images(config)
    assert isinstance(source.images, ImageSet)
    assert source.images.images.shape == (36, 3, 64, 64)
    assert source.images.classes == WNIDS
    train, test = inputs.labelled_images(dataclasses.replace(config, limit=6))
    assert train.images.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert test.images.labels.bincount().tolist() == [8, 8, 8]
    with pytest.raises(ValueError, match=r"wnids\.txt does not exist"):  # and not as any folder with class folders
        inputs.training_images(dataclasses.replace(config, root=root / "train"))


def test_a_record_for_the_encoder_and_each_baseline(checkpoint: Path, root: Path) -> None:
    before = (checkpoint.parent.parent / "config.json").read_text()
    found = transfer.transfer(tiny(checkpoint, root))
    assert [r.method for r in found] == ["raw pixels", "untrained encoder", "S-TEC exact"]
    for record in found:
        assert [x.protocol for x in record.results] == ["linear", "logistic", "knn"]
        # all 36, although pretraining had a limit of 30
        assert {(x.details["train"], x.details["test"]) for x in record.results} == {(36, 24)}
        assert (record.data, record.stage, record.seed) == ("tiny-imagenet", "transfer", 0)
        assert record.settings["data"] == "rendered"
        assert record.settings["to"] == {"size": 32, "limit": None}
    assert (checkpoint.parent.parent / "config.json").read_text() == before


def test_all_three_see_the_images_at_the_size_of_pretraining(checkpoint: Path, root: Path) -> None:
    found = transfer.transfer(tiny(checkpoint, root, protocols=("knn",)))
    learner, config, _ = load_learner(checkpoint)
    lightning.seed_everything(config.seed, verbose=False)
    encoders = [nn.Flatten(), networks.encoder(config), learner.encoder]
    there = dataclasses.replace(config, data="tiny-imagenet", root=root, limit=None)
    small = []
    for source in inputs.labelled_images(there):
        assert isinstance(source.images, ImageSet)
        pixels = functional.resize(source.images.images, [37, 37], antialias=True)  # 32 * 256 / 224 = 36.6
        small.append((pixels[:, :, 2:34, 2:34] / 255, source.images.labels))
    for record, encoder in zip(found, encoders, strict=True):
        train, test = (extract(encoder, [part], device="cpu") for part in small)
        assert record.results[0].value == round(knn_accuracy(*train, *test).accuracy, 4)
    assert found[1].results[0].value != found[2].results[0].value


@pytest.mark.parametrize(("size", "pixels"), [(None, 32), (64, 64), (48, 48)])
def test_the_size_can_be_chosen(size: int | None, pixels: int, root: Path) -> None:
    config = dataclasses.replace(preset("quickstart"), data="tiny-imagenet", root=root, limit=None)
    there = inputs.at_size(config, (32, 32), size)
    _, test = inputs.labelled_images(there)
    images, _ = next(plain_batches(test, there))
    assert images.shape == (24, 3, pixels, pixels)
    assert isinstance(test.images, ImageSet)
    assert torch.equal(images, test.images.images / 255) == (size == 64)  # its own size: as they are


def test_the_size_of_the_law_goes_before_that_of_the_images() -> None:
    config = preset("quickstart")
    assert inputs.at_size(config, (32, 32)).augmentation.size == 32
    assert inputs.at_size(config, (32, 40)).augmentation.size is None  # no square: as they are
    law = dataclasses.replace(config.augmentation, size=96)
    assert inputs.at_size(dataclasses.replace(config, augmentation=law), (32, 32)).augmentation.size == 96
    with pytest.raises(ValueError, match="size is 0; need the pixels of a side"):
        inputs.at_size(config, (32, 32), 0)


def test_the_command_leaves_the_runs_results_alone(
    checkpoint: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = checkpoint.parent.parent / "results.json"
    own.write_text("[]\n")
    words = f"transfer --checkpoint {checkpoint} --to tiny-imagenet --root {root} --protocols knn --limit 9"
    monkeypatch.setattr(sys, "argv", words.split())
    transfer.main()
    assert own.read_text() == "[]\n"
    found = records.read(own.parent / "transfer-tiny-imagenet.json")
    assert [r.results[0].details["train"] for r in found] == [9, 9, 9]
    shown = capsys.readouterr().out
    assert "tiny-imagenet at 32 pixels, 9 training and 24 test images" in shown
    assert f"{100 * found[-1].results[0].value:.1f}" in shown
    assert str(root) not in found[0].command


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "stl10"])
def test_sets_are_fetched_only_where_that_is_asked_for(
    data: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def reader(root: Path, *args: object, download: bool, **kwargs: object) -> ImageSet:
        asked.append(download)
        return ImageSet(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]), ("a", "b"))

    monkeypatch.setattr(inputs, data, reader)
    arguments = tiny(checkpoint, tmp_path, to=data, protocols=("knn",), baselines=False)
    found = transfer.transfer(arguments)
    transfer.transfer(dataclasses.replace(arguments, download=True))
    assert asked == [False, False, True, True]
    assert found[0].results[0].value == 0.5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"root": None}, "give --root FOLDER"),
        ({"root": Path("nowhere")}, r"wnids\.txt does not exist"),
        ({"size": 0}, "size is 0"),
        ({"checkpoint": Path("nowhere.ckpt")}, r"no checkpoint at nowhere\.ckpt"),
        ({"to": "folder", "root": Path("nowhere")}, "nowhere does not exist; give --root"),
    ],
)
def test_mistakes(changes: dict[str, object], words: str, checkpoint: Path, root: Path) -> None:
    with pytest.raises(ValueError, match=words):
        transfer.transfer(dataclasses.replace(tiny(checkpoint, root), **changes))  # type: ignore[arg-type]
