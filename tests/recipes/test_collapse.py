"""The study of collapse: what is measured of features, that measuring changes nothing, and the command."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from recipes import records
from recipes.results import table
from recipes.vision import collapse, run, watch
from recipes.vision.curves_picture import Curve, draw_curves
from recipes.vision.presets import Config, preset
from recipes.vision.run import pretrain

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")

IMAGES = (40, 30)  # to seek neighbours among, and to measure


def tiny(**changes: object) -> Config:
    """BYOL for two epochs of four steps."""
    config = dataclasses.replace(
        preset("quickstart"),
        identity="byol",
        momentum=0.9,
        lambda_id=1.0,
        width=4,
        limit=64,
        batch_size=16,
        epochs=2,
        warmup_epochs=0,
        check_every=1,
        precision="32-true",
        projection_hidden=16,
        projection_out=8,
        predictor_hidden=16,
        manipulation_hidden=16,
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def watched(config: Config, folder: Path, *, resume: bool = False) -> list[dict[str, float]]:
    """The curve of a run."""
    looking = watch.Watch(folder / watch.CURVE, config, IMAGES)
    pretrain(config, folder, resume=resume, quiet=True, callbacks=[looking])
    return watch.read_curve(folder / watch.CURVE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, watched."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    watched(tiny(), folder)
    return folder


def test_a_line_before_training_and_after_every_epoch(whole: Path) -> None:
    rows = watch.read_curve(whole / watch.CURVE)
    assert [(row["epoch"], row["step"], row["images"]) for row in rows] == [(i, 4 * i, list(IMAGES)) for i in range(3)]
    for row in rows:
        assert 1 <= row["effective rank"] <= min(32, IMAGES[1])
        assert 1 <= row["effective rank, projection"] <= 8
        assert 0 < row["standard deviation"] < 1.5
        assert row["accuracy"] * IMAGES[1] == pytest.approx(round(row["accuracy"] * IMAGES[1]), abs=0.01)
    assert len({row["effective rank"] for row in rows}) == 3


def test_watching_leaves_training_as_it_is(whole: Path, tmp_path: Path) -> None:
    pretrain(tiny(), tmp_path / "alone", quiet=True)
    one, other = (folder / "logs" / "metrics.csv" for folder in (whole, tmp_path / "alone"))
    assert one.read_text() == other.read_text()
    assert len(one.read_text().splitlines()) == 9


def test_a_resumed_run_has_the_curve_of_the_unbroken_one(whole: Path, tmp_path: Path) -> None:
    class Pulled(Exception):
        pass

    folder = tmp_path / "broken"
    with pytest.MonkeyPatch.context() as patch:
        from recipes import progress

        def pull(self: object, trainer: object, *rest: object) -> None:
            if trainer.global_step == 6:  # type: ignore[attr-defined]
                raise Pulled

        patch.setattr(progress.EpochProgress, "on_train_batch_end", pull)
        with pytest.raises(Pulled):
            watched(tiny(), folder)
    curve = folder / watch.CURVE
    rows = watch.read_curve(curve)
    assert [row["step"] for row in rows] == [0, 4]
    # What a killed process may leave: a line past the checkpoint, and half a line.
    curve.write_text(curve.read_text() + json.dumps({**rows[1], "step": 8, "epoch": 2}) + '\n{"epoch": 2, "st')
    assert watched(tiny(), folder, resume=True) == watch.read_curve(whole / watch.CURVE)


def test_a_run_that_begins_anew_forgets_the_old_curve(whole: Path, tmp_path: Path) -> None:
    rows = watch.read_curve(whole / watch.CURVE)
    (tmp_path / watch.CURVE).write_text(json.dumps({**rows[0], "accuracy": -1.0}) + "\n")
    assert watched(tiny(), tmp_path) == rows


def test_what_is_measured_beside_numpy() -> None:
    config = tiny()
    train, test = watch.some(config, 64, 200)
    learner = run.build_learner(config, (32, 32), 10, batches=None)
    learner.train()
    with torch.no_grad():  # running averages that evaluation mode has to read
        learner.encoder(torch.rand(8, 3, 32, 32))
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    found = watch.measured(learner, config, train, test)
    assert learner.training
    assert all(module.training for module in learner.encoder.modules())
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())

    learner.eval()
    with torch.no_grad():
        known, h = (learner.encoder(split.images.images.float() / 255) for split in (train, test))  # type: ignore[union-attr]
        z = learner.objective.models["identity"].projector(h)  # type: ignore[operator, union-attr]
    for name, features in (("", h), (", projection", z)):
        rows = features.double().numpy()
        p = np.linalg.svd(rows, compute_uv=False)
        p = p / p.sum()
        assert found[f"effective rank{name}"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=2e-3)
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        expected = unit.std(axis=0).mean() * np.sqrt(rows.shape[1])
        assert found[f"standard deviation{name}"] == pytest.approx(expected, abs=2e-5)

    hits = 0
    train_labels, test_labels = (split.images.labels for split in (train, test))
    keys, queries = (nn.functional.normalize(x, dim=1) for x in (known, h))
    for query, truth in zip(queries, test_labels):
        cosines = keys @ query
        votes = torch.zeros(10)
        for i in cosines.argsort(descending=True)[: watch.NEIGHBOURS]:
            votes[train_labels[i]] += ((cosines[i] - cosines.max()) / 0.1).exp()
        hits += int(votes.argmax() == truth)
    assert found["accuracy"] == round(hits / 200, 4)


def test_constant_features_are_seen_to_have_collapsed() -> None:
    config = tiny()
    train, test = watch.some(config, *IMAGES)
    learner = run.build_learner(config, (32, 32), 10, batches=None)

    class Constant(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.ones(len(images), 32)

    learner.encoder = Constant()
    found = watch.measured(learner, config, train, test)
    assert found["effective rank"] == pytest.approx(1.0, abs=1e-3)
    assert found["standard deviation"] == pytest.approx(0.0, abs=1e-5)
    assert found["effective rank, projection"] == pytest.approx(1.0, abs=1e-3)
    assert found["accuracy"] == pytest.approx(0.1, abs=0.04)  # one class for all


# --- arms ------------------------------------------------------------------------------------------------------------


def test_the_arms_differ_in_what_they_say() -> None:
    base = preset("tiny-byol-stec")
    found = collapse.arms(base)
    assert [(arm, manipulation) for arm, manipulation, _ in found] == [
        (arm, manipulation)
        for arm in ("BYOL", "BYOL without momentum", "BYOL without stop-gradient")
        for manipulation in (True, False)
    ]
    made = [dataclasses.replace(base, **fields) for _, _, fields in found]  # type: ignore[arg-type]
    assert made[0] == base
    assert [config.lambda_manip for config in made] == [base.lambda_manip, 0.0] * 3
    assert [config.momentum is None for config in made] == [False, False, True, True, True, True]
    assert [config.stop_gradient for config in made] == [True] * 4 + [False] * 2
    for config in made:
        model = run.build_learner(config, (32, 32), 10, batches=None).objective
        assert model.needs_target == (config.momentum is not None)
    for other in ("tiny-byol", "tiny-simclr", "tiny-simsiam-stec", "tiny-moco-stec"):
        with pytest.raises(ValueError, match=f"{other} is not BYOL with momentum and L_manip"):
            collapse.arms(preset(other))


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in two classes: 128 images to train on, 20 to test."""
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 64), ("test", 10)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(256, (16, 16, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(root / split / name / f"{i}.png")
    return root


def test_the_command_from_end_to_end(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A third of the runs, the second time with nothing to do."""
    line = (
        f"--root {images} --epochs 1 --limit 128 --train-images 30 --test-images 20 --part 1/3 --runs {tmp_path}/runs"
    )
    line += f" --out {tmp_path}/x.json --plot {tmp_path}/x.png"
    assert collapse.main(line.split()) == 0
    found = records.read(tmp_path / "x.json")
    assert [r.method for r in found] == ["BYOL, with L_manip", "BYOL without momentum, without L_manip"]
    for record in found:
        values = {x.metric: x for x in record.results}
        assert set(values) == set(collapse.PANELS)
        accuracy = values["accuracy"]
        assert (accuracy.protocol, accuracy.details["epochs"], accuracy.details["test"]) == ("knn", [0, 1], 20)
        assert accuracy.details["curve"][-1] == accuracy.value  # type: ignore[index]
        (folder,) = (tmp_path / "runs" / "tiny-byol-stec").glob(
            f"{record.method.replace(', ', ',').replace(' ', '-')},*"
        )
        curve = [row["effective rank"] for row in watch.read_curve(folder / watch.CURVE)]
        assert values["effective rank"].details["curve"] == curve
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    assert str(tmp_path) not in (tmp_path / "x.json").read_text()
    assert "| BYOL, with L_manip | 1 |" in table.markdown(found)
    assert capsys.readouterr().out.count("0, 1 to") == 4  # arms of the other parts

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert collapse.main(line.split()) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()} == before
    assert "run 1" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"was measured on 30 and 20 images, not 30 and 10"):
        collapse.main(line.replace("--test-images 20", "--test-images 10").split())


def test_the_picture_has_a_line_for_each_arm(tmp_path: Path) -> None:
    made = [
        Curve(arm, manipulation, [0, 1], {"rank": [[1.0, 2.0], [3.0, 6.0]], "accuracy (%)": [[10.0, 20.0]] * 2})
        for arm in ("BYOL", "BYOL without momentum")
        for manipulation in (True, False)
    ]
    figure = draw_curves(made, tmp_path / "x.png", title="x")
    rank, accuracy = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "BYOL",
        "BYOL without momentum",
        "with L_manip",
        "without L_manip",
    ]
    means = [line for line in rank.lines if line.get_linewidth() > 1]
    assert [list(line.get_ydata()) for line in means] == [[2.0, 4.0]] * 4
    assert [line.get_linestyle() for line in means] == ["-", "--", "-", "--"]
    colours = [line.get_color() for line in means]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert len(rank.lines) == 12  # two seeds each
    assert accuracy.get_ylim() == pytest.approx((0, 21))
