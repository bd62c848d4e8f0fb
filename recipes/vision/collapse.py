"""Do features collapse where nothing pushes objects apart? python -m recipes.vision.collapse --root FOLDER --plot FILE.

The paper leaves it for future work whether reading actions (L_manip) keeps identity models without negatives from
collapse. Three of them, each with and without L_manip: BYOL; BYOL without its momentum encoder, which leaves the
stopped gradient and the predictor; and BYOL without the stopped gradient too, which nothing but L_manip keeps apart.
Before training and after every epoch: effective rank and standard deviation of the features of plain test images, the
same of their projections, and the accuracy of nearest neighbours on the features.

Finished runs are kept and interrupted ones taken up. Every run writes its curve to curve.jsonl in its folder.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from recipes import records
from recipes.results.seeds import check_seeds
from recipes.run import Outcome
from recipes.run_folder import check_writable
from recipes.terminal import command, say
from recipes.vision import compare, grids
from recipes.vision.axes import Value
from recipes.vision.curves_picture import Curve, draw_curves
from recipes.vision.presets import Config, preset
from recipes.vision.run import record_of
from recipes.vision.summary import Columns, Run, show, summarise
from recipes.vision.sweep import check, exit_code, run_all, share, shortened
from recipes.vision.watch import CURVE, NEIGHBOURS, Watch, read_curve

# What is measured, and what the plot calls it. The identity loss acts on the projections, so these collapse first.
PANELS = {
    "effective rank": "effective rank of features",
    "standard deviation": "standard deviation of features\n(1: all directions, 0: one point)",
    "accuracy": "kNN accuracy on features (%)",
    "effective rank, projection": "effective rank of projections",
    "standard deviation, projection": "standard deviation of projections",
}
COLUMNS: Columns = {
    "effective rank, test images": ("rank", 1),
    "standard deviation, test images": ("std", 1),
    "effective rank, projection, test images": ("proj. rank", 1),
    "standard deviation, projection, test images": ("proj. std", 1),
    "accuracy, knn": ("kNN %", 100),
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Around which preset, which seeds, on which data, for how long."""

    preset: str = "tiny-byol-stec"  # BYOL with L_manip: its settings are those of all arms
    seeds: tuple[int, ...] = (0,)  # each arm runs with each of these
    root: Path | None = None  # where the data lie
    epochs: int | None = None  # the preset's own by default; the warm-up ends before they do
    limit: int | None = None  # training images; the preset's own by default
    train_images: int = 2_000  # that nearest neighbours are sought among
    test_images: int = 1_000  # that are measured
    part: str | None = None  # "1/3": the first third of the runs; other processes take the others
    runs: Path = Path("runs/collapse")  # the run folders
    out: Path | None = None  # the file of records
    plot: Path | None = None  # a PNG


def arms(base: Config) -> list[tuple[str, bool, dict[str, Value]]]:
    """Identity model, whether with L_manip, and the fields that differ from the preset.

    ValueError for a preset that is not BYOL with momentum and L_manip.
    """
    if base.identity != "byol" or base.momentum is None or base.lambda_manip == 0:
        raise ValueError(f"{base.preset} is not BYOL with momentum and L_manip; choose a preset such as tiny-byol-stec")
    models: dict[str, dict[str, Value]] = {
        "BYOL": {"momentum": base.momentum},
        "BYOL without momentum": {"momentum": None},
        "BYOL without stop-gradient": {"momentum": None, "stop_gradient": False},
    }
    weights = {True: base.lambda_manip, False: 0.0}
    return [
        (arm, manipulation, {**fields, "lambda_manip": weights[manipulation]})
        for arm, fields in models.items()
        for manipulation in (True, False)
    ]


def label(arm: str, manipulation: bool) -> str:
    """What tables call an arm."""
    return f"{arm}, {'with' if manipulation else 'without'} L_manip"


def plan(arguments: Arguments) -> tuple[grids.Grid, list[Run]]:
    """The arms, and their runs, all arms of a seed before the next seed. ValueError for what cannot be run."""
    check_seeds(arguments.seeds)
    if arguments.train_images < 2 or arguments.test_images < 2:
        raise ValueError("--train-images and --test-images need at least 2")
    base = shortened(preset(arguments.preset), root=arguments.root, epochs=arguments.epochs, limit=arguments.limit)
    cells = tuple(grids.Cell(label(arm, manipulation), fields) for arm, manipulation, fields in arms(base))
    runs = [
        Run(
            cell.label,
            dataclasses.replace(base, **cell.overrides, seed=seed),  # type: ignore[arg-type]
            arguments.runs / arguments.preset / f"{cell.label.replace(', ', ',').replace(' ', '-')},seed={seed}",
        )
        for seed in arguments.seeds
        for cell in cells
    ]
    return grids.Grid(cells), runs


def check_images(runs: Sequence[Run], images: Sequence[int]) -> None:
    """ValueError where a curve was measured on other numbers of images, so that its points would not compare."""
    for run in runs:
        for row in read_curve(run.folder / CURVE)[:1]:
            if row["images"] != list(images):
                there, here = (" and ".join(map(str, numbers)) for numbers in (row["images"], images))
                raise ValueError(
                    f"{run.folder} was measured on {there} images, not {here}; give another --runs, or the same numbers"
                )


def work(run: Run, images: Sequence[int]) -> list[records.Record]:
    """The record of a run, trained and watched as far as that is not done yet."""
    watch = Watch(run.folder / CURVE, run.config, images)

    def measure(config: Config, outcome: Outcome, seconds: float | None) -> list[records.Record]:
        of = {"train": len(watch.train.images), "test": len(watch.test.images), "k": NEIGHBOURS}
        return [record_of(config, results(read_curve(watch.path), of), seconds=seconds, stage="collapse")]

    return compare.one_run(run.config, run.folder, measure=measure, callbacks=[watch])


def results(rows: Sequence[dict[str, Any]], of: dict[str, int]) -> list[records.Result]:
    """The last values of a curve, each with the whole of it and with what it was measured on."""
    epochs = [row["epoch"] for row in rows]
    names = [name for name in rows[-1] if name not in ("epoch", "step", "images")]
    return [
        records.Result(
            name,
            rows[-1][name],
            "knn" if name == "accuracy" else "test images",
            {**of, "epochs": epochs, "curve": [row[name] for row in rows]},
        )
        for name in names
    ]


def curves(runs: Sequence[Run]) -> list[Curve]:
    """What the plot shows, of the arms that have at least one run: over the epochs that all their seeds have."""
    found = []
    for name in dict.fromkeys(run.label for run in runs):
        rows = [read_curve(run.folder / CURVE) for run in runs if run.label == name]
        if not (rows := [row for row in rows if row]):
            continue
        n = min(len(row) for row in rows)
        values = {
            shown: [[(100 if field == "accuracy" else 1) * line[field] for line in row[:n]] for row in rows]
            for field, shown in PANELS.items()
        }
        arm, _, rest = name.partition(", ")
        found.append(Curve(arm, rest.startswith("with "), [int(line["epoch"]) for line in rows[0][:n]], values))
    return found


def main(argv: list[str]) -> int:
    """Run the command line: the exit code, 1 where a run failed. ValueError for a user's mistake."""
    arguments = tyro.cli(Arguments, args=argv, prog="python -m recipes.vision.collapse", description=__doc__)
    for path in (arguments.out, arguments.plot):
        if path:
            check_writable(path.parent)
    grid, runs = plan(arguments)
    mine, images = share(runs, arguments.part), (arguments.train_images, arguments.test_images)
    check_images(runs, images)  # all: the report takes those of other parts together with these
    check(runs)
    run_all(mine, lambda run: work(run, images))
    summaries, found = summarise(grid, runs)
    show(summaries, COLUMNS)
    if arguments.out:
        records.write(found, arguments.out)
        say(f"written to {arguments.out}")
    if arguments.plot and (drawn := curves(runs)):
        seeds = f"{len(arguments.seeds)} seeds" if len(arguments.seeds) > 1 else "1 seed"
        draw_curves(drawn, arguments.plot, title=f"identity without negatives ({arguments.preset}), {seeds}")
        say(f"drawn in {arguments.plot}")
    return exit_code(summaries)


if __name__ == "__main__":
    command(lambda: sys.exit(main(sys.argv[1:])), interrupted="interrupted; the same command goes on")
