"""Compare presets over seeds at one budget: python -m recipes.vision.compare small-simclr small-stec --root FOLDER ...

Pretrains every preset with every seed, probes each, and the two baselines (raw pixels, untrained encoder), and writes
one file of records for recipes/results. Any setting can be given, as to `pretrain` (--epochs 20 --size 48), and goes
into every preset; --seeds names the seeds: --seeds 0 1 2. Finished runs are kept and interrupted ones taken up, so the
same command goes on after an interruption, and several processes may share the work by their seeds. Tables show mean
and standard deviation over seeds, and accuracies less those of the first preset, paired by seed, with 95 % intervals.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning
import tyro

from recipes import records
from recipes.command import typed_names
from recipes.differing import differing
from recipes.results import table as tables
from recipes.results.cells import SPREAD, tight
from recipes.results.differences import paired
from recipes.results.seeds import check_seeds
from recipes.run import Outcome, check_schedule
from recipes.run_folder import check_writable
from recipes.stopping import going_on_by
from recipes.terminal import command, say, table
from recipes.vision import evaluate, inputs
from recipes.vision.measure import PROTOCOLS
from recipes.vision.own_images import hold_out, settled, short_warm_up
from recipes.vision.presets import PRESETS, Config, preset
from recipes.vision.run import pretrain, read_config, to_plain

# In a run's folder: it is trained and measured as here. Other commands write their numbers into results.json.
DONE = "measured.json"
GO_ON = "interrupted; the same command goes on"
Measure = Callable[[Config, Outcome, float | None], list[records.Record]]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which presets, which seeds, with which settings."""

    presets: tyro.conf.Positional[tuple[str, ...]]
    config: tyro.conf.OmitArgPrefixes[Config]  # what is given here goes into every preset
    seeds: tuple[int, ...] = (0, 1, 2)  # each preset runs with each of these
    holdout: float | None = None  # of class folders, leave this share of each class out of training, for probes
    runs: Path = Path("runs/compare")  # the run folders
    out: Path | None = None  # the file of all runs' records; NAME.md: the tables
    markdown: bool = False  # print the tables as Markdown


def parse(argv: Sequence[str], name: str) -> Arguments:
    """The command line, with the values of this preset where it gives none."""
    return tyro.cli(
        Arguments,
        default=Arguments((), preset(name)),
        args=argv,
        prog="python -m recipes.vision.compare",
        description=f"{__doc__}\n\nDefaults below are those of {name}.",
    )


def configure(argv: Sequence[str], name: str, seed: int) -> Config:
    """A preset with the command line's overrides. ValueError for what another argument says."""
    own, config = preset(name), parse(argv, name).config
    if config.preset != name or config.seed != own.seed:
        raise ValueError(
            "presets are named first, and seeds with --seeds, such as --seeds 0 1 2; leave --preset and --seed"
        )
    config, _ = short_warm_up(config, typed=typed_names(argv))
    return dataclasses.replace(config, seed=seed)


def begun(config: Config, folder: Path) -> bool:
    """Whether the folder holds checkpoints of this run. ValueError where it holds a run with other settings."""
    if not (folder / "config.json").is_file():
        return False
    there, here = ({**to_plain(c), "root": c.root and str(c.root.resolve())} for c in (read_config(folder), config))
    checkpoints = any((folder / "checkpoints").glob("*.ckpt"))
    if (other := differing(there, here)) and (checkpoints or (folder / DONE).is_file()):
        raise ValueError(
            f"{folder} holds a run with other settings ({'; '.join(other)}); give another --runs, or the same arguments"
        )
    return checkpoints


def probed(config: Config, outcome: Outcome, seconds: float | None) -> list[records.Record]:
    """Accuracy by every protocol, and how well actions are read; `seconds` is how long pretraining took, if known."""
    return evaluate.evaluate(evaluate.Arguments(outcome.checkpoint), seconds=seconds)


def one_run(
    config: Config, folder: Path, *, measure: Measure = probed, callbacks: Sequence[lightning.Callback] = ()
) -> list[records.Record]:
    """Pretrain and measure, as far as that is not done yet; `callbacks` look on while it trains."""
    resume, done = begun(config, folder), folder / DONE
    if done.is_file():
        return records.read(done)
    with going_on_by("the same command goes on"):
        outcome = pretrain(config, folder, resume=resume, callbacks=callbacks)
    found = measure(config, outcome, None if resume else outcome.seconds)  # a resumed run knows its last leg alone
    records.write(found, done)
    return found


def untrained(config: Config) -> tuple[object, ...]:
    """What the baselines of a configuration depend on: presets that share it share their baselines."""
    encoder = (config.arch, config.stem, config.width, config.initialisation)
    return (*encoder, config.data, config.limit, config.augmentation.size, config.seed)


def baselines(config: Config, folder: Path) -> list[records.Record]:
    """Raw pixels and the untrained encoder of this seed; measured again where other settings were."""
    done = folder / f"baselines-{config.preset}-seed{config.seed}.json"
    if done.is_file():
        found = records.read(done)
        wanted = to_plain(config)
        if all(record.settings.get(name) == wanted[name] for record in found for name in wanted if name != "root"):
            return found
    train, test = inputs.labelled_images(config)
    found = evaluate.baselines(config, train, test, PROTOCOLS)
    records.write(found, done)
    return found


def show_differences(found: Sequence[records.Record]) -> None:
    """Print by how much each method differs from the first, where there are several."""
    title, header, rows = paired(found)
    if rows:
        table(header, rows, title=title)


def main(argv: list[str]) -> None:
    """Run the command line; ValueError for a user's mistake."""
    arguments = parse(argv, argv[0] if argv and argv[0] in PRESETS else "quickstart")
    check_seeds(arguments.seeds)
    if not arguments.presets or len(set(arguments.presets)) < len(arguments.presets):
        raise ValueError(f"presets are {', '.join(arguments.presets) or 'none'}; name one or more, each once")
    if arguments.out:
        check_writable(arguments.out.parent)
    configs = {(seed, name): configure(argv, name, seed) for seed in arguments.seeds for name in arguments.presets}
    said: dict[str, None] = {}  # each line once, in their order
    for place, config in configs.items():  # mistakes that would show only when a run begins
        check_schedule(config)
        if arguments.holdout is not None:
            config, line = hold_out(config, arguments.holdout, arguments.runs)
            said[line] = None
        configs[place], notes = settled(config, typed=typed_names(argv))
        said |= dict.fromkeys(notes)
    for config in {(c.data, c.root, c.limit): c for c in configs.values()}.values():
        inputs.labelled_sources(config)  # which probes need: better asked before hours of training
    for line in said:
        say(line)
    found: list[records.Record] = []
    number = 0
    for seed in arguments.seeds:
        of = {name: configs[seed, name] for name in arguments.presets}
        for name, config in of.items():
            folder = arguments.runs / f"{name}-seed{seed}"
            number += 1
            if not (folder / DONE).is_file():
                say(f"run {number} of {len(configs)}: {name}, seed {seed}")
            found += one_run(config, folder)
        for config in {untrained(config): config for config in reversed(of.values())}.values():
            found += baselines(config, arguments.runs)
    if arguments.markdown:
        print(tables.markdown(found, paired(found)))
    else:
        table(*tight(*tables.accuracies(found)), title=SPREAD)
        show_differences(found)
    if arguments.out:
        if arguments.out.suffix == ".md":
            arguments.out.write_text(tables.markdown(found, paired(found)) + "\n")
        else:
            records.write(found, arguments.out)
        say(f"written to {arguments.out}")


if __name__ == "__main__":
    command(lambda: main(sys.argv[1:]), RuntimeError, interrupted=GO_ON)
