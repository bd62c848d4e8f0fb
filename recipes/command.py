"""The command `pretrain PRESET`, whatever the modality: presets, overrides, --resume, the record at the end."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from recipes import records
from recipes.metrics import last_row
from recipes.presets import listing
from recipes.ranks import is_first
from recipes.run import Outcome
from recipes.run_folder import holds_checkpoints
from recipes.terminal import say


def as_given(arguments: Any, folder: Path, *, going_on: bool, typed: Sequence[str]) -> Any:
    """The settings as they were given."""
    return arguments.config


class Modality(NamedTuple):
    """What `pretrain` needs to know of images or of speech."""

    module: str  # such as "recipes.vision.pretrain"
    doc: str
    arguments: Callable[..., Any]  # a dataclass of `config`, `out`, `go_on` and `checkpoint_minutes`
    presets: Mapping[str, Any]
    line: Callable[[Any], str]  # what distinguishes a preset
    preset: Callable[[str], Any]
    method: Callable[[Any], str]
    read_config: Callable[[Path], Any]
    pretrain: Callable[..., Outcome]
    record_of: Callable[..., records.Record]
    sources: str  # what the words beside the defaults mean
    next_step: Callable[[Any, Path], str]  # what to do with a checkpoint of these settings
    settle: Callable[..., Any] = as_given  # the settings that the data let be, of the arguments and what was typed


def pretrain_command(argv: list[str], modality: Modality) -> Outcome | None:
    """Run the command line; ValueError for a user's mistake."""
    if argv and argv[0] == "--resume":
        if len(argv) != 2:
            raise ValueError("--resume takes the run's folder and nothing else: its settings are in the folder")
        folder = Path(argv[1])
        config, resume, minutes = modality.read_config(folder), True, None
    elif argv[:1] == ["--list"]:
        print(listing(modality.presets, modality.line, " ".join(argv[1:])))
        return None
    elif not argv or argv[0] in ("-h", "--help"):
        print(
            f"{modality.doc}\n{len(modality.presets)} presets: --list shows them by purpose, --list WORD some of them."
        )
        return None
    else:
        default = modality.preset(argv[0])
        arguments = tyro.cli(
            modality.arguments,
            default=modality.arguments(default),
            args=argv[1:],
            prog=f"python -m {modality.module} {argv[0]}",
            description=f"Pretrain with preset {argv[0]}: {modality.method(default)}. Every field can be overridden. "
            f"In the texts below, {modality.sources}.",
        )
        config, minutes = arguments.config, arguments.checkpoint_minutes
        folder = arguments.out or Path("runs") / f"{config.preset}-seed{config.seed}"
        resume = arguments.go_on and holds_checkpoints(folder)
        config = modality.settle(arguments, folder, going_on=resume, typed=typed_names(argv[1:]))
    outcome = modality.pretrain(config, folder, resume=resume, checkpoint_minutes=minutes)
    if not is_first():
        return outcome
    last: dict[str, float] = outcome.learner.last
    seconds: float | None = outcome.seconds
    if not last and not (folder / "results.json").is_file():  # it was killed between its end and its results
        last, seconds = last_row(folder / "logs" / "metrics.csv", outcome.learner.names), None
    if not last:
        say(f"this run was finished already. {modality.next_step(config, outcome.checkpoint)}")
        return outcome
    results = [
        records.Result("accuracy", round(value, 4), "online")
        if name == "online"
        else records.Result(name, round(value, 4), "training", {"unit": "nats"})
        for name, value in last.items()
    ]
    record = modality.record_of(config, results, seconds=seconds, stage="pretrain", resumed=resume)
    records.update([record], folder / "results.json")
    say(f"{outcome.seconds:.0f} s. {modality.next_step(config, outcome.checkpoint)}")
    return outcome


def typed_names(argv: Sequence[str]) -> tuple[str, ...]:
    """The settings that a command line names.

    >>> typed_names(["--batch-size", "64", "--width=4", "--augmentation.size", "48"])
    ('batch_size', 'width', 'augmentation.size')
    """
    return tuple(word[2:].split("=")[0].replace("-", "_") for word in argv if word.startswith("--"))
