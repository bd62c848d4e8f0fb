"""Detection as people run it, on drawn rectangles: precision in closed forms, whole runs, resumption, mistakes."""

import dataclasses
import hashlib
import importlib.util
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rectangles import CLASSES, draw_folder
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from recipes import records
from recipes.vision import detect, networks, voc_encoders
from recipes.vision.finetune_loop import fit
from recipes.vision.presets import Config, preset
from recipes.vision.run import to_plain
from recipes.vision.voc_predictions import Found, average_precision
from recipes.vision.voc_schedule import Schedule
from stec.core.checkpoints import export_weights
from stec.core.learner import NonFiniteLoss
from stec.vision.encoders import resnet18, torchvision_state_dict
from stec.vision.voc import Objects

pytest.importorskip("pycocotools")


# --- average precision


def objects(
    boxes: Sequence[Sequence[float]], labels: Sequence[int], difficult: Sequence[bool] | None = None
) -> Objects:
    hard = torch.tensor(difficult or [False] * len(labels), dtype=torch.bool)
    return Objects(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(labels), hard)


def found(boxes: Sequence[Sequence[float]], labels: Sequence[int], scores: Sequence[float]) -> Found:
    place = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": place, "labels": torch.tensor(labels, dtype=torch.int64), "scores": torch.tensor(scores)}


def values(results: list[records.Result]) -> dict[str, float]:
    return {result.metric: result.value for result in results}


A, B, C = [0.0, 0.0, 10.0, 20.0], [30.0, 30.0, 60.0, 50.0], [5.0, 40.0, 25.0, 70.0]


@pytest.mark.parametrize("points", [11, 101])
def test_perfect_predictions_have_precision_one(points: int) -> None:
    truth = [objects([A, B], [1, 2]), objects([C], [1])]
    given = [found([B, A], [2, 1], [0.9, 0.3]), found([C], [1], [0.6])]
    results = average_precision(given, truth, CLASSES, points=points)
    assert values(results) == {"AP50": 1.0, "AP75": 1.0, "AP": 1.0}
    assert results[0].details["of each class"] == {"blue": 1.0, "red": 1.0}
    wrong = [found([B, A], [1, 2], [0.9, 0.3]), found([C], [2], [0.6])]
    assert values(average_precision(wrong, truth, CLASSES, points=points))["AP50"] == 0.0


def test_the_thresholds_in_between() -> None:
    # The detection covers 0.8 of the object and nothing else: right at 0.5, 0.55, ..., 0.8, so at 7 of 10 thresholds.
    results = average_precision([found([[0.0, 0.0, 10.0, 16.0]], [1], [0.5])], [objects([A], [1])], CLASSES, points=101)
    assert values(results) == {"AP50": 1.0, "AP75": 1.0, "AP": 0.7}


def test_nothing_found_and_classes_without_objects() -> None:
    nothing = found([], [], [])
    assert values(average_precision([nothing], [objects([A], [1])], CLASSES, points=11))["AP50"] == 0.0
    both = [found([A, B], [1, 2], [0.9, 0.8])]  # a red one is found where there is none
    results = average_precision(both, [objects([A], [1])], CLASSES, points=11)
    assert values(results)["AP50"] == 1.0  # the mean is over classes that occur
    assert results[0].details["of each class"] == {"blue": 1.0}


def test_difficult_objects_count_for_nothing() -> None:
    truth = [objects([A, B], [1, 1], [False, True])]
    for given in (found([A], [1], [0.9]), found([B, A], [1, 1], [0.95, 0.9])):
        assert values(average_precision([given], truth, CLASSES, points=11))["AP50"] == 1.0
    beside = found([C, A], [1, 1], [0.95, 0.9])
    assert values(average_precision([beside], truth, CLASSES, points=11))["AP50"] == 0.5


@pytest.mark.parametrize("labels", [[1], []])
def test_without_an_object_that_counts_precision_is_not_defined(labels: list[int]) -> None:
    hard = objects([A] * len(labels), labels, [True] * len(labels))
    with pytest.raises(
        ValueError, match=rf"none of the 2 test images holds .* \({2 * len(labels)} are marked difficult"
    ):
        average_precision([found([A], [1], [0.9])] * 2, [hard, hard], CLASSES, points=11)


def voc2007(hits: list[bool], count: int) -> float:
    """The 11-point rule, from its definition: the mean over r of the best precision at a recall of at least r."""
    points = [(sum(hits[: i + 1]), i + 1) for i in range(len(hits))]
    best = [max((right / n for right, n in points if 10 * right >= r * count), default=0.0) for r in range(11)]
    return sum(best) / 11


def test_eleven_points_are_those_of_voc2007() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        count = int(random.integers(1, 9))
        boxes = [[20.0 * i, 0.0, 20.0 * i + 10, 10.0] for i in range(count)]
        places = random.permutation(2 * count)[: int(random.integers(1, 2 * count + 1))]
        given = [boxes[i] if i < count else [20.0 * i, 50.0, 20.0 * i + 10, 60.0] for i in places]
        scores = [float(0.9 - 0.02 * i) for i in range(len(places))]
        results = average_precision(
            [found(given, [1] * len(given), scores)], [objects(boxes, [1] * count)], CLASSES, points=11
        )
        assert results[0].value == pytest.approx(voc2007([bool(i < count) for i in places], count), abs=1e-4)


# --- whole runs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "VOC"
    draw_folder(folder, "train", [f"train{i}" for i in range(6)])
    return draw_folder(folder, "test", [f"test{i}" for i in range(3)], seed=1, difficult=True)


def arguments(root: Path, out: Path, **changes: object) -> detect.Arguments:
    """A run of seconds from an untrained encoder; `changes` of the schedule, of the data, or of the rest."""
    schedule = {
        "steps": 4,
        "lr": 0.01,
        "batch_size": 2,
        "warmup_steps": 1,
        "drops": (3,),
        "precise_bn": 2,
        "save_every": 2,
    }
    config = {
        "train": ("VOC/train",),
        "test": ("VOC/test",),
        "classes": (),
        "boxes": "refuse",
        "min_sizes": (40, 48),
        "anchors": (8, 16, 24),
        "proposals": (40, 20),
        "rois": 16,
        "roi_size": 4,
    }
    rest: dict[str, object] = {"encoders": voc_encoders.Encoders(random=True, arch="resnet18", stem="stl", width=4)}
    base = detect.PRESETS["bccd-small"]
    for name, value in changes.items():
        part = schedule if hasattr(base.schedule, name) else config if hasattr(base.config, name) else rest
        part[name] = value
    return dataclasses.replace(
        base,
        schedule=dataclasses.replace(base.schedule, **schedule),
        config=dataclasses.replace(base.config, **config),
        root=root.parent,
        out=out,
        **rest,
    )


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder."""
    out = tmp_path_factory.mktemp("runs")
    detect.detect(arguments(root, out))
    return out


def test_a_run_leaves_its_record_weights_and_picture(run: Path) -> None:
    (record,) = records.read(run / "results.json")
    assert (record.method, record.stage, record.preset, record.seed) == ("untrained encoder", "detect", "bccd-small", 0)
    assert [result.metric for result in record.results] == ["AP50", "AP75", "AP"]
    assert record.settings["classes"] == list(CLASSES)
    assert record.settings["encoder"] == {"arch": "resnet18", "stem": "stl", "width": 4}
    assert str(run.parent) not in (run / "results.json").read_text()  # no path of this machine
    folder = run / "untrained-seed0"
    assert json.loads((folder / "config.json").read_text())["steps"] == 4
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert rows[0] == "step,loss,classifier,box_reg,objectness,rpn_box_reg,lr"
    assert [row.split(",")[0] for row in rows[1:]] == ["2", "4"]
    terms = [float(value) for value in rows[1].split(",")[1:6]]
    assert terms[0] == pytest.approx(sum(terms[1:]))
    assert "backbone.layer3.0.conv1.weight" in load_file(folder / "weights.safetensors")
    with Image.open(folder / "predictions.png") as image:
        assert image.width > 500
    assert (folder / "predictions.png").stat().st_size < 150_000


def test_an_interrupted_run_goes_on_to_the_same_weights(
    root: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = arguments(root, tmp_path)
    detect.detect(args)
    folder = tmp_path / "untrained-seed0"
    whole = load_file(folder / "weights.safetensors")
    assert all(
        torch.equal(value, whole[key])
        for key, value in load_file(run / "untrained-seed0" / "weights.safetensors").items()
    )
    (folder / "checkpoints" / "step=4.ckpt").unlink()  # as if interrupted after its second step
    (folder / "results.json").unlink()
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match="untrained-seed0 holds a run already; go on with --resume"):
        detect.detect(args)
    capsys.readouterr()
    (record,) = detect.detect(dataclasses.replace(args, resume=True))
    assert "untrained-seed0: going on from step 2 of 4\n" in capsys.readouterr().out
    assert record.settings["resumed"] is True
    again = load_file(folder / "weights.safetensors")
    assert set(again) == set(whole)
    for key, value in whole.items():
        assert torch.equal(again[key], value), key
    assert len((folder / "metrics.csv").read_text().splitlines()) == 3


def test_finished_runs_are_kept_and_other_settings_refused(root: Path, run: Path, tmp_path: Path) -> None:
    before = records.read(run / "results.json")
    kept = detect.detect(dataclasses.replace(arguments(root, run), resume=True))
    assert kept == before
    (tmp_path / "untrained-seed0").mkdir()
    (run / "untrained-seed0" / "checkpoints").rename(tmp_path / "untrained-seed0" / "checkpoints")
    with pytest.raises(ValueError, match=r"other settings: lr 0\.01 there, 0\.5 here; give the same"):
        detect.detect(dataclasses.replace(arguments(root, tmp_path, lr=0.5), resume=True))
    (tmp_path / "untrained-seed0" / "checkpoints").rename(run / "untrained-seed0" / "checkpoints")


def test_a_finished_run_of_another_encoder_or_other_settings_is_refused(root: Path, tmp_path: Path) -> None:
    def from_file(seed: int, **changes: object) -> detect.Arguments:
        torch.manual_seed(seed)
        export_weights(torchvision_state_dict(resnet18("stl", width=4)), tmp_path / "mine.safetensors")
        given = voc_encoders.Encoders(weights=(tmp_path / "mine.safetensors",), arch="resnet18", stem="stl", width=4)
        short = {"steps": 2, "drops": (), "precise_bn": 0, "encoders": given, **changes}
        return arguments(root, tmp_path / "out", **short)

    (record,) = detect.detect(from_file(0))
    digest = hashlib.sha256((tmp_path / "mine.safetensors").read_bytes()).hexdigest()
    assert record.settings["encoder"]["sha256"] == digest  # type: ignore[index]
    assert detect.detect(from_file(0, resume=True)) == [record]
    with pytest.raises(ValueError, match=rf"mine-seed0 holds .* settings: encoder\.sha256 {digest} there, .*--out"):
        detect.detect(from_file(1, resume=True))
    with pytest.raises(ValueError, match=r"settings: steps 2 there, 4 here; give the same, or another --out"):
        detect.detect(from_file(0, resume=True, steps=4))
    (tmp_path / "out" / "mine-seed0" / "results.json").unlink()  # trained, not measured
    with pytest.raises(ValueError, match=rf"other settings: encoder\.sha256 {digest} there, \w+ here; give the same"):
        detect.detect(from_file(1, resume=True))
    assert len(detect.detect(from_file(0, resume=True))) == 1


def test_the_pyramid_and_seeds(root: Path, tmp_path: Path) -> None:
    sizes = {"anchors": (4, 8, 16, 24, 32), "channels": 8}
    done = detect.detect(
        arguments(root, tmp_path, form="fpn", seeds=(0, 1), steps=2, drops=(), train_difficult=False, **sizes)
    )
    assert [(record.seed, record.settings["form"]) for record in done] == [(0, "fpn"), (1, "fpn")]
    first, second = (load_file(tmp_path / f"untrained-seed{seed}" / "weights.safetensors") for seed in (0, 1))
    assert not torch.equal(first["backbone.body.conv1.weight"], second["backbone.body.conv1.weight"])


def test_difficult_objects_are_left_out_of_training_on_request(root: Path) -> None:
    class Recorder(nn.Module):
        def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            self.seen = targets
            return {"loss_objectness": torch.zeros(())}

    batch = [torch.zeros(3, 8, 8, dtype=torch.uint8)], [objects([A, B], [1, 2], [True, False])]
    model = Recorder()
    for difficult, labels in ((True, [1, 2]), (False, [2])):
        config = dataclasses.replace(detect.PRESETS["voc"].config, train_difficult=difficult)
        assert list(detect.loss_of(config)(model, batch, torch.device("cpu"))) == ["objectness"]
        assert model.seen[0]["labels"].tolist() == labels
        assert len(model.seen[0]["boxes"]) == len(labels)


# --- encoders


def checkpoint(path: Path, **changes: object) -> tuple[Path, nn.Module]:
    """A file as pretraining writes it, and its encoder."""
    config: Config = dataclasses.replace(preset("quickstart"), width=4, **changes)  # type: ignore[arg-type]
    torch.manual_seed(5)
    encoder = networks.encoder(config)
    weights = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    record = {"config": to_plain(config), "image_size": [32, 32], "classes": 0}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": weights, "global_step": 1, "stec": {"format": 1, "record": record}}, path)
    return path, encoder


def test_both_encoders_run_with_the_same_budget(root: Path, tmp_path: Path) -> None:
    path, encoder = checkpoint(tmp_path / "my-run" / "checkpoints" / "step=1.ckpt")
    encoders = voc_encoders.Encoders(checkpoint=(path,), random=True)
    pretrained, untrained = voc_encoders.sources(encoders)
    for name, value in pretrained.build(0).state_dict().items():
        assert torch.equal(value, encoder.state_dict()[name])
    assert untrained.build(1).conv1.weight.shape == encoder.conv1.weight.shape  # type: ignore[union-attr]
    assert not torch.equal(untrained.build(1).conv1.weight, untrained.build(2).conv1.weight)  # type: ignore[arg-type]
    done = detect.detect(arguments(root, tmp_path / "out", encoders=encoders, steps=2, drops=(), precise_bn=0))
    assert [record.method for record in done] == ["S-TEC exact", "untrained encoder"]
    assert done[0].settings["encoder"]["pretraining"]["width"] == 4  # type: ignore[index]
    keys = set(done[0].settings) - {"encoder"}
    assert all(done[0].settings[key] == done[1].settings[key] for key in keys)
    assert (tmp_path / "out" / "my-run-seed0" / "weights.safetensors").is_file()


def test_weights_with_torchvision_s_keys(tmp_path: Path) -> None:
    encoder = resnet18("stl", width=4)
    export_weights(torchvision_state_dict(encoder), tmp_path / "mine.safetensors")
    given = voc_encoders.Encoders(weights=(tmp_path / "mine.safetensors",), arch="resnet18", stem="stl", width=4)
    (source,) = voc_encoders.sources(given)
    assert (source.name, source.method) == ("mine", "mine")
    assert torch.equal(source.build(0).layer4[1].conv2.weight, encoder.layer4[1].conv2.weight)  # type: ignore[index, union-attr]
    with pytest.raises(ValueError, match=r"mine.safetensors: .* is .*another stem or width"):
        voc_encoders.sources(dataclasses.replace(given, width=8))
    built = {"arch": "resnet18", "stem": "stl", "width": "4"}  # as exports say of themselves
    (tmp_path / "mine").mkdir()
    exported = tmp_path / "mine" / "encoder.safetensors"
    export_weights(torchvision_state_dict(encoder), exported, metadata=built)
    (source,) = voc_encoders.sources(voc_encoders.Encoders(weights=(exported,)))
    assert (source.name, source.settings["stem"], source.settings["width"]) == ("mine", "stl", 4)
    assert isinstance(source.build(0).maxpool, nn.Identity)
    export_weights(torchvision_state_dict(encoder), exported, metadata={**built, "width": "64"})
    with pytest.raises(ValueError, match="header names width '64', which its first convolution has not"):
        voc_encoders.sources(voc_encoders.Encoders(weights=(exported,)))
    (tmp_path / "torn.safetensors").write_bytes(b"\x08\x00\x00")
    with pytest.raises(ValueError, match=r"torn.safetensors: it is no safetensors file"):
        voc_encoders.sources(dataclasses.replace(given, weights=(tmp_path / "torn.safetensors",)))
    with pytest.raises(ValueError, match=r"none.safetensors: there is no such file"):
        voc_encoders.sources(dataclasses.replace(given, weights=(tmp_path / "none.safetensors",)))
    with pytest.raises(ValueError, match="two encoders have one name"):
        voc_encoders.sources(dataclasses.replace(given, weights=given.weights * 2))


class Code:
    """Runs when a careless reader loads it."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (Path("ran"),)


def test_a_checkpoint_that_holds_code_is_refused_unrun(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AttributeError):  # the bait works: pickle runs it
        pickle.loads(pickle.dumps(Code())).no_such_thing  # noqa: B018
    assert Path("ran").exists()
    Path("ran").unlink()
    torch.save({"state_dict": {}, "global_step": 1, "stec": {"format": 1, "record": Code()}}, "code.ckpt")
    encoders = voc_encoders.Encoders(checkpoint=(Path("code.ckpt"),))
    with pytest.raises(ValueError, match=r"code.ckpt (holds code|is torn)"):
        detect.detect(arguments(root, tmp_path / "out", encoders=encoders))
    assert not Path("ran").exists()
    with pytest.raises(ValueError, match=r"code.ckpt: it is no safetensors file"):
        voc_encoders.sources(voc_encoders.Encoders(weights=(Path("code.ckpt"),)))
    assert not Path("ran").exists()


# --- mistakes, before anything is trained


def test_mistakes_on_the_command_line(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for argv, message in (
        (["bccd"], "no preset 'bccd'; there are voc, bccd-small"),
        (["bccd-small", "--random"], "give --root"),
        (["bccd-small", "--root", "."], "no encoder to begin from; give --checkpoint FILE"),
        (["bccd-small", "--root", ".", "--random", "--warmup-steps", "400"], "400 warm-up steps of 400"),
        (["bccd-small", "--root", ".", "--random", "--steps", "0"], "steps is 0; need at least 1"),
        (["bccd-small", "--root", ".", "--random", "--lr", "0"], "lr must be positive"),
        (["voc", "--root", ".", "--random"], "VOC2007/JPEGImages does not exist"),
        (["bccd-small", "--root", ".", "--random", "--train"], "no split is named"),
        (["bccd-small", "--root", str(root), "--random", "--train", "train", "--test", "train"], "classes .*red"),
    ):
        with pytest.raises(ValueError, match=message):
            detect.main(argv)
    assert list(tmp_path.iterdir()) == []


def test_test_images_that_were_trained_on_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"6 images are trained and tested on, such as .*train0.jpg; name splits"):
        detect.detect(arguments(root, tmp_path, test=("VOC/all",)))


def test_classes_of_the_test_data_that_training_lacks_are_refused(root: Path, tmp_path: Path) -> None:
    draw_folder(tmp_path / "VOC", "train", ["a", "b"])
    for name in "ab":
        path = tmp_path / "VOC" / "Annotations" / f"{name}.xml"
        path.write_text(path.read_text().replace("blue", "green"))
    with pytest.raises(ValueError, match=r"unknown classes: .*'green'; the classes are blue, red"):
        detect.detect(arguments(root, tmp_path / "out", test=(f"{tmp_path}/VOC/train",)))


def test_test_data_without_an_object_that_counts_are_refused(root: Path, tmp_path: Path) -> None:
    draw_folder(tmp_path / "VOC", "train", ["a", "b"])
    for name in "ab":
        path = tmp_path / "VOC" / "Annotations" / f"{name}.xml"
        assert "<name>" in path.read_text()
        text = path.read_text().replace("<difficult>0</difficult>", "")
        path.write_text(text.replace("<bndbox>", "<difficult>1</difficult><bndbox>"))
    with pytest.raises(ValueError, match="no test object counts: all are marked difficult"):
        detect.detect(arguments(root, tmp_path / "out", test=(f"{tmp_path}/VOC/train",)))


def test_missing_libraries_are_told(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pycocotools" else find(name))
    with pytest.raises(ValueError, match=r'pycocotools missing; pip install -e "\.\[transfer\]" in the clone'):
        detect.detect(arguments(root, tmp_path))


# --- the loop


class Numbers(Dataset[Tensor]):
    """Item (index, seed): three numbers that both decide."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        return torch.rand(3, 1, 1, generator=torch.Generator().manual_seed(key[1])) + key[0]


def a_schedule(**changes: object) -> Schedule:
    base = Schedule(steps=3, batch_size=2, lr=1e-9, warmup_steps=0, drops=(), precise_bn=4, workers=0)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_batch_norm_is_measured_after_training(tmp_path: Path) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    seen: list[Tensor] = []

    def loss(model: nn.Module, batch: Tensor, where: torch.device) -> dict[str, Tensor]:
        seen.append(batch)
        return {"sum": model(batch).sum()}

    fit(model, Numbers(), default_collate, loss, tmp_path, schedule=a_schedule(), settings={}, seed=0, resume=False)
    assert len(seen) == 3 + 4
    assert len({tuple(batch.flatten().tolist()) for batch in seen}) == 7
    means = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in seen[3:]])
    variances = torch.stack([batch.var(dim=(0, 2, 3)) for batch in seen[3:]])
    torch.testing.assert_close(model[0].running_mean, means.mean(dim=0))
    torch.testing.assert_close(model[0].running_var, variances.mean(dim=0))
    assert model[0].momentum == 0.1
    assert not model.training


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)

    def loss(model: nn.Module, batch: Tensor, where: torch.device) -> dict[str, Tensor]:
        value = model(torch.ones(1, 1)).sum()
        loss.calls += 1  # type: ignore[attr-defined]
        return {"good": value, "bad": value * (float("nan") if loss.calls == 2 else 1.0)}  # type: ignore[attr-defined]

    loss.calls = 0  # type: ignore[attr-defined]
    with pytest.raises(NonFiniteLoss, match="loss became nan at step 1; try a lower --lr"):
        fit(model, Numbers(), default_collate, loss, tmp_path, schedule=a_schedule(), settings={}, seed=0, resume=False)
    assert not any(tmp_path.glob("checkpoints/*.ckpt"))


def test_weights_of_batch_norm_do_not_decay(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def loss(model: nn.Module, batch: Tensor, where: torch.device) -> dict[str, Tensor]:
        return {"none": 0 * model(batch).sum()}

    law = a_schedule(steps=1, lr=1.0, weight_decay=0.5, precise_bn=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, Numbers(), default_collate, loss, tmp_path, schedule=law, settings={}, seed=0, resume=False)
    after = model.state_dict()
    for name in ("0.weight", "0.bias"):
        torch.testing.assert_close(after[name], before[name] / 2)
    for name in ("1.weight", "1.bias"):
        assert torch.equal(after[name], before[name])


def test_workers_change_nothing(tmp_path: Path) -> None:
    seen: dict[int, list[Tensor]] = {0: [], 2: []}
    for workers, batches in seen.items():

        def loss(
            model: nn.Module, batch: Tensor, where: torch.device, into: list[Tensor] = batches
        ) -> dict[str, Tensor]:
            into.append(batch)
            return {"none": 0 * model(batch).sum()}

        law = a_schedule(steps=5, precise_bn=2, workers=workers)
        model = nn.Conv2d(3, 1, 1)
        folder = tmp_path / str(workers)
        fit(model, Numbers(), default_collate, loss, folder, schedule=law, settings={}, seed=0, resume=False)
    assert len(seen[0]) == 7
    assert all(torch.equal(a, b) for a, b in zip(seen[0], seen[2], strict=True))
