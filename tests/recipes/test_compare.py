"""Comparing presets on a few noise images: overrides, seeds, the tables and what differs from the first preset."""

import contextlib
import dataclasses
import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from recipes import progress, records
from recipes.results.seeds import check_seeds
from recipes.vision import compare, evaluate, inputs
from recipes.vision.presets import Config, preset
from recipes.vision.run import read_config, record_of

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")

SMALL = (
    "--width 4 --batch-size 16 --projection-hidden 16 --projection-out 8 --manipulation-hidden 16 --precision 32-true "
    "--epochs 1 --limit 64 --size 24 --scale 0.3 0.9 --memory-gb 1"
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in three classes: 64 images to train on, 30 to test."""
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 24), ("test", 10)):
        for name in ("a", "b", "c"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def compared(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished comparison of two presets with two seeds, what it said, and its command line."""
    folder = tmp_path_factory.mktemp("compared")
    words = ["tiny-simclr", "tiny-stec", *SMALL.split(), "--root", str(images), "--runs", str(folder / "runs")]
    words += ["--seeds", "0", "1"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        compare.main([*words, "--out", str(folder / "all.json")])
    (folder / "said.txt").write_text(said.getvalue())
    return folder, words


def test_any_setting_goes_into_every_preset() -> None:
    words = ["tiny-simclr", "tiny-byol", "--size", "48", "--scale", "0.3", "0.9", "--lr", "0.5", "--momentum", "None"]
    words += ["--epochs", "1", "--seeds", "0", "7"]
    for name in ("tiny-simclr", "tiny-byol"):
        own, made = preset(name), compare.configure(words, name, 7)
        law = dataclasses.replace(own.augmentation, size=48, scale=(0.3, 0.9))
        changed = {"augmentation": law, "lr": 0.5, "momentum": None, "epochs": 1, "seed": 7, "warmup_epochs": 0}
        assert made == dataclasses.replace(own, **changed)  # type: ignore[arg-type]
        assert made.epochs == 1
    assert preset("tiny-byol").lr != preset("tiny-simclr").lr
    untouched = compare.configure(["tiny-simclr", "tiny-byol"], "tiny-byol", 0)
    assert untouched == preset("tiny-byol")


def test_a_given_warm_up_is_not_shortened(images: Path, tmp_path: Path) -> None:
    words = ["tiny-stec", "--epochs", "2", "--warmup-epochs", "3", "--root", str(images), "--runs", str(tmp_path / "r")]
    with pytest.raises(ValueError, match="3 warm-up epochs of 2"):
        compare.main(words)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tiny-stec", "--seed", "3"], "seeds with --seeds"),
        (["tiny-stec", "--preset", "x"], "presets are named first"),
        (["tiny-stec", "tiny-stec"], "name one or more, each once"),
        ([], "presets are none"),
        (["tiny-stc"], "no preset 'tiny-stc'; the nearest are tiny-stec"),
        (["tiny-stec", "--seeds", "1", "1"], "--seeds is 1 1; name each once"),
        (["tiny-stec", "--seeds", "-1"], "--seeds is -1"),
    ],
)
def test_mistakes_in_the_command_line(words: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        compare.main(words)


def test_one_seed_may_have_been_meant_as_a_number_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    check_seeds((3,))
    assert "seed 3 alone; for 3 seeds: --seeds 0 1 2" in capsys.readouterr().out
    for seeds in ((0,), (1,), (3, 4)):
        check_seeds(seeds)
    assert capsys.readouterr().out == ""


def test_runs_and_records_have_the_settings(compared: tuple[Path, list[str]]) -> None:
    folder, _ = compared
    runs = {path.name: read_config(path) for path in (folder / "runs").iterdir() if path.is_dir()}
    assert sorted(runs) == ["tiny-simclr-seed0", "tiny-simclr-seed1", "tiny-stec-seed0", "tiny-stec-seed1"]
    assert {(c.augmentation.size, c.augmentation.scale, c.width) for c in runs.values()} == {(24, (0.3, 0.9), 4)}
    found = records.read(folder / "all.json")
    assert [(r.method, r.seed) for r in found if r.method.startswith(("SimCLR", "S-TEC"))] == [
        ("SimCLR", 0),
        ("S-TEC exact", 0),
        ("SimCLR", 1),
        ("S-TEC exact", 1),
    ]


def test_every_run_is_counted_and_named_before_it_begins(compared: tuple[Path, list[str]]) -> None:
    folder, _ = compared
    said = (folder / "said.txt").read_text().splitlines()
    runs = [line for line in said if line.startswith("run ")]
    assert runs == [
        "run 1 of 4: tiny-simclr, seed 0",
        "run 2 of 4: tiny-stec, seed 0",
        "run 3 of 4: tiny-simclr, seed 1",
        "run 4 of 4: tiny-stec, seed 1",
    ]
    assert [said[said.index(line) + 1].split(" (")[0] for line in runs] == ["SimCLR", "S-TEC exact"] * 2


def test_an_interrupted_run_says_where_it_goes_on(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tiny-simclr", *SMALL.replace("--epochs 1", "--epochs 3 --checkpoint-every 1").split()]
    config = compare.configure([*words, "--root", str(images)], "tiny-simclr", 0)

    class Pulled(Exception):
        pass

    def pull(self: object, trainer: object, *rest: object) -> None:
        if trainer.global_step == 7:  # type: ignore[attr-defined]
            raise Pulled

    with monkeypatch.context() as patch:
        patch.setattr(progress.EpochProgress, "on_train_batch_end", pull)
        with pytest.raises(Pulled):
            compare.one_run(config, tmp_path / "run")
    assert "going on" not in capsys.readouterr().out
    for _ in range(2):  # the second time there is nothing to go on with
        compare.one_run(config, tmp_path / "run", measure=lambda *_: [])
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if "going on" in line] == ["going on from step 4 of 12, epoch 2 of 3"]


def test_baselines_of_other_settings_are_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Config] = []

    def measure(config: Config, *_: object) -> list[records.Record]:
        measured.append(config)
        return [record_of(config, [records.Result("accuracy", 0.1 * len(measured), "knn")], seconds=None, name="raw")]

    monkeypatch.setattr(evaluate, "baselines", measure)
    monkeypatch.setattr(inputs, "labelled_images", lambda config: (None, None))
    config = dataclasses.replace(preset("tiny-simclr"), root=tmp_path / "here")
    first = compare.baselines(config, tmp_path)
    moved = dataclasses.replace(config, root=tmp_path / "there")  # where the data lie changes nothing
    assert compare.baselines(moved, tmp_path) == first
    assert measured == [config]
    other = dataclasses.replace(config, augmentation=dataclasses.replace(config.augmentation, size=48))
    again = compare.baselines(other, tmp_path)
    assert measured == [config, other]
    assert again[0].results[0].value == 0.2
    assert compare.baselines(other, tmp_path) == again
    assert measured == [config, other]


def test_the_tables(compared: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal without bars, as Markdown with them; both name the statistic, neither the paper."""
    folder, words = compared
    found = records.read(folder / "all.json")
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*")}
    compare.main(words)
    shown = capsys.readouterr().out
    compare.main([*words, "--markdown", "--out", str(folder / "all.md")])
    marked = capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*")} == before
    assert "run 1" not in shown  # all of them are finished
    assert "mean ± standard deviation over seeds" in shown
    assert "| method" not in shown
    assert "| method | seeds (mean ± SD) | linear % |" in marked
    assert "paper" not in shown + marked  # three classes of one's own are no row of the paper
    assert (folder / "all.md").read_text().strip() in marked

    def linear(method: str) -> list[float]:
        of = {r.seed: x.value for r in found if r.method == method for x in r.results if x.protocol == "linear"}
        return [100 * of[seed] for seed in (0, 1)]

    a, b = linear("S-TEC exact"), linear("SimCLR")
    mean = (a[0] - b[0] + a[1] - b[1]) / 2
    row = f"| S-TEC exact | 2 | {mean:+z.1f} |"  # of two seeds there is no interval worth the name
    assert "accuracy less that of SimCLR" in shown
    assert row in marked


def test_runs_with_other_views_are_not_taken_for_these(compared: tuple[Path, list[str]]) -> None:
    _, words = compared
    other = [word if word != "24" else "16" for word in words]
    says = r"seed0 holds a run with other settings \(augmentation\.size 24 there, 16 here\); give another --runs"
    with pytest.raises(ValueError, match=says):
        compare.main(other)
