"""Compare presets over seeds at one budget: python -m recipes.vision.compare small-simclr small-stec --root FOLDER ...

Pretrains every preset with every seed, probes each, and the two baselines (raw pixels, untrained encoder), and writes
one file of records for recipes/results. Finished runs are kept and interrupted ones taken up, so the same command
goes on after an interruption, and several processes may share the work by their seeds.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning
import tyro

from recipes import records
from recipes.results.table import markdown
from recipes.run import Outcome
from recipes.run_folder import check_writable
from recipes.stopping import Stopped
from recipes.terminal import command, say
from recipes.vision import evaluate, inputs
from recipes.vision.measure import PROTOCOLS
from recipes.vision.presets import Config, preset
from recipes.vision.run import pretrain, read_config, to_plain

# In a run's folder: it is trained and measured as here. Other commands write their numbers into results.json.
DONE = "measured.json"
GO_ON = "interrupted; the same command goes on"
Measure = Callable[[Config, Outcome, float | None], list[records.Record]]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which presets, which seeds, on which data, for how long."""

    presets: tyro.conf.Positional[tuple[str, ...]]
    seeds: tuple[int, ...] = (0, 1, 2)
    root: Path | None = None  # where the data lie
    epochs: int | None = None  # the presets' own by default
    limit: int | None = None  # training images; the presets' own by default
    runs: Path = Path("runs/compare")  # the run folders
    out: Path | None = None  # the file of records


def configure(arguments: Arguments, name: str, seed: int) -> Config:
    """A preset with the arguments' overrides."""
    config = preset(name)
    epochs = arguments.epochs or config.epochs
    return dataclasses.replace(
        config,
        seed=seed,
        root=arguments.root,
        epochs=epochs,
        warmup_epochs=min(config.warmup_epochs, epochs - 1),  # it ends before they do
        limit=arguments.limit or config.limit,
    )


def begun(config: Config, folder: Path) -> bool:
    """Whether the folder holds checkpoints of this run. ValueError where it holds a run with other settings."""
    if not (folder / "config.json").is_file():
        return False
    there, here = (dataclasses.replace(c, root=c.root and c.root.resolve()) for c in (read_config(folder), config))
    checkpoints = any((folder / "checkpoints").glob("*.ckpt"))
    if there != here and (checkpoints or (folder / DONE).is_file()):
        fields = [field.name for field in dataclasses.fields(Config)]
        other = [
            f"{field} {getattr(there, field)} there, {getattr(here, field)} here"
            for field in fields
            if getattr(there, field) != getattr(here, field)
        ]
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
    try:
        outcome = pretrain(config, folder, resume=resume, callbacks=callbacks)
    except Stopped:
        say(GO_ON)
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(GO_ON) from None
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
        if all(record.settings.get(name) == wanted[name] for record in found for name in wanted):
            return found
    train, test = inputs.labelled_images(config)
    found = evaluate.baselines(config, train, test, PROTOCOLS)
    records.write(found, done)
    return found


def main() -> None:
    """The command line."""
    arguments = tyro.cli(Arguments, prog="python -m recipes.vision.compare", description=__doc__)
    if arguments.out:
        check_writable(arguments.out.parent)
    found: list[records.Record] = []
    for seed in arguments.seeds:
        for name in arguments.presets:
            config = configure(arguments, name, seed)
            found += one_run(config, arguments.runs / f"{name}-seed{seed}")
        configs = [configure(arguments, name, seed) for name in arguments.presets]
        for config in {untrained(config): config for config in reversed(configs)}.values():
            found += baselines(config, arguments.runs)
    if arguments.out:
        records.write(found, arguments.out)
        say(f"written to {arguments.out}")
    print(markdown(found))


if __name__ == "__main__":
    command(main, RuntimeError, interrupted=GO_ON)
