"""One's own images: settings that the files let be, a held-out share, and what is said where probes cannot work."""

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from recipes.vision import evaluate, inputs, measure, networks, own_images, pretrain, splits
from recipes.vision.config import Config
from recipes.vision.presets import preset
from recipes.vision.run import read_config, to_plain
from stec.core.shards.index import INDEX
from stec.vision.data import ImageSet
from stec.vision.held import HeldImages

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")
SIZES = [(40, 50), (64, 36), (30, 30)]
SMALL = ["--epochs", "2", "--warmup-epochs", "1", "--width", "4", "--batch-size", "8", "--checkpoint-every", "1"]
SMALL += ["--workers", "0", "--size", "16", "--projection-hidden", "16", "--manipulation-hidden", "16"]


def save(folder: Path, n: int, sizes: list[tuple[int, int]] = SIZES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(folder)))
    for i in range(n):
        height, width = sizes[i % len(sizes)]
        Image.fromarray(rng.integers(256, size=(height, width, 3), dtype=np.uint8)).save(folder / f"{i}.png")


@pytest.fixture(autouse=True)
def looked_anew() -> None:
    own_images.forget()


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """15 and 10 images of three sizes in two class folders, and no test split."""
    for name, n in (("cat", 15), ("dog", 10)):
        save(tmp_path / "mine" / name, n)
    return tmp_path / "mine"


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def config_of(name: str, root: Path, **changes: Any) -> Config:
    return dataclasses.replace(preset(name), root=root, workers=0, **changes)


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["mine/cat", "mine/train/cat", "mine/deep/er"])
@pytest.mark.parametrize("name", ["folder-small", "folder-small-simclr"])
def test_folder_small_reads_any_layout_into_memory(name: str, layout: str, tmp_path: Path) -> None:
    save(tmp_path / layout, 9)
    if "cat" in layout:
        save((tmp_path / layout).parent / "dog", 9)
    if "train" in layout:
        save(tmp_path / "mine" / "test" / "cat", 1)
    n = 18 if "cat" in layout else 9
    config, lines = own_images.settled(config_of(name, tmp_path / "mine"))
    assert (config.batch_size, config.augmentation.size) == (n, 48)
    assert lines == [f"batch {n} in place of the preset's 32: there are {n} images"]
    source = inputs.training_images(config)
    assert isinstance(source.images, HeldImages)
    assert source.images.sizes[:3].tolist() == [list(size) for size in SIZES]
    assert f"{n} images, in memory in their own shapes, the shorter side at most 192 pixels" in source.note
    assert ("unlabelled" in source.note) == (layout == "mine/deep/er")


def test_the_arms_differ_in_the_actions_alone() -> None:
    stec, simclr = preset("folder-small"), preset("folder-small-simclr")
    assert stec.lambda_manip > 0
    assert dataclasses.replace(stec, lambda_manip=0.0, preset=simclr.preset) == simclr
    assert stec.limit is None


def test_a_batch_that_was_typed_is_refused_and_a_presets_own_gives_way(classes: Path, tmp_path: Path) -> None:
    config = config_of("folder-small", classes)
    assert own_images.settled(config)[0].batch_size == 25
    assert own_images.settled(dataclasses.replace(config, devices=2))[0].batch_size == 24
    assert own_images.settled(config, typed=("batch_size",)) == (config, [])
    with pytest.raises(ValueError, match="batch size 32 is larger than the data set of 25; choose at most 25"):
        pretrain.main(["folder-small", "--root", str(classes), "--batch-size", "32", "--out", str(tmp_path / "run")])


def test_the_images_left_out_of_an_epoch_are_counted(classes: Path) -> None:
    config = config_of("folder-small", classes, batch_size=8)
    assert inputs.training_images(config).note.endswith(", 1 left out of each epoch")
    assert "left out" not in inputs.training_images(dataclasses.replace(config, batch_size=5)).note


def test_a_presets_limit_takes_all_there_are_and_a_given_one_is_refused(classes: Path) -> None:
    config = config_of("tiny-stec", classes)
    source = inputs.training_images(config)
    assert len(source.images) == 25
    assert "all there are of the 10,000 that the preset takes" in source.note
    with pytest.raises(ValueError, match="a subset of 26 from 25 images"):
        inputs.training_images(dataclasses.replace(config, limit=26))
    assert len(inputs.training_images(dataclasses.replace(config, limit=10)).images) == 10


def test_several_sizes_give_a_preset_without_views_those_it_was_made_for(classes: Path, tmp_path: Path) -> None:
    config, lines = own_images.settled(config_of("tiny-stec", classes))
    assert config.augmentation.size == 32
    assert lines[-1] == "views of 32 pixels, since the images are of several sizes; --size N for others"
    assert own_images.settled(config)[1] == []
    stl = config_of("stl10-resnet18-stec", classes, data="folder")
    assert own_images.settled(stl)[0].augmentation.size == 96
    save(tmp_path / "even", 70, [(20, 30)])
    assert own_images.settled(config_of("tiny-stec", tmp_path / "even"))[0].augmentation.size is None
    with pytest.raises(ValueError, match=r"more than two views.*several sizes.*save them all in one size"):
        own_images.settled(config_of("tiny-relicv2", classes))


def test_folder_without_a_gpu_names_the_other_preset(classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert "folder-small suits a laptop" in own_images.settled(config_of("folder", classes))[1][0]
    assert own_images.settled(config_of("folder-small", classes, batch_size=8))[1] == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert own_images.settled(config_of("folder", classes, batch_size=8))[1] == []


def test_photographs_too_large_for_memory_are_held_shrunk(tmp_path: Path) -> None:
    save(tmp_path / "mine", 4, [(300, 400)])
    config = config_of("folder-small", tmp_path / "mine", batch_size=2)
    whole = inputs.training_images(config).images
    assert isinstance(whole, ImageSet)  # of one size, and they fit: as they are
    assert whole.images.shape == (4, 3, 300, 400)
    shrunk = inputs.training_images(dataclasses.replace(config, memory_gb=4 * 3 * 192 * 256 / 1e9)).images
    assert isinstance(shrunk, HeldImages)
    assert shrunk.sizes.tolist() == [[192, 256]] * 4


def test_what_does_not_fit_is_streamed_and_says_which_flag(classes: Path) -> None:
    config = config_of("folder-small", classes, memory_gb=1e-5)
    source = inputs.training_images(config)
    assert not isinstance(source.images, HeldImages)
    assert "streamed (with a shorter side of 192 pixels, too, they take more than --memory-gb 1e-05)" in source.note


@pytest.mark.parametrize(("epochs", "warm_up"), [(1, 0), (2, 1), (3, 2), (4, 3), (9, 3)])
def test_a_presets_own_warm_up_ends_before_the_last_epoch(epochs: int, warm_up: int, classes: Path) -> None:
    for config in (config_of("folder-small", classes, batch_size=8), preset("quickstart")):
        config = dataclasses.replace(config, epochs=epochs, warmup_epochs=3)
        made, lines = own_images.settled(config)
        assert made == dataclasses.replace(config, warmup_epochs=warm_up)
        said = f"warm-up of {warm_up} epochs in place of the preset's 3, of {epochs} in all"
        assert lines == ([] if warm_up == 3 else [said])
        assert own_images.settled(config, typed=("warmup_epochs",))[0] == config


def test_pretraining_shortens_a_presets_warm_up_and_refuses_a_typed_one(classes: Path, tmp_path: Path) -> None:
    argv = ["folder-small", "--root", str(classes), "--out", str(tmp_path / "run"), *SMALL]
    at = argv.index("--warmup-epochs")
    with pytest.raises(ValueError, match="3 warm-up epochs of 2: lower --warmup-epochs"):
        pretrain.main([*argv[: at + 1], "3", *argv[at + 2 :]])
    outcome = pretrain.main([*argv[:at], *argv[at + 2 :]])
    assert outcome is not None
    assert (preset("folder-small").warmup_epochs, read_config(tmp_path / "run").warmup_epochs) == (3, 1)


# --- a held-out share ------------------------------------------------------------------------------------------------


@given(
    counts=st.lists(st.integers(2, 30), min_size=1, max_size=4),
    share=st.floats(0.01, 0.99),
    smaller=st.floats(0.01, 1.0),
    seed=st.integers(0, 100),
)
def test_every_class_gives_its_share(counts: list[int], share: float, smaller: float, seed: int) -> None:
    labels = torch.cat([torch.full((n,), i) for i, n in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    rows = splits.held_out(labels, share, seed=seed)
    found = Counter(labels[rows].tolist())
    assert rows.tolist() == sorted(set(rows.tolist()))
    for i, n in enumerate(counts):
        assert found[i] == min(max(round(share * n), 1), n - 1)
    assert torch.equal(rows, splits.held_out(labels, share, seed=seed))
    assert set(splits.held_out(labels, share * smaller, seed=seed).tolist()) <= set(rows.tolist())


def test_the_seed_tells_which(classes: Path) -> None:
    one, other = (splits.make_split(classes, 0.4, seed=seed) for seed in (0, 1))
    assert set(one.test) != set(other.test)


def names(source: inputs.Images) -> set[str]:
    return {str(Path(source.path(i)).relative_to(source.root)) for i in range(len(source))}  # type: ignore[union-attr]


def test_evaluation_has_what_training_left_out_and_a_resumed_run_goes_on(classes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    argv = ["folder-small", "--root", str(classes), "--out", str(run), "--holdout", "0.2", *SMALL]
    outcome = pretrain.main(argv)
    assert outcome is not None
    config = read_config(run)
    assert config.root == run / "split.json"
    every = {f"{name}/{i}.png" for name, n in (("cat", 15), ("dog", 10)) for i in range(n)}
    save(classes / "dog", 12)  # two more than there were: they are in no part
    trained = inputs.training_files(config)[0]
    fitted, tested = inputs.labelled_sources(config)
    assert names(fitted) == names(trained)
    assert names(trained) | names(tested) == every
    assert not names(trained) & names(tested)
    assert Counter(name.split("/")[0] for name in names(tested)) == {"cat": 3, "dog": 2}
    (record,) = evaluate.evaluate(evaluate.Arguments(outcome.checkpoint, protocols=("knn",)))
    assert record.results[0].details["train"] == 20
    assert record.results[0].details["test"] == 5
    assert (record.settings["holdout"], record.settings["holdout_seed"]) == (0.2, 0)
    assert "Now: python -m recipes.vision.evaluate" in own_images.how_to_probe(config, outcome.checkpoint)

    rows = (run / "logs" / "metrics.csv").read_text()
    outcome.checkpoint.unlink()
    for again in ([*argv, "--go-on"], ["--resume", str(run)]):
        resumed = pretrain.main(again)
        assert resumed is not None
        assert (run / "logs" / "metrics.csv").read_text() == rows
        resumed.checkpoint.unlink()
    before = (run / "split.json").read_text()
    with pytest.raises(ValueError, match="holds a run already"):
        pretrain.main([*argv, "--seed", "1"])
    assert (run / "split.json").read_text() == before
    with pytest.raises(ValueError, match=r"split.json holds 0\.2 of .* give the same --holdout"):
        pretrain.main([*(word if word != "0.2" else "0.3" for word in argv), "--go-on"])
    assert (run / "split.json").read_text() == before


def test_a_split_serves_all_seeds_and_is_never_written_over(classes: Path, tmp_path: Path) -> None:
    """Another command in the folder of a run must not move its test images, not before its first checkpoint either."""
    config, _ = own_images.hold_out(config_of("folder-small", classes), 0.2, tmp_path / "run")
    written = (tmp_path / "run" / "split.json").read_text()
    save(classes / "dog", 12)
    again, _ = own_images.hold_out(config_of("folder-small", classes, seed=3), 0.2, tmp_path / "run")
    assert again.root == config.root
    with pytest.raises(ValueError, match=r"holds 0\.2 of .* a run may have trained on the rest"):
        own_images.hold_out(config_of("folder-small", classes), 0.5, tmp_path / "run")
    assert (tmp_path / "run" / "split.json").read_text() == written


def test_other_processes_wait_for_the_split_of_the_first(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_images, "is_first", lambda: False)
    split = splits.make_split(classes, 0.2, seed=0)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        splits.write_split(split, tmp_path / "run" / "split.json")

    monkeypatch.setattr("recipes.vision.own_images.time.sleep", sleep)
    config, line = own_images.hold_out(config_of("folder-small", classes), 0.2, tmp_path / "run")
    assert waited == [1.0]
    monkeypatch.setattr("recipes.vision.own_images.time.sleep", waited.append)
    with pytest.raises(ValueError, match=r"has written no .*other/split\.json for 60 s"):
        own_images.hold_out(config_of("folder-small", classes), 0.2, tmp_path / "other")
    assert config.root == tmp_path / "run" / "split.json"
    assert line.startswith("5 of 25 images held out")


def test_images_that_are_gone_are_named(classes: Path, tmp_path: Path) -> None:
    config, _ = own_images.hold_out(config_of("folder-small", classes), 0.2, tmp_path / "run")
    (classes / "cat" / "3.png").unlink()
    with pytest.raises(ValueError, match=r"names 1 images that are gone from .*, such as cat/3\.png; put them back"):
        inputs.labelled_sources(config)


def test_chance_is_that_of_the_shapes_that_are_held(tmp_path: Path) -> None:
    """A blind model does better on wide images than on the squares that the bins are drawn for."""
    save(tmp_path / "wide", 9, [(40, 71), (30, 54)])
    save(tmp_path / "square", 9, [(40, 40), (30, 30)])
    level = {}
    for name in ("wide", "square"):
        config = config_of("folder-small", tmp_path / name)
        bins = networks.action_bins(config, (48, 48))
        level[name] = float(measure.chance_of(config, bins, inputs.training_images(config).images).nll.mean())
    assert level["square"] == pytest.approx(math.log(6), abs=0.02)
    assert level["wide"] < math.log(6) - 0.08


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("bus", "car", "train"):
        save(tmp_path / "vehicles" / name, 4)
    config, line = own_images.hold_out(config_of("folder-small", tmp_path / "vehicles"), 0.25, tmp_path)
    assert line.startswith("3 of 12 images")
    assert splits.read_split(config.root or Path()).classes == ("bus", "car", "train")


def test_what_cannot_be_split_is_refused(classes: Path, tmp_path: Path) -> None:
    def refused(root: Path, words: str, share: float = 0.2, **changes: Any) -> None:
        with pytest.raises(ValueError, match=words):
            own_images.hold_out(config_of("folder-small", root, **changes), share, tmp_path / "run")

    save(tmp_path / "flat", 3)
    save(tmp_path / "single" / "a", 1)
    save(tmp_path / "single" / "b", 2)
    save(tmp_path / "both" / "train" / "a", 2)
    save(tmp_path / "both" / "test" / "a", 2)
    refused(tmp_path / "flat", "has no classes to hold a share of out.*there are not two or more class folders")
    refused(tmp_path / "single", "single/a holds a single image")
    refused(tmp_path / "both", "has a test split already")
    refused(tmp_path / "nowhere", "nowhere does not exist")
    save(tmp_path / "half" / "train" / "a", 2)
    save(tmp_path / "half" / "train" / "b", 2)
    refused(tmp_path / "half", "has train/ and no test split; give --root .*half/train")
    refused(classes, "holdout is 1.0; need a share", share=1.0)
    refused(classes, "reads no such folder", data="cifar10")
    with pytest.raises(ValueError, match="takes a share of a folder of images apart: give --root FOLDER"):
        own_images.hold_out(preset("folder-small"), 0.2, tmp_path / "run")
    for folder in ("shards", "below/train"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / INDEX).touch()
        root = tmp_path / folder.split("/")[0]
        refused(root, f"{root.name} holds shards, of which no share can be held out; lay .* test/<class>/, write each")
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write to .*file/run"):
        own_images.hold_out(config_of("folder-small", classes), 0.2, tmp_path / "file" / "run")


def test_what_keeps_a_folder_from_having_classes_is_named(classes: Path, tmp_path: Path) -> None:
    def why(root: Path) -> str:
        with pytest.raises(ValueError, match="has no classes to hold a share of out for probes") as raised:
            own_images.hold_out(config_of("folder-small", root), 0.2, tmp_path / "run")
        note = inputs.training_files(config_of("folder-small", root))[1]
        assert note == f", unlabelled ({inputs.why_unlabelled(root)})"
        assert f"({inputs.why_unlabelled(root)})" in own_images.how_to_probe(config_of("folder-small", root), Path("a"))
        return str(raised.value).split("for probes: ")[1]

    (classes / "cat" / "0.png").rename(classes / "cover.png")
    assert why(classes).startswith("cover.png lies beside the class folders; move what has no class away, or")
    for i in (1, 2):
        (classes / "cat" / f"{i}.png").rename(classes / f"{i}.png")
    assert why(classes).startswith("1.png and 2 more images lie beside the class folders; move")
    for name in ("1.png", "2.png", "cover.png"):
        (classes / name).unlink()
    (tmp_path / "above" / "deep").mkdir(parents=True)
    classes.rename(tmp_path / "above" / "deep" / "mine")
    inner = tmp_path / "above" / "deep" / "mine"
    assert why(tmp_path / "above").startswith(f"the class folders lie in {inner}; give --root {inner}, or")
    assert own_images.hold_out(config_of("folder-small", inner), 0.2, tmp_path / "run")[1].startswith("4 of 22")


def test_your_own_images_without_a_root() -> None:
    with pytest.raises(ValueError, match=r"^preset 'folder-small' reads your own images: give --root FOLDER$"):
        own_images.settled(preset("folder-small"))


# --- broken images to test on ----------------------------------------------------------------------------------------


def test_broken_held_out_images_are_found_before_training(classes: Path, tmp_path: Path) -> None:
    split = splits.make_split(classes, 0.2, seed=own_images.SPLIT_SEED)
    for name in split.test[:4]:
        tear(classes / name)
    argv = ["folder-small", "--root", str(classes), "--out", str(tmp_path / "run"), "--holdout", "0.2", *SMALL]
    with pytest.raises(ValueError, match=r"^of the images to test probes on, 4 of 5 .* and 1 more\. .*--skip-broken"):
        pretrain.main(argv)
    assert not list((tmp_path / "run").glob("*"))  # no split of images that are to be removed, and nothing trained
    for name in split.test[:4]:
        (classes / name).unlink()
    assert pretrain.main(argv) is not None


def test_broken_images_of_a_test_folder_are_found_and_one_without_labels_is_not_looked_at(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "test/cat"):
        save(tmp_path / "mine" / name, 3)
    config = config_of("folder-small", tmp_path / "mine", batch_size=2)
    arguments = pretrain.Arguments(config)
    assert pretrain.settle(arguments, tmp_path / "run", going_on=False, typed=()) == config
    tear(tmp_path / "mine" / "test" / "cat" / "1.png")
    with pytest.raises(ValueError, match=r"cat/1\.png"):  # a later command of this process looks anew
        pretrain.settle(arguments, tmp_path / "run", going_on=False, typed=())
    with pytest.raises(ValueError, match=r"of the images to test probes on, 1 of 3 .*cat/1\.png cannot be read"):
        own_images.settled(config)
    skipping = dataclasses.replace(config, skip_broken=True)
    assert own_images.settled(skipping) == (skipping, ["test images: 1 unreadable left out: cat/1.png"])
    (tmp_path / "mine" / "test" / "cat").rename(tmp_path / "mine" / "cat")
    save(tmp_path / "mine" / "test", 2)  # flat, as where labels are kept secret: pretraining needs none
    own_images.forget()
    assert own_images.settled(config) == (config, [])


def test_images_gone_from_a_split_are_found_before_training(classes: Path, tmp_path: Path) -> None:
    config, _ = own_images.hold_out(config_of("folder-small", classes, batch_size=8), 0.2, tmp_path / "run")
    assert config.root is not None
    own_images.forget()
    (classes / splits.read_split(config.root).test[0]).unlink()
    with pytest.raises(ValueError, match="names 1 images that are gone from"):
        own_images.settled(config)


def test_skipped_test_images_are_said_by_pretraining_and_evaluation(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = splits.make_split(classes, 0.2, seed=own_images.SPLIT_SEED).test[0]
    whole = (classes / torn).read_bytes()
    argv = ["folder-small", "--root", str(classes), "--holdout", "0.2", *SMALL]
    strict = pretrain.main([*argv, "--out", str(tmp_path / "strict")])
    tear(classes / torn)
    skipping = pretrain.main([*argv, "--out", str(tmp_path / "skipping"), "--skip-broken"])
    assert strict is not None
    assert skipping is not None
    line = f"test images: 1 unreadable left out: {torn}"
    assert capsys.readouterr().out.count(line) == 1
    arguments = evaluate.Arguments(strict.checkpoint, protocols=("knn",), actions=False)
    with pytest.raises(ValueError, match=r"1 of 5 files .*--skip-broken"):
        evaluate.evaluate(arguments)
    for asked in (
        dataclasses.replace(arguments, skip_broken=True),
        dataclasses.replace(arguments, checkpoint=skipping.checkpoint),
    ):
        (record,) = evaluate.evaluate(asked)
        assert (record.results[0].details["train"], record.results[0].details["test"]) == (20, 4)
        assert record.settings["skip_broken"] is True
        assert capsys.readouterr().out.count(line) == 1
    (classes / torn).write_bytes(whole)
    assert evaluate.evaluate(arguments)[0].results[0].details["test"] == 5
    assert "left out" not in capsys.readouterr().out


def test_many_runs_on_a_folder_look_at_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train/cat", "train/dog", "test/cat"):
        save(tmp_path / "mine" / name, 5)
    asked: Counter[str] = Counter()

    def counted(module: Any, name: str) -> None:
        function = getattr(module, name)

        def call(*args: Any, **named: Any) -> Any:
            asked[name] += 1
            return function(*args, **named)

        monkeypatch.setattr(module, name, call)

    for module, name in ((inputs, "training_files"), (own_images, "several_sizes"), (own_images, "load")):
        counted(module, name)
    configs = [config_of(name, tmp_path / "mine", seed=seed) for name in ("tiny-stec", "tiny-byol") for seed in (0, 1)]
    with monkeypatch.context() as patch:
        patch.setattr(own_images, "is_first", lambda: False)
        own_images.settled(configs[0])
        assert asked == {"training_files": 1, "several_sizes": 1}  # no test images
    for config in configs:
        assert own_images.settled(config)[0].augmentation.size == 32
    assert asked == {"training_files": 1, "several_sizes": 1, "load": 1}
    for limit in (4, 6):
        own_images.settled(dataclasses.replace(configs[0], limit=limit))
    own_images.settled(dataclasses.replace(configs[0], skip_broken=True))
    assert asked == {"training_files": 3, "several_sizes": 3, "load": 2}
    assert "checking" not in capsys.readouterr().out
    monkeypatch.setattr(own_images, "MANY", 5)
    own_images.forget()
    own_images.settled(configs[0])
    assert asked == {"training_files": 4, "several_sizes": 4, "load": 3}
    assert "checking test images: 5 of 5" in capsys.readouterr().out


def test_a_split_that_is_none_is_refused(classes: Path, tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    split = dataclasses.asdict(splits.make_split(classes, 0.2, seed=0))
    for content, words in (
        ("no JSON", "is no split of images"),
        ("[]", "is no split of images"),
        (json.dumps(to_plain(preset("folder-small"))), "^.*split.json is no split of images; give --root a folder, or"),
        (json.dumps({**split, "test": 3}), "has 3 for test"),
        (json.dumps({**split, "test": ["cat/../../secret.png"]}), "lies in none of its classes"),
        (json.dumps({**split, "train": ["/etc/secret.png"]}), "lies in none of its classes"),
        (json.dumps({**split, "root": str(tmp_path / "gone")}), "does not exist; put the images back"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=words):
            inputs.training_files(config_of("folder-small", file))


# --- what is said where probes cannot work ---------------------------------------------------------------------------


def test_the_last_line_names_what_is_missing(classes: Path, tmp_path: Path) -> None:
    save(tmp_path / "flat", 3)
    checkpoint = Path("a.ckpt")
    there = own_images.how_to_probe(config_of("folder-small", classes), checkpoint)
    assert "has classes, but no test split to probe with: pretrain with --holdout 0.2" in there
    assert "Now:" not in there
    there = own_images.how_to_probe(config_of("folder-small", tmp_path / "flat"), checkpoint)
    assert "has no labels to probe with" in there
    assert "Now:" not in there
    assert own_images.how_to_probe(preset("quickstart"), checkpoint).startswith("Now: ")
    for split in ("train", "test"):
        save(tmp_path / "no-classes" / split, 1)
    with pytest.raises(ValueError, match="has no labels to probe with"):
        inputs.labelled_sources(config_of("folder-small", tmp_path / "no-classes"))


def test_probes_start_no_more_workers_than_there_are_cores(classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def loader(*args: Any, num_workers: int, **more: Any) -> Any:
        asked.append(num_workers)
        return DataLoader(*args, num_workers=0, **more)

    monkeypatch.setattr(measure, "cores", lambda: 3)
    monkeypatch.setattr(measure, "DataLoader", loader)
    config = dataclasses.replace(config_of("folder-small", classes), workers=8)
    source = inputs.Inputs(inputs.training_files(config)[0], "")
    batches = list(measure.plain_batches(source, config))
    assert math.prod(batches[0][0].shape) == 25 * 3 * 48 * 48
    assert asked == [3]
