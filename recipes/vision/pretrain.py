"""Pretrain an encoder on images: python -m recipes.vision.pretrain PRESET [--batch-size 512 --root FOLDER ...].

  python -m recipes.vision.pretrain --list                      every preset, a line each
  python -m recipes.vision.pretrain quickstart --help           what can be overridden, with the preset's values
  python -m recipes.vision.pretrain cifar10-resnet18-stec --root data --out runs/c10
  python -m recipes.vision.pretrain --resume runs/c10           go on after an interruption

A run folder holds config.json, logs/ (metrics.csv, TensorBoard), checkpoints/ and, at the end, results.json.
"""

import dataclasses
import sys
from pathlib import Path

import tyro
from lightning.pytorch.utilities import rank_zero_only

from recipes import records
from recipes.progress import say
from recipes.vision.presets import PRESETS, Config, method, preset
from recipes.vision.run import Outcome, pretrain, read_config, record_of


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What `pretrain PRESET` takes."""

    config: tyro.conf.OmitArgPrefixes[Config]
    out: Path | None = None  # the run's folder; runs/PRESET-seedN by default


def listing() -> str:
    """Every preset with what distinguishes it."""
    lines = []
    for name, config in PRESETS.items():
        where = "no download" if config.data == "rendered" else f"{config.data}, --root"
        lines.append(f"  {name:34s}{method(config):18s}{config.arch} x{config.width}, {config.epochs} epochs ({where})")
    return "\n".join(lines)


def main(argv: list[str]) -> Outcome | None:
    """Run the command line; ValueError for a user's mistake."""
    if argv and argv[0] == "--resume":
        if len(argv) != 2:
            raise ValueError("--resume takes the run's folder and nothing else: its settings are in the folder")
        folder = Path(argv[1])
        config, resume = read_config(folder), True
    elif not argv or argv[0] in ("-h", "--help", "--list"):
        print(__doc__ if argv != ["--list"] else "")
        print("Presets:\n" + listing())
        return None
    else:
        default = preset(argv[0])
        arguments = tyro.cli(
            Arguments,
            default=Arguments(default),
            args=argv[1:],
            prog=f"python -m recipes.vision.pretrain {argv[0]}",
            description=f"Pretrain with preset {argv[0]}: {method(default)}. Every field can be overridden. "
            "In the texts below, code: what the authors' released code fixes.",
        )
        config, resume = arguments.config, False
        folder = arguments.out or Path("runs") / f"{config.preset}-seed{config.seed}"
    outcome = pretrain(config, folder, resume=resume)
    if getattr(rank_zero_only, "rank", 0) != 0:
        return outcome
    if not outcome.learner.last:
        say(f"this run was finished already. Now: python -m recipes.vision.evaluate --checkpoint {outcome.checkpoint}")
        return outcome
    results = [
        records.Result("accuracy", round(value, 4), "online")
        if name == "online"
        else records.Result(name, round(value, 4), "training", {"unit": "nats"})
        for name, value in outcome.learner.last.items()
    ]
    records.update(
        [record_of(config, results, seconds=outcome.seconds, stage="pretrain", resumed=resume)],
        folder / "results.json",
    )
    say(f"{outcome.seconds:.0f} s. Now: python -m recipes.vision.evaluate --checkpoint {outcome.checkpoint}")
    return outcome


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, RuntimeError) as mistake:
        sys.exit(f"error: {mistake}")
    except KeyboardInterrupt as interruption:
        sys.exit(str(interruption) or "interrupted before the first step")
