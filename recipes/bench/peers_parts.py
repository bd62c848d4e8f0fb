"""What is compared with what: the parts of `recipes.bench.peers`, and the arms of each, the reference first."""

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from recipes.bench.peers_process import Arm
from recipes.bench.peers_views import law_of
from recipes.ranks import cores
from stec.vision.views import Augmentation

REFERENCE = "stec"
LARGEST = 4e9  # bytes that a loss may hold by its own arithmetic; one that needs more is left out
LIBRARIES = {"lightly": "lightly", "kornia": "kornia", "pytorch-metric-learning": "pytorch_metric_learning"}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    parts: tuple[Literal["views", "step", "loss", "speech"], ...] = ("views", "step", "loss", "speech")
    arms: tuple[str, ...] = ()  # these alone, such as lightly, torchvision, kornia; all by default
    folder_32: Path | None = None  # a folder of images of 32 pixels, for views and steps; rendered ones without
    folder_96: Path | None = None  # of 96 pixels, for views
    compiled: bool = False  # also our views compiled, and speech's default settings with their compilation
    rounds: int = 3  # samples of each arm
    seconds: float = 1.0  # that a sample lasts at least
    batch: int = 128  # pairs of views, in views and steps
    precisions: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")  # of the step
    workers: int | None = None  # of the step's loaders of images; 0 on a CPU, all cores but one with a GPU
    pairs: tuple[int, ...] = (128, 4096)  # of the loss
    keep: bool = False  # let every arm of steps and speech keep freed memory on a CPU, as ours do (stec.core.memory)
    others: float = 0.15  # cores that others may use during a sample
    patience: float = 120.0  # seconds that waiting and samples thrown away may take in all
    quick: bool = False  # few and small, in place of the numbers above: to see that it runs, not to measure
    out: Path | None = None  # a file of records


class Part(NamedTuple):
    """Arms that do the same work."""

    name: str
    arms: list[Arm]
    unit: str  # what a piece of work holds
    one_core: bool = False  # counted in seconds of one processor, not of the clock
    memory: bool = True  # whether peaks are compared
    law: Augmentation | None = None  # of the views that the arms make
    size: int = 0  # of those views, pixels
    probes: int = 0  # images that the laws are checked on
    left_out: tuple[str, ...] = ()  # what was, and why


def arm(name: str, build: str, threads: int, **settings: Any) -> Arm:
    """An arm by its name, which tells the library that it needs."""
    needs = (LIBRARIES[name],) if name in LIBRARIES else ()
    return Arm(name, f"recipes.bench.{build}", {"arm": name, **settings}, threads, needs)


def views(arguments: Arguments) -> list[Part]:
    """The making of two views, on one thread."""
    probes = 64 if arguments.quick else 256
    names = ["stec", *(["stec-compiled"] if arguments.compiled else []), "released", "torchvision", "lightly", "kornia"]
    parts = []
    for size, folder in ((32, arguments.folder_32), (96, arguments.folder_96)):
        settings = {"size": size, "folder": _path(folder), "batch": arguments.batch, "probes": probes}
        arms = [arm(name, "peers_views:ViewsWork", 1, **settings) for name in names]
        law = law_of(size)
        name = f"views {size} px" + (", blur and solarise" if law.p_solarise else "")
        parts.append(Part(name, arms, "pairs", one_core=True, memory=False, law=law, size=size, probes=probes))
    return parts


def step(arguments: Arguments) -> list[Part]:
    """A training step, on all cores."""
    workers = arguments.workers
    if workers is None:
        workers = max(1, cores() - 1) if torch.cuda.is_available() else 0
    probes = 64 if arguments.quick else 256
    parts = []
    for precision in arguments.precisions:
        settings = {
            "precision": precision,
            "batch": arguments.batch,
            "folder": _path(arguments.folder_32),
            "workers": workers,
            "probes": probes,
        }
        names = ["stec", "stec-actions", "torchvision", "lightly", "kornia"]
        arms = [arm(name, "peers_step:StepWork", cores(), **settings, keep=_keep(name, arguments)) for name in names]
        parts.append(Part(f"step {precision}", arms, "pairs", law=law_of(32), size=32, probes=probes))
    return parts


def _keep(name: str, arguments: Arguments) -> bool:
    return arguments.keep or name.startswith("stec")


def loss(arguments: Arguments) -> list[Part]:
    """NT-Xent, on all cores."""
    parts = []
    for pairs in arguments.pairs:
        needed = metric_learning_bytes(pairs)
        names, left_out = ["stec", "torch", "lightly", "pytorch-metric-learning"], ()
        if needed > LARGEST:
            names.remove("pytorch-metric-learning")
            left_out = (  # type: ignore[assignment]
                f"pytorch-metric-learning is left out of the loss of {pairs:,} pairs: it holds every positive beside "
                f"every negative, {needed / 1e9:,.0f} GB at least",
            )
        arms = [arm(name, "peers_loss:LossWork", cores(), pairs=pairs, features=128) for name in names]
        parts.append(Part(f"NT-Xent of {pairs:,} pairs", arms, "pairs", left_out=left_out))
    return parts


def metric_learning_bytes(pairs: int) -> int:
    """What pytorch-metric-learning's NT-Xent holds at least, in float32: every positive beside every negative.

    >>> metric_learning_bytes(4096) / 1e12  # TB
    2.19848638464
    """
    return 4 * (2 * pairs) * (2 * pairs * (2 * pairs - 2))


def speech(arguments: Arguments) -> list[Part]:
    """A training step of CPC, on all cores."""
    small = {"batch": 2, "window": 3200, "channels": 32} if arguments.quick else {}
    settings = {"batch": 8, "window": 20_480, "channels": 512, "compiled": arguments.compiled, **small}
    names = ["stec", "stec-default", "greedy-infomax"]
    arms = [arm(name, "peers_speech:SpeechWork", cores(), **settings, keep=_keep(name, arguments)) for name in names]
    return [Part("speech step", arms, "windows")]


OF = {"views": views, "step": step, "loss": loss, "speech": speech}


def parts_of(arguments: Arguments) -> list[Part]:
    """All that is asked for. ValueError for numbers that measure nothing, and arms that there are not."""
    for name, least in (("rounds", 1), ("batch", 2), ("seconds", 0), ("others", 0), ("patience", 0)):
        if getattr(arguments, name) < least:
            raise ValueError(f"{name} is {getattr(arguments, name)}; need at least {least}")
    if not arguments.parts or not arguments.precisions or min(arguments.pairs, default=0) < 2:
        raise ValueError("there is nothing to measure: give --parts and --precisions one or more, --pairs 2 or more")
    parts = [part for name in dict.fromkeys(arguments.parts) for part in OF[name](arguments)]
    if not arguments.arms:
        return parts
    known = dict.fromkeys(arm.name for part in parts for arm in part.arms)
    if unknown := [name for name in arguments.arms if name not in known]:
        raise ValueError(f"no arm is called {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = {REFERENCE, *arguments.arms}
    few = [part._replace(arms=[arm for arm in part.arms if arm.name in chosen]) for part in parts]
    return [part for part in few if len(part.arms) > 1]


def check_installed(arms: Sequence[Arm]) -> None:
    """ValueError names the libraries that are missing, and how to get them."""
    needed = dict.fromkeys(module for one in arms for module in one.needs)
    missing = [module for module in needed if importlib.util.find_spec(module) is None]
    if missing:
        raise ValueError(
            f'not installed: {", ".join(missing)}; pip install -e ".[peers]" in the clone of stec, '
            "or name the arms to measure (--arms)"
        )


def _path(folder: Path | None) -> str | None:
    return None if folder is None else str(folder.expanduser())
