"""Sweep settings over seeds: python -m recipes.vision.sweep PRESET --root FOLDER --grid bins=4,6,8 lambda_manip=0,0.2.

A grid is every combination of the values of any setting, those of the views included (size=48,96, scale=0.08:1,0.2:1);
--panel names the grids behind Fig. 3 of the paper. An axis of one value is a setting of all runs; several values of
what a preset does not read are one, a single one is refused. --seeds names the seeds: --seeds 0 1 2.
Finished runs are kept and interrupted ones taken up, so the same command goes
on after an interruption; --part 1/2 and --part 2/2 share the runs between two processes, and the command without
--part then gathers them. A run that diverges is recorded as failed, with its reason, and the others go on; the exit
code is then 1.

Accuracy is compared under one protocol at a time. How well actions are read is compared by manipulation minus chance,
in nats on held-out views, since chance depends on K and on the label; a regression of actions has no bins, and shows
the share of their variance that it explains (R2, chance 0). lambda_manip stays as given: see recipes/vision/grids.py.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import tyro

from recipes import records
from recipes.differing import differing
from recipes.results import table
from recipes.results.differences import paired
from recipes.results.seeds import check_seeds
from recipes.run import Outcome, check_schedule
from recipes.run_folder import check_writable
from recipes.terminal import command, say
from recipes.vision import axes, compare, grids, inputs, plots
from recipes.vision.measure import Protocol
from recipes.vision.own_images import settled
from recipes.vision.presets import Config, preset
from recipes.vision.regression import read_regression
from recipes.vision.run import build_learner, to_plain
from recipes.vision.summary import FAILED, Run, Summary, aggregate, show, summarise
from stec.core.learner import NonFiniteLoss
from stec.vision.data import ImageSet


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which settings, how many seeds, on which data, for how long."""

    preset: tyro.conf.Positional[str]
    grid: tuple[str, ...] = ()  # axes such as bins=4,6,8; the preset alone by default
    panel: grids.Panel | None = None  # the paper's: arms of Fig. 3A, or an axis of Fig. 3B
    seeds: tuple[int, ...] = (0, 1, 2)  # each setting runs with each of these
    root: Path | None = None  # where the data lie
    epochs: int | None = None  # the preset's own by default; the warm-up ends before they do
    limit: int | None = None  # training images; the preset's own by default
    part: str | None = None  # "1/3": the first third of the runs; other processes take the others
    runs: Path = Path("runs/sweep")  # the run folders
    out: Path | None = None  # all runs' records, with the means beside in NAME.aggregate.json; NAME.md: the tables
    markdown: bool = False  # print the tables as Markdown
    plot: Path | None = None  # a PNG
    protocol: Protocol = "linear"  # of the accuracy in the plot


def shortened(config: Config, *, root: Path | None, epochs: int | None, limit: int | None) -> Config:
    """A preset on these data, for as long as asked."""
    epochs = config.epochs if epochs is None else epochs
    return dataclasses.replace(
        config,
        root=root,
        epochs=epochs,
        warmup_epochs=min(config.warmup_epochs, epochs - 1),
        limit=config.limit if limit is None else limit,
    )


def plan(arguments: Arguments) -> tuple[grids.Grid, list[Run]]:
    """The grid, and its runs, all settings of a seed before the next seed. ValueError for what cannot be run."""
    asked = axes.parse_grid(arguments.grid)
    fixed = {field: values[0] for field, values in asked.items() if len(values) == 1}
    varying = {field: values for field, values in asked.items() if len(values) > 1}
    base = shortened(preset(arguments.preset), root=arguments.root, epochs=arguments.epochs, limit=arguments.limit)
    base = axes.override(base, fixed)
    check_seeds(arguments.seeds)
    if arguments.panel and varying:
        raise ValueError(f"--panel {arguments.panel} is a grid itself; give --grid axes of one value, or no --panel")
    grid = grids.panel(arguments.panel, base) if arguments.panel else grids.product(base, varying)
    cells = [axes.override(base, cell.overrides) for cell in grid.cells]
    grids.check_fixed(fixed, arguments.preset, cells)
    runs = []
    for seed in arguments.seeds:
        for cell in grid.cells:
            config = dataclasses.replace(axes.override(base, cell.overrides), seed=seed)
            word = axes.name({**fixed, **cell.overrides, "seed": seed})
            runs.append(Run(cell.label, config, arguments.runs / arguments.preset / word))
    return grid, runs


def fitted(runs: Sequence[Run], *, typed: Sequence[str]) -> list[Run]:
    """The runs with settings as the images of their folder let them be, each change said once."""
    found, said = [], dict[str, None]()
    for run in runs:
        config, notes = settled(run.config, typed=typed)
        found.append(run._replace(config=config))
        said |= dict.fromkeys(notes)
    for line in said:
        say(line)
    return found


def share(runs: Sequence[Run], part: str | None) -> list[Run]:
    """The runs of one part: "i/n" takes every n-th, from the i-th on. ValueError for what is no part."""
    if part is None:
        return list(runs)
    i, slash, n = part.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise ValueError(f"--part is {part!r}; write 1/3, 2/3 or 3/3 for thirds")
    return list(runs[int(i) - 1 :: int(n)])


def check(runs: Sequence[Run]) -> None:
    """ValueError for mistakes that would show only when a run begins, or after it: settings, folders, data."""
    for label, config, folder in runs:
        try:
            check_schedule(config)
            compare.begun(config, folder)
            diverged(config, folder)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from error
    sources: dict[tuple[object, ...], tuple[tuple[int, int], int]] = {}  # image size and classes, by where they lie
    for label, config in {run.label: run.config for run in runs if not (run.folder / compare.DONE).is_file()}.items():
        try:
            where = (config.data, config.limit, config.augmentation)
            if where not in sources:
                train, _ = inputs.labelled_sources(config)
                few = inputs.read(config, train.subset(min(len(train), 8), seed=0))
                sources[where] = few.image_size(config.augmentation.size or 224), len(train.classes)
            build_learner(config, *sources[where], batches=None)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from error


def diverged(config: Config, folder: Path) -> bool:
    """Whether this run's loss diverged before. ValueError where that was a run with other settings."""
    failed = folder / FAILED
    if not failed.is_file():
        return False
    kept = json.loads(failed.read_text())
    if kept["error"] != NonFiniteLoss.__name__ or "settings" not in kept:  # what it was run with is not known: try anew
        return False
    if other := differing(kept["settings"], to_plain(config)):
        raise ValueError(
            f"{folder} holds a run that diverged with other settings ({'; '.join(other)}); give another --runs, or "
            "the same arguments"
        )
    return True


def attempt(run: Run, work: Callable[[Run], list[records.Record]]) -> None:
    """Do the work of a run; why it failed, if it does, is kept in its folder.

    A loss that diverged would diverge again, so such a run is not tried anew; anything else may have been mended.
    """
    failed = run.folder / FAILED
    if diverged(run.config, run.folder):
        return
    try:
        work(run)
    except (ValueError, RuntimeError) as error:
        reason = str(error)
        for path in (run.folder.resolve(), run.folder, run.config.root):  # a record names no path of this machine
            reason = reason.replace(str(path), path.name) if path else reason
        check_writable(run.folder)
        kept = {"error": type(error).__name__, "reason": reason, "settings": to_plain(run.config)}
        failed.write_text(json.dumps(kept) + "\n")
        say(f"failed: {error}")
    else:
        failed.unlink(missing_ok=True)


def run_all(runs: Sequence[Run], work: Callable[[Run], list[records.Record]]) -> None:
    """Do the work of every run, as far as that is not done yet."""
    for i, run in enumerate(runs, start=1):
        if not (run.folder / compare.DONE).is_file():
            say(f"run {i} of {len(runs)}: {run.label}, seed {run.config.seed}")
            attempt(run, work)


def exit_code(summaries: Sequence[Summary]) -> int:
    """1 where runs failed, and a line for each; else 0."""
    for summary in summaries:
        for seed, reason in summary.failed.items():
            say(f"failed: {summary.label}, seed {seed}: {reason}")
    return 1 if any(summary.failed for summary in summaries) else 0


def measure(config: Config, outcome: Outcome, seconds: float | None) -> list[records.Record]:
    """What `recipes.vision.compare` measures, and of a regression of actions how much it explains."""
    found = compare.probed(config, outcome, seconds)
    if config.lambda_manip and config.manipulation == "regressed":
        _, test = inputs.labelled_images(config)
        if isinstance(test.images, ImageSet):
            found[-1].results.extend(read_regression(outcome.learner, config, test.images))
    return found


def work(run: Run) -> list[records.Record]:
    """The records of a run, pretrained and probed as far as that is not done yet."""
    return compare.one_run(run.config, run.folder, measure=measure)


def report(arguments: Arguments, grid: grids.Grid, runs: Sequence[Run]) -> list[Summary]:
    """Print the table, and write records, means and plot, of the runs that are done."""
    summaries, found = summarise(grid, runs)
    if arguments.markdown:
        print(table.markdown(found, paired(found)))
    else:
        show(summaries)
        compare.show_differences(found)
    if arguments.out and arguments.out.suffix == ".md":
        arguments.out.write_text(table.markdown(found, paired(found)) + "\n")
        say(f"written to {arguments.out}")
    elif arguments.out:
        records.write(found, arguments.out)
        beside = arguments.out.with_suffix(".aggregate.json")
        beside.write_text(json.dumps(aggregate(grid, summaries), indent=1) + "\n")
        say(f"written to {arguments.out} and {beside.name}")
    if arguments.plot and found:
        plots.draw_sweep(
            summaries,
            arguments.plot,
            axes=[axis for axis in grid.axes if len({s.overrides.get(axis) for s in summaries}) > 1],
            accuracy=f"accuracy, {arguments.protocol}",
            title=f"{arguments.preset}" + (f", panel {arguments.panel}" if arguments.panel else ""),
        )
        say(f"drawn in {arguments.plot}")
    return summaries


def main(argv: list[str]) -> int:
    """Run the command line: the exit code, 1 where a run failed. ValueError for a user's mistake."""
    arguments = tyro.cli(Arguments, args=argv, prog="python -m recipes.vision.sweep", description=__doc__)
    for path in (arguments.out, arguments.plot):
        if path:
            check_writable(path.parent)
    grid, runs = plan(arguments)
    runs = fitted(runs, typed=tuple(axes.parse_grid(arguments.grid)))
    mine = share(runs, arguments.part)
    check(runs)  # all: the report takes those of other parts together with these
    run_all(mine, work)
    return exit_code(report(arguments, grid, runs))


if __name__ == "__main__":
    command(lambda: sys.exit(main(sys.argv[1:])), interrupted="interrupted; the same command goes on")
