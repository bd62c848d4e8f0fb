"""What detection and segmentation share around training: encoders from the command line, splits, runs and records."""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from recipes import records
from recipes.differing import differing
from recipes.run_folder import check_writable, plain
from recipes.terminal import say, table
from recipes.vision.finetune_loop import write_settings
from recipes.vision.voc_encoders import Encoders, Source
from recipes.vision.voc_schedule import Schedule
from stec.vision.voc_layout import Part


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What every transfer takes beside its settings."""

    schedule: tyro.conf.OmitArgPrefixes[Schedule]
    encoders: tyro.conf.OmitArgPrefixes[Encoders] = Encoders()
    root: Path | None = None  # the folder that the splits lie below
    seeds: tuple[int, ...] = (0,)
    out: Path | None = None  # a folder for all runs; runs/TASK-PRESET by default
    resume: bool = False  # keep finished runs and go on with interrupted ones


def need_metrics() -> None:
    """ValueError, before hours are spent, where the libraries that measure are missing."""
    missing = [name for name in ("torchmetrics", "pycocotools") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f'{" and ".join(missing)} missing; pip install -e ".[transfer]" in the clone of stec')


def parts(root: Path | None, splits: Sequence[str]) -> list[Part]:
    """VOC2007/trainval is the split trainval of the folder VOC2007 below `root`; "all" is whatever is annotated.

    >>> parts(Path("data"), ["VOC2007/test"])[0].split
    'test'
    """
    if root is None:
        raise ValueError("give --root, the folder that the splits lie below")
    if not splits:
        raise ValueError("no split is named; give --train and --test")
    cut = [split.rstrip("/").rpartition("/") for split in splits]
    return [Part(root / folder, None if split == "all" else split) for folder, _, split in cut]


def check_apart(train: Sequence[Path], test: Sequence[Path]) -> None:
    """ValueError where an image is both trained and tested on."""
    both = sorted({path.resolve() for path in train} & {path.resolve() for path in test})
    if both:
        raise ValueError(f"{len(both)} images are trained and tested on, such as {both[0]}; name splits that differ")


def _finished(folder: Path, settings: Mapping[str, Any], data: str) -> list[records.Record]:
    """The record of a finished run, if there is one. ValueError where its settings, encoder or data are others."""
    if not (done := folder / "results.json").is_file():
        return []
    (record,) = records.read(done)
    if other := differing({**record.settings, "data": record.data}, {**plain(dict(settings)), "data": data}):
        raise ValueError(
            f"{folder} holds a run with other settings: {'; '.join(other)}; give the same, or another --out"
        )
    return [record]


def run_all(
    arguments: Arguments,
    settings: Mapping[str, Any],
    found: Sequence[Source],
    one: Callable[[Source, int, Path, dict[str, Any]], tuple[list[records.Result], float]],
    *,
    task: str,
    preset: str,
) -> list[records.Record]:
    """`one(source, seed, folder, settings)` for each encoder and seed, as records, also in results.json of `out`.

    ValueError before the first where a folder holds a run and `resume` was not asked for, or holds another, finished.
    """
    out = arguments.out or Path("runs") / f"{task}-{preset}"
    check_writable(out)
    data = arguments.root.resolve().name if arguments.root else ""
    plan = [
        (source, seed, out / f"{source.name}-seed{seed}", {**settings, "encoder": source.settings, "seed": seed})
        for seed in arguments.seeds
        for source in found
    ]
    begun = [folder for _, _, folder, _ in plan if any((folder / "checkpoints").glob("*.ckpt"))]
    if begun and not arguments.resume:
        raise ValueError(f"{begun[0]} holds a run already; go on with --resume, or choose another --out")
    finished = {folder: _finished(folder, mine, data) for _, _, folder, mine in plan if arguments.resume}
    done: list[records.Record] = []
    for source, seed, folder, mine in plan:
        if finished.get(folder):
            done += finished[folder]
            say(f"{folder.name} is finished")
            continue
        if folder not in begun:
            assert arguments.root is not None
            write_settings(folder, mine, arguments.root)
        results, seconds = one(source, seed, folder, mine)
        record = records.record(
            method=source.method,
            preset=preset,
            data=data,
            seed=seed,
            seconds=seconds,
            results=results,
            settings={**mine, "resumed": folder in begun},
            stage=task,
        )
        records.write([record], folder / "results.json")
        done.append(record)
    records.write(done, out / "results.json")
    rows = [[r.method, str(r.seed), *(f"{100 * x.value:.1f}" for x in r.results)] for r in done]
    table(["", "seed", *(result.metric for result in done[0].results)], rows, title=f"{task}, %")
    say(f"written to {out / 'results.json'}")
    return done


def read_command(
    argv: list[str], presets: Mapping[str, Any], arguments: Callable[..., Any], *, task: str, doc: str
) -> Any:
    """The arguments of `PRESET [--field value ...]`; None where the line only asks what there is."""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{doc}\nPresets: {', '.join(presets)}")
        return None
    if argv[0] not in presets:
        raise ValueError(f"no preset {argv[0]!r}; there are {', '.join(presets)}")
    prog = f"python -m recipes.vision.{task} {argv[0]}"
    return tyro.cli(arguments, default=presets[argv[0]], args=argv[1:], prog=prog, description=doc)
