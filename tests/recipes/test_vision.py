"""What people run, on a few rendered images: pretraining, resumption, probes, records, and mistakes."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recipes import quickstart, records
from recipes.results import table
from recipes.run_folder import make_folder
from recipes.vision import evaluate, inputs, measure, networks, pretrain
from recipes.vision.config import NAMES, Config, method
from recipes.vision.presets import PRESETS, preset
from recipes.vision.run import from_plain, load_learner, optimizer_factory, read_config, to_plain
from recipes.vision.run import pretrain as train
from stec.core.actions import chance_level
from stec.core.checkpoints import load_checkpoint
from stec.core.learner import NonFiniteLoss
from stec.core.manipulation import BinnedActions
from stec.vision.data import ImageSet
from stec.vision.folder import ImageFiles, image_folder
from stec.vision.held import HeldImages

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")


def tiny(**changes: object) -> Config:
    """A run of seconds."""
    config = dataclasses.replace(
        preset("quickstart"),
        width=4,
        limit=64,
        batch_size=16,
        epochs=2,
        warmup_epochs=1,
        check_every=1,
        precision="32-true",
        projection_hidden=16,
        projection_out=8,
        manipulation_hidden=16,
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def losses(folder: Path) -> list[str]:
    """The rows of the CSV log, without the header."""
    return (folder / "logs" / "metrics.csv").read_text().splitlines()[1:]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny(), folder, quiet=True)
    return folder


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)


def test_a_run_folder_holds_what_a_person_needs(run: Path) -> None:
    assert len(losses(run)) == 8
    assert read_config(run) == tiny()
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step=4.ckpt", "step=8.ckpt"}
    assert list((run / "logs").glob("events.out.tfevents*"))


def test_resumed_after_the_first_epoch_it_repeats_the_unbroken_run(run: Path, tmp_path: Path) -> None:
    class Pulled(Exception):
        pass

    with pytest.MonkeyPatch.context() as patch:
        from recipes import progress

        def pull(self: object, trainer: object, *rest: object) -> None:
            if trainer.global_step == 6:  # type: ignore[attr-defined]
                raise Pulled

        patch.setattr(progress.EpochProgress, "on_train_batch_end", pull)
        with pytest.raises(Pulled):
            train(tiny(), tmp_path / "broken", quiet=True)
    train(read_config(tmp_path / "broken"), tmp_path / "broken", resume=True, quiet=True)
    assert losses(tmp_path / "broken") == losses(run)
    one, other = (load_checkpoint(newest(folder)).weights for folder in (run, tmp_path / "broken"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_torn_last_checkpoint_falls_back_to_the_one_before(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(), tmp_path / "torn", quiet=True)
    last = newest(tmp_path / "torn")
    last.write_bytes(last.read_bytes()[:1000])
    train(tiny(), tmp_path / "torn", resume=True, quiet=True)
    assert "step=8.ckpt is torn" in capsys.readouterr().out.replace("\n", "")
    one, other = (
        load_checkpoint(folder / "checkpoints" / "step=8.ckpt").weights for folder in (run, tmp_path / "torn")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_end_is_saved_whatever_the_interval(tmp_path: Path) -> None:
    outcome = train(tiny(epochs=3, checkpoint_every=2), tmp_path / "run", quiet=True)
    assert outcome.checkpoint.name == "step=12.ckpt"
    assert load_checkpoint(outcome.checkpoint).step == 12


def test_other_data_are_not_resumed_on(tmp_path: Path) -> None:
    train(tiny(), tmp_path / "run", quiet=True)
    for changes in ({"limit": 80}, {"width": 8}):
        with pytest.raises(ValueError, match=r"use the same|was made with other settings: (limit|width)"):
            train(tiny(**changes), tmp_path / "run", resume=True, quiet=True)


@pytest.mark.parametrize("memory_gb", [8.0, 0.0])
def test_data_exchanged_for_as_many_others_are_not_resumed_on(memory_gb: float, tmp_path: Path) -> None:
    def draw(seed: int, name: str) -> None:
        pixels = np.random.default_rng(seed).integers(256, size=(16, 8, 8, 3), dtype=np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / "images" / f"{name}{i}.png")

    draw(0, "a")
    config = tiny(data="folder", root=tmp_path / "images", batch_size=8, limit=None, memory_gb=memory_gb)
    config = dataclasses.replace(config, augmentation=dataclasses.replace(config.augmentation, size=8))
    train(config, tmp_path / "run", quiet=True)
    train(config, tmp_path / "run", resume=True, quiet=True)
    shutil.rmtree(tmp_path / "images")
    draw(1, "a" if memory_gb else "b")  # streamed files are known by their names
    with pytest.raises(ValueError, match="made with other data or batches: checksum"):
        train(config, tmp_path / "run", resume=True, quiet=True)


def test_two_processes_train_together(tmp_path: Path) -> None:
    """The command itself, with lightning's processes: one run folder, written once, with the mean of both."""
    words = "quickstart --limit 64 --batch-size 16 --epochs 2 --width 4 --precision 32-true --check-every 1 --devices 2"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "recipes.vision.pretrain", *words.split(), "--out", str(tmp_path / "two")],
        check=True,
        env=environment,
        capture_output=True,
        timeout=300,
    )
    rows = losses(tmp_path / "two")
    assert [int(row.split(",")[0]) for row in rows] == list(range(1, 9))
    assert len(records.read(tmp_path / "two" / "results.json")) == 1


def test_all_protocols_on_few_images(tmp_path: Path) -> None:
    outcome = train(tiny(), tmp_path / "run", quiet=True)
    found = evaluate.evaluate(evaluate.Arguments(outcome.checkpoint))
    assert [x.protocol for x in found[-1].results][:3] == ["linear", "logistic", "knn"]


def test_the_linear_probe_on_new_views_each_epoch(run: Path) -> None:
    learner, config, _ = load_learner(newest(run))
    train_set, _ = inputs.labelled_images(config)
    assert isinstance(train_set.images, ImageSet)
    views = measure.augmented(learner.encoder, train_set.images, config)
    (one, labels), (again, _), (other, _) = views(0), views(0), views(1)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(labels, train_set.images.labels)
    found = evaluate.evaluate(evaluate.Arguments(newest(run), protocols=("linear",), augmented=True))
    assert found[-1].results[0].details["augmented"] is True


def test_lars_without_decay_is_refused_since_it_would_adapt_nothing() -> None:
    config = dataclasses.replace(preset("cifar10-resnet18-stec"), weight_decay=0.0)
    with pytest.raises(ValueError, match="LARS adapts only what it decays"):
        optimizer_factory(config)
    optimizer_factory(dataclasses.replace(config, optimizer="sgd"))


def test_quickstart_keeps_what_it_did_not_write(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[]")
    (tmp_path / "stec").mkdir()
    with pytest.raises(ValueError, match="did not write"):
        make_folder(tmp_path, mark=quickstart.MARK, own=("stec",))
    assert (tmp_path / "stec").is_dir()
    own = tmp_path / "own"
    make_folder(own, mark=quickstart.MARK, own=("stec",))
    (own / "stec").mkdir()
    make_folder(own, mark=quickstart.MARK, own=("stec",))
    assert not (own / "stec").exists()
    (own / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes.txt"):
        make_folder(own, mark=quickstart.MARK, own=("stec",))


def test_evaluation_writes_every_protocol_with_its_name(run: Path, tmp_path: Path) -> None:
    arguments = evaluate.Arguments(newest(run), baselines=True, protocols=("logistic", "knn"))
    found = evaluate.evaluate(arguments)
    assert [r.method for r in found] == ["raw pixels", "untrained encoder", "S-TEC exact"]
    assert {(x.metric, x.protocol) for x in found[-1].results} == {
        ("accuracy", "logistic"),
        ("accuracy", "knn"),
        ("manipulation", "held-out"),
        ("manipulation minus chance", "held-out"),
    }
    nll, over = (
        next(x for x in found[-1].results if x.metric == name) for name in ("manipulation", "manipulation minus chance")
    )
    assert over.value == pytest.approx(nll.value - math.log(6), abs=0.01)
    records.write(found, tmp_path / "found.json")
    assert records.read(tmp_path / "found.json") == found
    text = table.markdown(found)
    assert "| S-TEC exact | 1 |" in text
    assert str(tmp_path) not in (tmp_path / "found.json").read_text()


def test_the_checkpoint_carries_the_bins(run: Path) -> None:
    learner, config, record = load_learner(newest(run))
    model = learner.objective.models["manipulation"]
    assert isinstance(model, BinnedActions)
    assert torch.equal(model.bins.edges, networks.action_bins(config, (32, 32)).edges)
    assert record["classes"] == 10


@pytest.mark.parametrize(
    "changes",
    [
        {"lambda_manip": 0.0},
        {"action": "official"},
        {"action": "allocentric"},
        {"action": "augself", "manipulation": "regressed"},
        {"optimizer": "lars", "adapt": "name", "initialisation": "official"},
    ],
)
def test_every_label_and_model_trains(changes: dict[str, object], tmp_path: Path) -> None:
    outcome = train(tiny(epochs=1, warmup_epochs=0, **changes), tmp_path / "run", quiet=True)
    assert all(math.isfinite(value) for value in outcome.learner.last.values())
    assert ("manipulation" in outcome.learner.last) == (changes.get("lambda_manip") != 0.0)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_its_record_and_builds(name: str) -> None:
    config = preset(name)
    assert config.preset == name
    there = json.loads(json.dumps(to_plain(config)))
    assert from_plain(there, None, source=Path("a")) == dataclasses.replace(config, root=None)
    if config.arch == "resnet18":
        size = config.augmentation.size or 32
        objective = networks.objective(config, 8 * config.width, (size, size))
        assert type(objective.models["identity"]).__name__ == NAMES[config.identity].replace(" v2", "").replace(" ", "")
        assert ("manipulation" in objective.names) == (
            "stec" in name or name in ("folder", "folder-small", "quickstart") or "augself" in name
        )
        assert method(config).startswith(("S-TEC", "AugSelf", NAMES[config.identity]))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar10-resnet18-simclr", {"temperature": 0.5, "lr": 4.0, "lambda_id": 2.0, "projection_out": 64}),
        ("cifar10-resnet18-stec", {"lambda_manip": 0.666667, "momentum": None, "adapt": "kind", "epochs": 1000}),
        ("cifar10-resnet18-stec-official", {"lambda_manip": 1.0, "adapt": "name", "initialisation": "official"}),
        ("cifar10-resnet18-simclr-official", {"lambda_manip": 0.0, "adapt": "name", "initialisation": "official"}),
        ("stl10-resnet18-stec-star", {"lambda_manip": 0.2, "alpha": 1.0, "momentum": 0.99, "temperature": 0.2}),
        ("stl10-resnet18-relicv2", {"small_size": 48, "small_views": 2, "large_views": 2, "stem": "stl"}),
        ("cifar10-resnet18-byol", {"lr": 0.8, "weight_decay": 1.5e-6, "projection_hidden": 4096, "momentum": 0.99}),
        ("cifar10-resnet18-byol-stec", {"lambda_manip": 0.333333, "lambda_id": 1.0, "predictor_hidden": 4096}),
        ("cifar10-resnet18-simsiam", {"optimizer": "sgd", "lr": 0.12, "weight_decay": 5e-4, "projection_out": 2048}),
        ("cifar10-resnet18-vicreg", {"lambda_id": 25.0, "lambda_reg": 1.0, "variance_weight": 25.0, "lr": 0.8}),
        ("cifar10-resnet18-moco", {"queue": 32_768, "temperature": 0.2, "projection_out": 128, "lr": 0.12}),
        ("cifar10-resnet18-barlow", {"redundancy": 0.0051, "projection_layers": 3, "lambda_id": 0.1, "lr": 0.8}),
        ("imagenet-resnet50-relic", {"lr": 1.97, "temperature": 0.1, "batch_size": 1680, "epochs": 100}),
        ("imagenet-resnet50-300ep-stec-star", {"lambda_manip": 0.4, "epochs": 300}),
        (
            "table2-stl10-augself-200ep",
            {"lr": 0.03, "batch_size": 256, "manipulation": "regressed", "warmup_epochs": 0},
        ),
    ],
)
def test_the_settings_of_the_papers_rows(name: str, expected: dict[str, object]) -> None:
    settings = dataclasses.asdict(preset(name))
    assert {key: pytest.approx(settings[key]) for key in expected} == expected


def test_small_crops_share_the_bins() -> None:
    """Over all pairs that are read, each bin holds a K-th."""
    config = preset("tiny-relicv2-stec")
    bins = networks.action_bins(config, (32, 32))
    pair = networks.views(config)((torch.zeros(4000, 3, 32, 32, dtype=torch.uint8), None), torch.Generator())
    assert pair.more is not None
    action = pair.more.action
    read = [action[i, j] for i in range(len(action)) for j in range(pair.more.large) if i != j]
    chance = chance_level(bins(torch.cat(read)), config.bins)
    torch.testing.assert_close(chance.nll, torch.full((4,), math.log(6)), rtol=0, atol=0.03)


def test_official_and_exact_weigh_a_live_component_alike() -> None:
    exact, official = preset("cifar10-resnet18-stec"), preset("cifar10-resnet18-stec-official")
    assert exact.lambda_manip / 4 == pytest.approx(official.lambda_manip / 6)


# --- own images ------------------------------------------------------------------------------------------------------


def save_images(folder: Path, n: int, size: tuple[int, int] = (40, 40), seed: int = 0) -> None:
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    for i in range(n):
        pixels = torch.randint(256, (size[1], size[0], 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")


def own(root: Path, **changes: object) -> Config:
    law = dataclasses.replace(preset("quickstart").augmentation, size=32)
    return tiny(data="folder", root=root, limit=None, augmentation=law, epochs=1, warmup_epochs=0, workers=0, **changes)


def test_a_flat_folder_without_labels(tmp_path: Path) -> None:
    save_images(tmp_path / "mine", 20)
    outcome = train(own(tmp_path / "mine"), tmp_path / "run", quiet=True)
    assert outcome.learner.probe is None
    with pytest.raises(ValueError, match=r"no labels to probe with.*train/<class>"):
        evaluate.evaluate(evaluate.Arguments(outcome.checkpoint))


def test_a_torn_file_among_many_sizes_is_found_before_training(tmp_path: Path) -> None:
    save_images(tmp_path / "mine" / "a", 10)
    save_images(tmp_path / "mine" / "b", 10, (64, 36))
    torn = tmp_path / "mine" / "b" / "3.png"
    torn.write_bytes(torn.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"3.png.*--skip-broken"):
        inputs.training_images(own(tmp_path / "mine"))


def test_probed_images_have_the_views_size_in_memory_and_streamed(tmp_path: Path) -> None:
    save_images(tmp_path / "mine", 6, (80, 80))
    config = own(tmp_path / "mine")
    resident = inputs.training_images(config)
    assert isinstance(resident.images, ImageSet)
    streamed = inputs.Inputs(image_folder(tmp_path / "mine", labelled=False), "")
    (one, _), (other, _) = (next(measure.plain_batches(source, config)) for source in (resident, streamed))
    assert one.shape == other.shape == (6, 3, 32, 32)
    torch.testing.assert_close(one, other, atol=2 / 255, rtol=0)  # Pillow and torchvision round differently


def test_a_readme_beside_the_classes_and_a_class_called_train(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        save_images(tmp_path / "mine" / name, 10)
    (tmp_path / "mine" / "README.txt").write_text("toys")
    source = inputs.training_images(own(tmp_path / "mine"))
    assert source.images.classes == ("bus", "train")
    assert len(source.images) == 20


@pytest.mark.parametrize(("memory_gb", "kind"), [(8.0, HeldImages), (1e-6, ImageFiles)])
def test_images_of_many_sizes_are_held_or_streamed_and_probed(tmp_path: Path, memory_gb: float, kind: type) -> None:
    for split in ("train", "test"):
        for i, size in enumerate([(40, 50), (64, 36)]):
            save_images(tmp_path / "mine" / split / f"class{i}", 10, size, seed=i)
    config = dataclasses.replace(own(tmp_path / "mine"), memory_gb=memory_gb)
    assert isinstance(inputs.training_images(config).images, kind)
    outcome = train(config, tmp_path / "run", quiet=True)
    found = evaluate.evaluate(evaluate.Arguments(outcome.checkpoint, protocols=("knn",)))
    assert found[-1].results[0].details["train"] == 20
    (read,) = (result for result in found[-1].results if result.metric == "manipulation")
    assert read.details["pairs"] == 40  # two of each test image


def test_a_broken_file_is_named_or_left_out_on_request(tmp_path: Path) -> None:
    save_images(tmp_path / "mine", 20)
    (tmp_path / "mine" / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken.png"):
        train(own(tmp_path / "mine"), tmp_path / "a", quiet=True)
    source = inputs.training_images(own(tmp_path / "mine", skip_broken=True))
    assert "20 images, 1 unreadable left out: broken.png" in source.note
    assert source.left_out == "1 unreadable left out: broken.png"
    assert inputs.training_images(own(tmp_path / "mine", skip_broken=True, memory_gb=1e-6)).left_out == source.left_out


# --- mistakes, found before hours are spent --------------------------------------------------------------------------


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no preset 'cifar10-resnet81-stec'; the nearest are .*cifar10-resnet18-stec"):
        pretrain.main(["cifar10-resnet81-stec"])


def test_an_unknown_override_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pretrain.main(["quickstart", "--epoch", "3"])
    captured = capsys.readouterr()
    assert "--epochs" in captured.out + captured.err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 65}, "batch size 65 is larger than the data set of 64; choose at most 64"),
        ({"data": "cifar10"}, "give --root FOLDER"),
        ({"data": "cifar10", "root": Path("nowhere")}, "nowhere.*does not exist"),
        ({"data": "folder", "root": Path("nowhere")}, "nowhere does not exist"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"bins": 1}, "at least"),
    ],
)
def test_mistakes_in_settings(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        train(tiny(**changes), tmp_path / "run", quiet=True)


def test_views_of_no_pixels_name_their_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--size", "0"], ["--size", "-3"]):
        with pytest.raises(SystemExit):
            pretrain.main(["quickstart", *words, "--out", str(tmp_path / "run")])
        captured = capsys.readouterr()
        said = " ".join((captured.out + captured.err).replace("│", " ").split())
        assert f"views of {words[1]} pixels; need at least 1 a side, such as --size 32" in said
    config = dataclasses.replace(preset("tiny-relicv2"), small_size=0)
    with pytest.raises(ValueError, match=r"views of 0 pixels.*--small-size 16"):
        networks.views(config)
    assert not (tmp_path / "run").exists()


def test_actions_read_worse_than_by_a_blind_guess_are_said_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"width": 4, "limit": 64, "batch-size": 16, "epochs": 2, "projection-hidden": 16, "manipulation-hidden": 16}
    words = ["quickstart", "--precision", "32-true", *(word for k, v in sizes.items() for word in (f"--{k}", str(v)))]
    outcome = pretrain.main([*words, "--out", str(tmp_path / "run")])
    assert outcome is not None
    assert "above the" not in capsys.readouterr().out
    for nats, said in ((1.09 * math.log(6), False), (1.11 * math.log(6), True), (286_945.0, True)):
        outcome.learner.last["manipulation"] = nats
        line = pretrain.unread(outcome)
        assert bool(line) == said
    assert line.startswith("manipulation ended at 286,945.000 nats, above the 1.789 of a model")
    del outcome.learner.last["manipulation"]
    assert pretrain.unread(outcome) == ""
    pretrain.main([*words, "--lr", "30", "--optimizer", "sgd", "--out", str(tmp_path / "high")])
    assert "of a model blind to the views: it reads no actions off them; try a lower --lr" in capsys.readouterr().out


def test_a_run_is_not_overwritten(run: Path) -> None:
    with pytest.raises(ValueError, match=r"holds a run already; go on with --resume"):
        train(tiny(), run, quiet=True)


def test_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to .*choose another --out"):
        train(tiny(), tmp_path / "file" / "run", quiet=True)


def test_resuming_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        pretrain.main(["--resume", str(tmp_path)])


def test_a_diverging_run_keeps_its_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLoss, match=r"became (nan|inf) at step \d+"):
        train(tiny(optimizer="sgd", lr=1e30, epochs=4), tmp_path / "run", quiet=True)
    for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt"):
        assert all(
            value.isfinite().all() for value in load_checkpoint(path).weights.values() if value.is_floating_point()
        )


def test_records_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('[{"speed": 3}]')
    with pytest.raises(ValueError, match=r"x.json is no results record"):
        records.read(tmp_path / "x.json")
    with pytest.raises(ValueError, match="holds no records"):
        table.read_all(tmp_path / "empty")


def test_the_table_goes_between_the_marks() -> None:
    before = f"a\n{table.BEGIN}\nold\n{table.END}\nb"
    assert table.put("new", before) == f"a\n{table.BEGIN}\nnew\n{table.END}\nb"
    with pytest.raises(ValueError, match="needs the lines"):
        table.put("new", "nothing")
