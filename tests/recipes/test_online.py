"""The accuracy of the online head on plain test images, for our own checkpoints."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import ten_classes
from PIL import Image

from recipes.vision import evaluate, inputs, measure
from recipes.vision.config import Config
from recipes.vision.presets import preset
from recipes.vision.run import build_learner, load_learner
from recipes.vision.run import pretrain as train
from stec.core.checkpoints import save_checkpoint
from stec.core.probe import OnlineProbe


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ten_classes(tmp_path_factory.mktemp("images"), test=20)


def tiny(images: Path) -> Config:
    return dataclasses.replace(
        preset("quickstart"),
        data="folder",
        root=images,
        width=4,
        limit=None,
        batch_size=10,
        epochs=1,
        warmup_epochs=0,
        precision="32-true",
        projection_hidden=16,
        projection_out=8,
        manipulation_hidden=16,
    )


@pytest.fixture(scope="module")
def checkpoint(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny(images), tmp_path_factory.mktemp("runs") / "run", quiet=True).checkpoint


def test_it_is_the_share_of_test_images_that_the_head_gets_right(images: Path, checkpoint: Path) -> None:
    (record,) = evaluate.evaluate(evaluate.Arguments(checkpoint, protocols=("online",)))
    learner, _, _ = load_learner(checkpoint)
    files = sorted((images / "test").rglob("*.png"), key=lambda path: (path.parent.name, path.name))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in files]).permute(0, 3, 1, 2)
    learner.eval()
    assert learner.probe is not None
    with torch.no_grad():
        predicted = learner.probe(learner.encoder(pixels / 255)).argmax(dim=1)
    share = (predicted == torch.arange(10).repeat_interleave(20)).double().mean().item()
    (result,) = record.results  # no actions, which take longer than all the rest
    assert (result.metric, result.protocol) == ("accuracy", "online")
    assert result.value == pytest.approx(share, abs=5e-5)
    assert 0 < share < 1
    assert result.details == {"test": 200, "classes": 10, "images": "as they are"}


def test_it_comes_beside_the_fitted_probes(checkpoint: Path) -> None:
    (record,) = evaluate.evaluate(evaluate.Arguments(checkpoint, protocols=("knn", "online")))
    assert [x.protocol for x in record.results] == ["knn", "online", "held-out", "held-out"]
    assert evaluate.accuracies(record, ("online", "linear", "knn"))[2] == ""
    assert evaluate.accuracies(record, ("online", "linear", "knn"))[1] == f"{100 * record.results[1].value:.1f}"


@pytest.mark.parametrize("classes", [0, 7])
def test_a_head_of_other_classes_is_an_error_if_asked_for_and_a_line_if_not(
    classes: int, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learner = build_learner(tiny(images), (32, 32), classes, batches=None)
    save_checkpoint(tmp_path / "checkpoints" / "a.ckpt", learner.state_dict(), learner.record, step=0)
    arguments = evaluate.Arguments(tmp_path / "checkpoints" / "a.ckpt", root=images, protocols=("knn", "online"))
    has = "no online head" if classes == 0 else "an online head of 7 classes"
    with pytest.raises(ValueError, match=f"the checkpoint has {has}, the test set 10 classes: leave online out"):
        evaluate.evaluate(arguments)
    _, test = inputs.labelled_images(tiny(images))
    reason = evaluate.foreign(learner.probe, test, "folder", "folder", None)
    assert evaluate.online_head(learner.probe, reason, asked=False) is None
    assert f"the checkpoint has {has}, the test set 10 classes: no online accuracy" in capsys.readouterr().out


def test_a_head_of_as_many_other_classes_is_refused(
    images: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the names of the classes; by the kind of the data too, which is all that an older checkpoint tells."""
    assert load_learner(checkpoint)[2]["class_names"] == [f"class{i}" for i in range(10)]
    others = ten_classes(tmp_path / "others")
    for split in ("train", "test"):
        (others / split / "class4").rename(others / split / "class33")
    asked = evaluate.Arguments(checkpoint, root=others, protocols=("online",))
    with pytest.raises(
        ValueError, match="class 4 of the checkpoint's online head is 'class4', of the test set 'class33'"
    ):
        evaluate.evaluate(asked)
    (unasked,) = evaluate.evaluate(dataclasses.replace(asked, protocols=evaluate.ALL, actions=False))
    assert [x.protocol for x in unasked.results] == ["linear", "logistic", "knn"]
    assert "of the test set 'class33': no online accuracy" in " ".join(capsys.readouterr().out.split())

    learner, _, record = load_learner(checkpoint)
    older = {name: value for name, value in record.items() if name != "class_names"}
    path = tmp_path / "checkpoints" / "older.ckpt"
    save_checkpoint(path, learner.state_dict(), older, step=0)
    (accepted,) = evaluate.evaluate(dataclasses.replace(asked, checkpoint=path))
    assert [x.protocol for x in accepted.results] == ["online"]
    test = inputs.labelled_images(dataclasses.replace(load_learner(path)[1], root=images))[1]
    assert evaluate.foreign(learner.probe, test, "cifar10", "folder", None) is None  # images of any set, as files
    reason = evaluate.foreign(learner.probe, test, "cifar10", "stl10", None)
    assert reason == "the checkpoint has an online head for the classes of cifar10, the test set is stl10"


def test_baselines_have_no_online_head(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="--baselines have no online head"):
        evaluate.evaluate(evaluate.Arguments(checkpoint, protocols=("online",), baselines=True))


def test_labels_that_the_head_does_not_know() -> None:
    head, features = OnlineProbe(2, 3), torch.rand(4, 2)
    for labels in (torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, -1])):
        with pytest.raises(ValueError, match="the online head knows 3 classes, which the 4 test labels are not of"):
            measure.online(head, features, labels)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
    found = measure.online(head, torch.eye(2).repeat(2, 1), torch.tensor([0, 1, 0, 2]))
    assert found.value == 0.75
