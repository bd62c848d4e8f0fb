"""Sweeps on a few rendered images: grids, means over seeds, runs that are kept, shared, or fail, and the picture."""

import dataclasses
import json
import math
import typing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import r2_score
from torch import nn

from recipes import records, stopping
from recipes.results import table
from recipes.results.intervals import Interval, interval
from recipes.vision import axes, compare, grids, networks, plots, regression, summary, sweep
from recipes.vision.presets import Config, Identity, preset
from recipes.vision.run import read_config
from stec.core.learner import Learner, NonFiniteLoss
from stec.core.manipulation import RegressedActions
from stec.core.objective import STECObjective
from stec.vision import views
from stec.vision.data import ImageSet

Words = Callable[..., list[str]]

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")

# A run of a second: `--grid` axes of one value are settings of all runs.
SMALL = (
    "data=folder width=4 batch_size=16 projection_hidden=16 projection_out=8 manipulation_hidden=16 precision=32-true"
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in two classes: 64 images to train on, 40 to test."""
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 32), ("test", 20)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture
def words(images: Path) -> Words:
    return lambda folder, *grid, more=(): command(images, folder, *grid, more=more)


def command(images: Path, folder: Path, *grid: str, more: tuple[str, ...] = ()) -> list[str]:
    """The command line of a sweep of one seed and one epoch."""
    ends = ["--root", str(images), "--seeds", "0", "--epochs", "1", "--limit", "64", "--runs", str(folder / "runs")]
    return [
        "quickstart",
        "--grid",
        *(w for w in SMALL.split() if w.split("=")[0] not in {g.split("=")[0] for g in grid}),
        *grid,
        *ends,
        *more,
    ]


def written(folder: Path) -> dict[str, int]:
    """When the files of all runs were written last."""
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


# --- grids -----------------------------------------------------------------------------------------------------------


def test_words_become_values_of_the_fields_types() -> None:
    parsed = axes.parse_grid(["bins=4,6", "lambda_manip=0,2e-1", "momentum=none,0.99", "compiled=true,False", "lr=4"])
    assert parsed == {
        "bins": [4, 6],
        "lambda_manip": [0.0, 0.2],
        "momentum": [None, 0.99],
        "compiled": [True, False],
        "lr": [4.0],
    }
    assert [type(value) for value in parsed["lr"] + parsed["bins"]] == [float, int, int]
    assert axes.parse_grid(["identity=simclr,byol", "limit=none,50"]) == {
        "identity": ["simclr", "byol"],
        "limit": [None, 50],
    }


def test_views_are_settings_of_a_grid_by_the_names_of_pretrains_flags(tmp_path: Path) -> None:
    parsed = axes.parse_grid(["size=48,none", "scale=0.08:1,0.2:1", "p_blur=0.5", "small_scale=0.1:0.2"])
    assert parsed == {
        "size": [48, None],
        "scale": [(0.08, 1.0), (0.2, 1.0)],
        "p_blur": [0.5],
        "small_scale": [(0.1, 0.2)],
    }
    assert axes.parse_grid(["manipulation_hidden=64,32:16"]) == {"manipulation_hidden": [64, (32, 16)]}
    arguments = sweep.Arguments("tiny-stec", grid=("size=24,48", "scale=0.08:1,0.2:1"), seeds=(4,), runs=tmp_path)
    grid, runs = sweep.plan(arguments)
    assert grid.axes == ("size", "scale")
    found = {run.label: (run.config.augmentation.size, run.config.augmentation.scale) for run in runs}
    assert found == {
        "size=24, scale=0.08:1": (24, (0.08, 1.0)),
        "size=24, scale=0.2:1": (24, (0.2, 1.0)),
        "size=48, scale=0.08:1": (48, (0.08, 1.0)),
        "size=48, scale=0.2:1": (48, (0.2, 1.0)),
    }
    assert {run.config.seed for run in runs} == {4}
    base = preset("tiny-stec").augmentation
    assert runs[0].config.augmentation == dataclasses.replace(base, size=24, scale=(0.08, 1.0))  # the rest stays
    blurred = ["p_blur=0,0.5", "sigma=0.1:1,0.1:2"]
    assert [cell.label for cell in grids.product(preset("tiny-stec"), axes.parse_grid(blurred)).cells] == [
        "p_blur=0",
        "p_blur=0.5, sigma=0.1:1",
        "p_blur=0.5, sigma=0.1:2",
    ]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("bin=4", r"no setting 'bin'; the nearest are bins"),
        ("lamda_manip=1", r"the nearest are lambda_manip"),
        ("action=exct,official", r"action cannot be 'exct'; the nearest are exact"),
        ("bins=4.5", r"bins takes int, not '4.5'"),
        ("lr=fast", r"lr takes float, not 'fast'"),
        ("lr=nan", r"lr takes float, not 'nan'"),
        ("momentum=slow", r"momentum takes float or none, not 'slow'"),
        ("compiled=yes", r"compiled cannot be 'yes'; the nearest are true, false"),
        ("augmentation=x", r"no setting 'augmentation'"),
        ("small_scale=0.1", r"small_scale takes two numbers with a colon between them, such as 0.2:1, not '0.1'"),
        ("scale=0.1:0.2:1", r"scale takes two numbers"),
        ("scale=0.1:nan", r"scale takes two numbers"),
        ("siz=48", r"no setting 'siz'; the nearest are size"),
        ("seed=1", r"seed is no axis of a grid: --seeds names them"),
        ("root=a", r"root is no axis"),
        ("bins", r"'bins' is no axis; write a setting and its values"),
        ("bins=", r"is no axis"),
        ("bins=4,4", r"names a value twice"),
        ("bins=4,", r"bins takes int, not ''"),
    ],
)
def test_mistakes_in_a_grid(word: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        axes.parse_grid([word])
    with pytest.raises(ValueError, match="bins is named twice"):
        axes.parse_grid(["bins=4", "bins=6"])


def configs(base: Config, grid: grids.Grid) -> list[Config]:
    return [dataclasses.replace(base, **cell.overrides) for cell in grid.cells]  # type: ignore[arg-type]


def test_without_l_manip_there_are_no_bins_to_vary() -> None:
    grid = grids.product(preset("small-stec"), axes.parse_grid(["bins=4,6", "lambda_manip=0,0.2"]))
    assert [cell.label for cell in grid.cells] == [
        "lambda_manip=0",
        "bins=4, lambda_manip=0.2",
        "bins=6, lambda_manip=0.2",
    ]
    grid = grids.product(preset("small-stec"), axes.parse_grid(["manipulation=binned,regressed", "bins=4,6"]))
    assert [cell.label for cell in grid.cells] == [
        "manipulation=binned, bins=4",
        "manipulation=binned, bins=6",
        "manipulation=regressed",
    ]


def labels(name: str, *words: str) -> list[str]:
    return [cell.label for cell in grids.product(preset(name), axes.parse_grid(words)).cells]


def test_what_an_identity_model_does_not_read_is_no_axis() -> None:
    assert labels("tiny-stec", "momentum=0.5,0.9") == ["S-TEC exact"]
    assert grids.product(preset("tiny-stec"), axes.parse_grid(["momentum=0.5,0.9"])).axes == ()
    assert labels("tiny-stec", "identity=simclr,byol", "momentum=0.5,0.9", "temperature=0.1,0.2") == [
        "identity=simclr, temperature=0.1",
        "identity=simclr, temperature=0.2",
        "identity=byol, momentum=0.5",
        "identity=byol, momentum=0.9",
    ]
    assert labels("tiny-relicv2", "small_size=8,16", "small_views=0,2") == [
        "small_views=0",
        "small_size=8, small_views=2",
        "small_size=16, small_views=2",
    ]


@pytest.mark.parametrize("model", typing.get_args(Identity))
def test_idle_settings_change_nothing(model: Identity) -> None:
    """Beside the modules: what is idle leaves the identity model's numbers as they are, what is not changes them."""
    slow = None if model == "byol" else 0.99  # the case in which BYOL may do without its stop-gradient
    base = dataclasses.replace(preset(f"tiny-{model}"), projection_hidden=8, projection_out=4, queue=16, momentum=slow)
    others = {"temperature": 0.9, "predictor_hidden": 3, "projection_layers": 3, "alpha": 7.0, "queue": 32}
    others |= {"variance_weight": 3.0, "redundancy": 0.5, "stop_gradient": False, "momentum": 0.5}

    def made(config: Config) -> str:
        torch.manual_seed(0)
        module = networks.identity(config, 8)
        plain = {
            f"{name}.{key}": value
            for name, part in module.named_modules()
            for key, value in vars(part).items()
            if isinstance(value, float | int | bool)
        }
        return f"{module} {plain} {[(key, value.shape) for key, value in module.state_dict().items()]}"

    for field, value in others.items():
        if field == "projection_layers" and base.projection_layers == 3:
            value = 2
        same = made(base) == made(dataclasses.replace(base, **{field: value}))
        assert same == (field in grids.idle(base)), field


@pytest.mark.parametrize(
    ("name", "word", "says"),
    [
        ("tiny-simclr", "bins=4", "bins=4 changes nothing in tiny-simclr: lambda_manip is 0; leave it out"),
        ("tiny-stec", "momentum=0.5", "momentum=0.5 changes nothing in tiny-stec: SimCLR has none"),
        ("tiny-byol", "temperature=0.5", "temperature=0.5 changes nothing in tiny-byol: BYOL has none"),
        ("tiny-relic", "small_size=8", "small_size=8 changes nothing"),
    ],
)
def test_one_value_of_what_is_not_read_is_refused(name: str, word: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        sweep.plan(sweep.Arguments(name, grid=(word,), runs=tmp_path))
    _, runs = sweep.plan(sweep.Arguments("tiny-simclr", grid=("bins=4", "lambda_manip=0,1"), seeds=(0,), runs=tmp_path))
    assert [run.config.bins for run in runs] == [4, 4]  # one of them reads it


@settings(max_examples=30)
@given(
    bins=st.lists(st.integers(2, 20), unique=True, min_size=1, max_size=4),
    weights=st.lists(st.floats(0, 10), unique=True, min_size=1, max_size=4),
    models=st.lists(st.sampled_from(["binned", "regressed"]), unique=True, min_size=1),
)
def test_every_combination_that_differs_is_there_once(bins: list[int], weights: list[float], models: list[str]) -> None:
    base = preset("small-stec")
    grid = grids.product(base, {"bins": bins, "lambda_manip": weights, "manipulation": models})
    found = configs(base, grid)
    expected = {
        (0.0,) if w == 0 else (w, "regressed") if m == "regressed" else (w, m, k)
        for k in bins
        for w in weights
        for m in models
    }
    of = [
        (0.0,)
        if c.lambda_manip == 0
        else (c.lambda_manip, "regressed")
        if c.manipulation == "regressed"
        else (c.lambda_manip, c.manipulation, c.bins)
        for c in found
    ]
    assert len(of) == len(set(of))
    assert set(of) == expected
    assert len({axes.name(cell.overrides) for cell in grid.cells}) == len(grid.cells)


def test_the_panels_of_figure_3() -> None:
    base = preset("small-stec")
    arms = {
        cell.label: config
        for cell, config in zip(grids.panel("3A", base).cells, configs(base, grids.panel("3A", base)))
    }
    assert {(c.action, c.manipulation) for c in arms.values() if c.lambda_manip} == {
        ("exact", "binned"),
        ("exact", "regressed"),
        ("allocentric", "binned"),
        ("allocentric", "regressed"),
        ("augself", "regressed"),
        ("official", "binned"),
    }
    assert arms["SimCLR"].lambda_manip == 0
    assert arms["egocentric, classes"] == base
    # as the presets weigh the two labels
    assert arms["released label, classes"].lambda_manip == preset("small-stec-official").lambda_manip
    weights = [config.lambda_manip for config in configs(base, grids.panel("3B-lambda", base))]
    assert weights[0] == 0
    assert base.lambda_manip in weights
    assert weights == sorted(weights)
    bins = grids.panel("3B-bins", base)
    assert [cell.overrides for cell in bins.cells[:3]] == [{"lambda_manip": 0.0}, {"bins": 2}, {"bins": 4}]
    for config in arms.values():
        narrow = dataclasses.replace(config, width=4)
        assert set(networks.objective(narrow, 32, (32, 32)).names) == {"identity", "manipulation"} - (
            {"manipulation"} if config.lambda_manip == 0 else set()
        )
    with pytest.raises(ValueError, match="which small-simclr lacks; choose a preset such as small-stec"):
        grids.panel("3A", preset("small-simclr"))


# --- means over seeds ------------------------------------------------------------------------------------------------


def test_the_interval_by_hand() -> None:
    found = interval([0.5, 0.6, 0.7, 0.9])
    # mean 2.7 / 4; squares .030625 + .005625 + .000625 + .050625 = .0875; t(0.975, 3) = 3.182446
    half = 3.182446305 * math.sqrt(0.0875 / 3 / 4)
    assert found.mean == pytest.approx(0.675)
    assert (found.low, found.high) == pytest.approx((0.675 - half, 0.675 + half))
    assert found.values == [0.5, 0.6, 0.7, 0.9]
    two = interval([1.0, 3.0])
    assert two.high == pytest.approx(2 + 12.706204736)  # t(0.975, 1) sqrt(2 / 2)
    assert interval([0.25]) == Interval(0.25, None, None, [0.25])
    with pytest.raises(ValueError, match="at least one"):
        interval([])


@given(n=st.integers(0, 40), parts=st.integers(1, 7))
def test_parts_share_the_runs_without_a_rest(n: int, parts: int) -> None:
    runs = [summary.Run(f"run {i}", preset("quickstart"), Path(str(i))) for i in range(n)]
    shares = [sweep.share(runs, f"{i}/{parts}") for i in range(1, parts + 1)]
    together = [run for share in shares for run in share]
    assert sorted(run.label for run in together) == sorted(run.label for run in runs)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert sweep.share(runs, None) == runs


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "1/", "/2", "-1/2", "1/0"])
def test_what_is_no_part(part: str) -> None:
    with pytest.raises(ValueError, match="write 1/3, 2/3 or 3/3"):
        sweep.share([], part)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two parts have each done one run, of K = 4 and K = 6; the second wrote the results."""
    folder = tmp_path_factory.mktemp("sweep")
    assert sweep.main(command(images, folder, "bins=4,6", more=("--part", "1/2"))) == 0
    assert len(list((folder / "runs").glob("*/*/measured.json"))) == 1
    more = ("--part", "2/2", "--out", str(folder / "all.json"), "--plot", str(folder / "all.png"))
    assert sweep.main(command(images, folder, "bins=4,6", more=more)) == 0
    return folder


def test_the_command_writes_records_means_and_a_picture(swept: Path) -> None:
    found = records.read(swept / "all.json")
    assert [(r.method, r.seed, r.settings["bins"], r.settings["width"]) for r in found] == [
        ("bins=4", 0, 4, 4),
        ("bins=6", 0, 6, 4),
    ]
    made = json.loads((swept / "all.aggregate.json").read_text())
    assert made["axes"] == ["bins"]
    for cell, record, k in zip(made["cells"], found, (4, 6)):
        assert (cell["label"], cell["seeds"], cell["missing"]) == (record.method, [0], [])
        values = {f"{x.metric}, {x.protocol}": x.value for x in record.results}
        assert {name: x["mean"] for name, x in cell["metrics"].items()} == values
        # The chance level of each K is its own.
        chance = values["manipulation, held-out"] - values["manipulation minus chance, held-out"]
        assert chance == pytest.approx(math.log(k), abs=0.01)
    assert (swept / "all.png").read_bytes()[:4] == b"\x89PNG"
    assert (swept / "all.png").stat().st_size < 150_000
    assert str(swept) not in (swept / "all.json").read_text() + (swept / "all.aggregate.json").read_text()
    text = table.markdown(found)
    assert "| bins=4 | 1 |" in text
    assert "| bins=6 | 1 |" in text


def test_finished_runs_are_kept(swept: Path, words: Words, capsys: pytest.CaptureFixture[str]) -> None:
    before = written(swept / "runs")
    assert sweep.main(words(swept, "bins=4,6")) == 0
    assert written(swept / "runs") == before
    shown = capsys.readouterr().out
    assert "run 1" not in shown
    assert "bins=4" in shown


def test_one_run_is_not_repeated(swept: Path) -> None:
    before = written(swept / "runs")
    folder = next((swept / "runs").glob("*/*bins=4,seed=0"))
    assert compare.one_run(read_config(folder), folder) == records.read(folder / "measured.json")
    assert written(swept / "runs") == before


def test_a_run_of_other_settings_is_not_taken_for_this_one(swept: Path, words: Words) -> None:
    before = written(swept / "runs")
    with pytest.raises(ValueError, match=r"bins=4: .*other settings \(limit 64 there, 60 here\); give another --runs"):
        sweep.main([word if word != "64" else "60" for word in words(swept, "bins=4,6")])
    assert written(swept / "runs") == before


def test_numbers_of_other_commands_are_not_the_sweeps(swept: Path, words: Words, tmp_path: Path) -> None:
    """What `evaluate` leaves in a run's folder, baselines and all, makes it neither done nor part of a mean."""
    folder = next((swept / "runs").glob("*/*bins=4,seed=0"))
    (own,) = records.read(folder / "measured.json")
    stranger = dataclasses.replace(own, method="raw pixels", results=[records.Result("accuracy", 0.1, "linear")])
    records.merge([stranger], folder / "results.json")
    arguments = tyro.cli(sweep.Arguments, args=words(swept, "bins=4,6"))
    found, _ = summary.summarise(*sweep.plan(arguments))
    assert found[0].seeds == [0]
    assert found[0].metrics["accuracy, linear"].values == [own.results[0].value]
    untouched = tmp_path / "runs" / folder.parent.name / folder.name
    untouched.mkdir(parents=True)
    records.write([stranger], untouched / "results.json")
    arguments = tyro.cli(sweep.Arguments, args=words(tmp_path, "bins=4,6"))
    assert summary.summarise(*sweep.plan(arguments))[0][0].missing == [0]


def test_parts_with_other_settings_are_not_mixed(swept: Path, words: Words) -> None:
    line = [word if word != "1" else "2" for word in words(swept, "bins=4,6,8")]
    with pytest.raises(ValueError, match=r"bins=4: .*other settings \(epochs 1 there, 2 here"):
        sweep.main([*line, "--part", "3/3"])  # whose own run is none of those that are done


def test_an_interruption_says_how_to_go_on(words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt(f"interrupted; {stopping._go_on(tmp_path)}")

    monkeypatch.setattr(compare, "pretrain", interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"^interrupted; the same command goes on$"):
        sweep.main(words(tmp_path, "bins=4,6"))


def test_an_interrupted_sweep_goes_on(words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pulled(Exception):
        pass

    probed, calls = compare.probed, []

    def pull(*arguments: object) -> list[records.Record]:
        calls.append(arguments)
        if len(calls) == 2:
            raise Pulled
        return probed(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(compare, "probed", pull)
    with pytest.raises(Pulled):
        sweep.main(words(tmp_path, "bins=4,6"))
    first, second = (next((tmp_path / "runs").glob(f"*/*bins={k},seed=0")) for k in (4, 6))
    before = written(first) | written(second / "checkpoints")
    assert not (second / "measured.json").exists()
    assert sweep.main(words(tmp_path, "bins=4,6")) == 0
    assert len(calls) == 3  # the second was trained to its end before, and only probed now
    assert written(first) | written(second / "checkpoints") == before
    (record,) = records.read(second / "measured.json")
    assert record.seconds is None  # of a run that was taken up
    assert record.results[0].metric == "accuracy"


def test_a_run_that_diverges_fails_alone(words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = words(tmp_path, "optimizer=sgd", "lr=1e30,0.01", more=("--out", str(tmp_path / "all.json")))
    assert sweep.main(line) == 1
    bad, good = json.loads((tmp_path / "all.aggregate.json").read_text())["cells"]
    assert "became" in bad["failed"]["0"]
    assert str(tmp_path) not in (tmp_path / "all.aggregate.json").read_text()
    assert (bad["seeds"], bad["metrics"], good["seeds"], good["failed"]) == ([], {}, [0], {})
    assert [record.method for record in records.read(tmp_path / "all.json")] == ["lr=0.01"]
    assert "1 failed" in capsys.readouterr().out
    before = written(tmp_path / "runs")
    assert sweep.main(line) == 1  # it would diverge again
    assert written(tmp_path / "runs") == before


def test_a_divergence_holds_for_its_settings_alone(tmp_path: Path) -> None:
    run = summary.Run("one", preset("quickstart"), tmp_path / "one")
    tried = []

    def diverge(run: summary.Run) -> list[records.Record]:
        tried.append(run.config.lr)
        raise NonFiniteLoss("identity became nan")

    sweep.attempt(run, diverge)
    sweep.attempt(run, diverge)
    moved = run._replace(config=dataclasses.replace(run.config, root=tmp_path))  # where the data lie changes nothing
    sweep.attempt(moved, diverge)
    assert tried == [run.config.lr]
    other = run._replace(config=dataclasses.replace(run.config, lr=1e-4))
    with pytest.raises(ValueError, match=r"one: .*diverged with other settings \(lr 0.002 there, 0.0001 here\); give"):
        sweep.check([other])
    law = dataclasses.replace(run.config.augmentation, size=48)
    other = run._replace(config=dataclasses.replace(run.config, augmentation=law))
    with pytest.raises(
        ValueError, match=r"other settings \(augmentation\.size None there, 48 here\); give another --runs"
    ):
        sweep.check([other])


def test_what_is_not_a_divergence_is_tried_again(tmp_path: Path) -> None:
    run = summary.Run("one", preset("quickstart"), tmp_path / "one")

    def full(_: summary.Run) -> list[records.Record]:
        raise RuntimeError(f"out of memory in {run.folder}/x")

    sweep.attempt(run, full)
    (found,), _ = summary.summarise(grids.Grid((grids.Cell("one", {}),)), [run])
    assert found.failed == {0: "out of memory in one/x"}
    sweep.attempt(run, lambda _: [])
    (found,), _ = summary.summarise(grids.Grid((grids.Cell("one", {}),)), [run])
    assert (found.failed, found.missing) == ({}, [0])


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        (("bins=4,1",), "bins=1: .*at least"),
        (("temperature=0.2,0",), "temperature=0: temperature is 0.0"),
        (("warmup_epochs=0,1",), "warmup_epochs=1: 1 warm-up epochs of 1"),
        (("data=folder,cifar10",), "data=cifar10: .*does not exist"),
    ],
)
def test_mistakes_are_found_before_the_first_run(
    grid: tuple[str, ...], says: str, words: Words, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        sweep.main(words(tmp_path, *grid))
    assert not list(tmp_path.rglob("config.json"))


def test_a_panel_takes_no_second_grid(words: Words, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--panel 3A is a grid itself"):
        sweep.main(words(tmp_path, "bins=4,6", more=("--panel", "3A")))
    with pytest.raises(ValueError, match="--seeds is 1 1; name each once"):
        sweep.main([*words(tmp_path, "bins=4"), "--seeds", "1", "1"])


# --- the regression of actions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["exact", "official"])
def test_r2_of_a_regression(action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside scikit-learn's, on the same pairs; components that never vary are left out."""
    config = dataclasses.replace(preset("quickstart"), action=action, manipulation="regressed")
    d = len(networks.COPIES[action].components)
    model = RegressedActions(nn.Linear(2 * 3, d), std=torch.ones(d))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def two_views(*images: object, **law: object) -> object:
        pair = views.two_views(*images, **law)  # type: ignore[arg-type]
        x, x_prime = (view.mean(dim=(2, 3)) for view in (pair.x, pair.x_prime))
        seen.append((pair.action, model.head(torch.cat((x, x_prime), dim=1)).detach()))
        return pair

    monkeypatch.setattr(regression, "two_views", two_views)
    learner = Learner(
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        STECObjective({"manipulation": model}, {"manipulation": 1.0}),
        views=networks.views(config),
        optimizer=torch.optim.Adam,
        adapt=lambda name, parameter: False,
        weight_decay=0.0,
        warmup_steps=0,
        total_steps=1,
        seed=0,
    )
    images = ImageSet(torch.randint(256, (50, 3, 16, 16), dtype=torch.uint8), torch.zeros(50).long(), ("a",))
    (found,) = regression.read_regression(learner, config, images, batch=32)
    truth, read = (torch.cat([pair[i] for pair in seen]) for i in (0, 1))
    live = truth.std(dim=0) > 0
    expected = r2_score(truth[:, live], read[:, live], multioutput="raw_values")
    assert len(truth) == 100
    assert found.value == pytest.approx(expected.mean(), abs=1e-4)
    components = [found.details[name] for name in networks.COPIES[action].components if name in found.details]
    assert components == pytest.approx(list(expected), abs=1e-4)
    assert len(components) == 4


def test_a_regression_is_measured_where_the_sweep_has_one(words: Words, tmp_path: Path) -> None:
    more = ("--out", str(tmp_path / "x.json"))
    assert sweep.main(words(tmp_path, "manipulation=regressed,binned", more=more)) == 0
    one, other = json.loads((tmp_path / "x.aggregate.json").read_text())["cells"]
    assert summary.R2 in one["metrics"]
    assert summary.NATS not in one["metrics"]
    assert summary.NATS in other["metrics"]


# --- pictures --------------------------------------------------------------------------------------------------------


def invented(grid: grids.Grid, value: Callable[[int], float] = float) -> list[summary.Summary]:
    """Summaries of three seeds, with accuracies value(i) / 100 -+ 0.01, and nats where there is L_manip."""
    made = []
    for i, cell in enumerate(grid.cells):
        metrics = {"accuracy, linear": interval([value(i) / 100 + e for e in (-0.01, 0.0, 0.01)])}
        if cell.overrides.get("manipulation") == "regressed":
            metrics[summary.R2] = interval([0.3, 0.4, 0.5])
        elif cell.overrides.get("lambda_manip") != 0:
            metrics[summary.NATS] = interval([-0.5, -0.4, -0.3])
        made.append(summary.Summary(cell.label, cell.overrides, [0, 1, 2], {}, [], metrics))
    return made


def lines(panel: Axes) -> dict[str, list[float]]:
    """What the legend's lines show: heights of the means."""
    handles, labels = panel.get_legend_handles_labels()
    data = [handle[0] if isinstance(handle, tuple) else handle for handle in handles]
    return {
        label: [round(float(y), 6) for y in line.get_ydata()]
        for label, line in zip(labels, data)
        if label != plots.BAND
    }


def test_a_line_for_each_value_of_the_second_axis(tmp_path: Path) -> None:
    grid = grids.product(preset("small-stec"), axes.parse_grid(["bins=4,6,8", "lambda_manip=0,0.2,2"]))
    found = invented(grid)
    figure = plots.draw_sweep(found, tmp_path / "x.png", axes=grid.axes, accuracy="accuracy, linear", title="x")
    accuracy, nats = figure.axes
    # cells: lambda_manip=0, then for each K both weights
    assert lines(accuracy) == {"lambda_manip=0": [0, 0], "lambda_manip=0.2": [1, 3, 5], "lambda_manip=2": [2, 4, 6]}
    assert lines(nats) == {"lambda_manip=0.2": [-0.4] * 3, "lambda_manip=2": [-0.4] * 3}
    assert [label.get_text() for label in accuracy.get_xticklabels()] == ["4", "6", "8"]
    half = 100 * (found[1].metrics["accuracy, linear"].high - found[1].metrics["accuracy, linear"].mean)  # type: ignore[operator]
    bars = [bar.get_segments() for bar in accuracy.collections if isinstance(bar, LineCollection)]
    tops = [segments[0][:, 1] for segments in bars if len(segments) == 3]
    assert any(segment == pytest.approx([1 - half, 1 + half]) for segment in tops)


def test_without_l_manip_is_a_line_across_a_sweep_of_its_weight(tmp_path: Path) -> None:
    grid = grids.panel("3B-lambda", preset("small-stec"))
    figure = plots.draw_sweep(
        invented(grid), tmp_path / "x.png", axes=grid.axes, accuracy="accuracy, linear", title="x"
    )
    assert lines(figure.axes[0]) == {"lambda_manip=0": [0, 0], "mean": [1, 2, 3, 4, 5]}
    places = figure.axes[0].get_xticks()  # by logarithm: 0.3 times the weight lies half-way between 0.1 and 1, nearly
    assert (places[1] - places[0]) / (places[2] - places[0]) == pytest.approx(math.log10(3), abs=1e-3)


def test_arms_below_each_other(tmp_path: Path) -> None:
    grid = grids.panel("3A", preset("small-stec"))
    figure = plots.draw_sweep(invented(grid), tmp_path / "x.png", axes=(), accuracy="accuracy, linear", title="x")
    accuracy, nats = figure.axes
    assert [label.get_text() for label in accuracy.get_yticklabels()] == [cell.label for cell in grid.cells]
    notes = [note.get_text() for note in nats.texts]
    assert notes == ["no L_manip", *["L2: R² 0.40"] * 3]
    assert accuracy.get_ylim()[0] > accuracy.get_ylim()[1]  # the first at the top
    means = sorted(float(line.get_xdata()[0]) for line in accuracy.lines if line.get_marker() == "o")
    assert means == pytest.approx(list(range(7)), abs=1e-6)


def drawn(tmp_path: Path, axis: str, values: dict[str, list[list[float]]]) -> Figure:
    """A sweep of one axis, by the label of each cell: accuracies of its seeds, and nothing else."""
    found = [
        summary.Summary(label, axes_of(label), list(range(len(of))), {}, [], {"accuracy, linear": interval(of)})
        for label, (of,) in values.items()
    ]
    return plots.draw_sweep(found, tmp_path / "x.png", axes=(axis,), accuracy="accuracy, linear", title="x")


def axes_of(label: str) -> dict[str, axes.Value]:
    field, _, word = label.partition("=")
    return {field: axes.parse_value(field, word)}


def dots(panel: Axes) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for line in panel.lines if line.get_marker() == "." for x, y in zip(*line.get_data())]


@pytest.mark.parametrize("labels", [("bins=4",), ("bins=4", "bins=6"), ("size=none", "size=48"), ("lr=0.001", "lr=1")])
def test_seeds_stand_near_their_mean(labels: tuple[str, ...], tmp_path: Path) -> None:
    """Also where one value alone is plotted: within a tenth of the panel's width, and in the panel."""
    axis = labels[0].split("=")[0]
    figure = drawn(tmp_path, axis, {label: [[0.4, 0.5, 0.6]] for label in labels})
    (panel,) = figure.axes
    low, high = panel.get_xlim()
    ticks = [float(tick) for tick in panel.get_xticks()]
    assert all(low < tick < high for tick in ticks)
    assert len(dots(panel)) == 3 * len(labels)
    for x, _ in dots(panel):
        assert 0.005 < min(abs(x - tick) for tick in ticks) / (high - low) < 0.1


def test_the_band_is_explained(tmp_path: Path) -> None:
    figure = drawn(tmp_path, "lambda_manip", {"lambda_manip=0": [[0.4, 0.5, 0.6]], "lambda_manip=1": [[0.5, 0.5, 0.6]]})
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["lambda_manip=0", plots.BAND, "mean"]


@pytest.mark.parametrize(("seeds", "bars"), [([0.4], 0), ([0.4, 0.5], 0), ([0.4, 0.5, 0.6], 1)])
def test_the_legend_has_the_bars_that_are_drawn(seeds: list[float], bars: int, tmp_path: Path) -> None:
    figure = drawn(tmp_path, "bins", {"bins=4": [seeds], "bins=6": [seeds]})
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["mean"]
    assert len(legend.findobj(LineCollection)) == bars


def test_two_seeds_have_no_interval_and_accuracies_stay_within_0_and_100(tmp_path: Path) -> None:
    def ends(figure: Figure) -> list[float]:
        bars = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]
        return [float(y) for c in bars for segment in c.get_segments() if len(segment) for y in segment[:, 1]]

    two = drawn(tmp_path, "bins", {"bins=4": [[0.4, 0.6]], "bins=6": [[0.5, 0.6]]})
    assert ends(two) == []
    assert "interval" not in two.get_suptitle()
    assert len(dots(two.axes[0])) == 4
    three = drawn(tmp_path, "bins", {"bins=4": [[0.1, 0.6, 0.9]], "bins=6": [[0.5, 0.6, 0.7]]})
    assert min(ends(three)) < 0  # what the axis must not show
    assert max(ends(three)) > 100
    low, high = three.axes[0].get_ylim()
    assert (low, high) == (0, 100)
    assert "95 % confidence interval" in three.get_suptitle()


# --- tables ----------------------------------------------------------------------------------------------------------


def test_the_table_names_its_statistic(swept: Path, words: Words, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(words(swept, "bins=4,6")) == 0
    shown = capsys.readouterr().out
    assert "mean ± standard deviation over seeds" in shown
    assert "| bins=4" not in shown
    assert sweep.main(words(swept, "bins=4,6", more=("--markdown", "--out", str(swept / "all.md")))) == 0
    shown = capsys.readouterr().out
    assert "| method | seeds (mean ± SD) |" in shown
    assert "accuracy less that of bins=4, points" in shown
    assert (swept / "all.md").read_text().strip() in shown
    assert not (swept / "all.aggregate.md").exists()
    found = [
        summary.Summary("x", {}, [0, 1], {}, [], {"accuracy, linear": interval([0.5, 0.6])}),
        summary.Summary("y", {}, [0], {}, [1], {"accuracy, linear": interval([0.5])}),
    ]
    summary.show(found)
    shown = capsys.readouterr().out
    assert "55.0±7.1" in shown  # sqrt(2) * 5
    assert "1 to come" in shown
