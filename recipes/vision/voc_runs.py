"""What detection and segmentation share around training: encoders from the command line, splits, runs and records."""

import dataclasses
import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import tyro
from safetensors.torch import load_file
from torch import Tensor, nn

from recipes import records
from recipes.run import check_writable, plain
from recipes.terminal import say, table
from recipes.vision import networks
from recipes.vision.config import method
from recipes.vision.finetune_loop import write_settings
from recipes.vision.run import from_plain, to_plain
from recipes.vision.voc_schedule import Schedule
from stec.core.checkpoints import load_checkpoint, load_weights
from stec.vision.encoders import load_torchvision, resnet18, resnet50
from stec.vision.voc_layout import Part


@dataclasses.dataclass(frozen=True)
class Encoders:
    """Which encoders to begin from; all of them are trained with the same budget."""

    checkpoint: tuple[Path, ...] = ()  # files of pretraining runs' checkpoints folders
    weights: tuple[Path, ...] = ()  # safetensors with torchvision's keys, of the architecture below
    random: bool = False  # an untrained encoder too: of the first checkpoint's architecture, or of the one below
    arch: Literal["resnet18", "resnet50"] = "resnet50"
    stem: Literal["cifar", "stl", "imagenet"] = "imagenet"
    width: int = 64


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What every transfer takes beside its settings."""

    schedule: tyro.conf.OmitArgPrefixes[Schedule]
    encoders: tyro.conf.OmitArgPrefixes[Encoders] = Encoders()
    root: Path | None = None  # the folder that the splits lie below
    seeds: tuple[int, ...] = (0,)
    out: Path | None = None  # a folder for all runs; runs/TASK-PRESET by default
    resume: bool = False  # keep finished runs and go on with interrupted ones


class Source(NamedTuple):
    """An encoder to begin from: the name of its run folders, that of its records, and a new one for each seed."""

    name: str
    method: str
    settings: dict[str, Any]
    build: Callable[[int], nn.Module]


def sources(encoders: Encoders) -> list[Source]:
    """The encoders that were asked for, their files read. ValueError where there is none, or a file does not fit."""
    found = [_from_checkpoint(path) for path in encoders.checkpoint]
    build = {"resnet18": resnet18, "resnet50": resnet50}[encoders.arch]
    shape = {"arch": encoders.arch, "stem": encoders.stem, "width": encoders.width}

    def plain_encoder(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return build(encoders.stem, width=encoders.width)

    for path in encoders.weights:
        encoder = plain_encoder(0)
        try:
            load_torchvision(encoder, _read_safetensors(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        known = {**shape, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        found.append(Source(path.stem, path.stem, known, lambda seed, encoder=encoder: encoder))  # type: ignore[misc]
    if encoders.random:
        found.append(_untrained(encoders.checkpoint[0]) if encoders.checkpoint else _named(shape, plain_encoder))
    if not found:
        raise ValueError("no encoder to begin from; give --checkpoint FILE, --weights FILE or --random")
    names = [source.name for source in found]
    if len(set(names)) < len(names):
        raise ValueError(f"two encoders have one name ({', '.join(names)}); rename a run's folder, or run them apart")
    return found


def _named(settings: dict[str, Any], build: Callable[[int], nn.Module]) -> Source:
    return Source("untrained", "untrained encoder", settings, build)


def _read_checkpoint(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """A run's configuration and its encoder's weights; nothing in the file is run."""
    checkpoint = load_checkpoint(path)
    if "image_size" not in checkpoint.record:
        raise ValueError(f"{path} is no checkpoint of images; give one of recipes.vision.pretrain")
    return from_plain(checkpoint.record["config"], None), checkpoint.part("encoder")


def _from_checkpoint(path: Path) -> Source:
    config, weights = _read_checkpoint(path)
    encoder = networks.encoder(config)
    load_weights(encoder, weights, source=path)
    run = path.resolve().parent.parent.name
    digest = hashlib.sha256(path.read_bytes()).hexdigest()  # tells files of one name, and epochs of one run, apart
    settings = {**_shape(config), "sha256": digest, "pretraining": to_plain(config)}
    return Source(run, method(config), settings, lambda seed: encoder)


def _untrained(path: Path) -> Source:
    """An encoder as pretraining began with: of the same architecture and initialisation."""
    config, _ = _read_checkpoint(path)

    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return networks.encoder(config)

    return _named({**_shape(config), "initialisation": config.initialisation}, build)


def _shape(config: Any) -> dict[str, Any]:
    return {"arch": config.arch, "stem": config.stem, "width": config.width}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError("there is no such file")
    try:
        return load_file(path)
    except Exception as error:  # SafetensorError, or whatever a damaged header gives
        raise ValueError(
            f"it is no safetensors file ({error}); stec.core.checkpoints.export_weights writes them"
        ) from error


def need_metrics() -> None:
    """ValueError, before hours are spent, where the libraries that measure are missing."""
    missing = [name for name in ("torchmetrics", "pycocotools") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f'{" and ".join(missing)} missing; pip install "stec[transfer]"')


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


def _differences(there: Any, here: Any, name: str = "") -> list[str]:
    """Where settings differ, part by part: "encoder.width 4 there, 8 here". What only `there` knows is passed over."""
    if isinstance(there, dict) and isinstance(here, dict):
        parts = [_differences(there.get(key), value, f"{name}.{key}".strip(".")) for key, value in here.items()]
        return [line for part in parts for line in part]
    return [] if there == here else [f"{name} {there} there, {here} here"]


def _finished(folder: Path, settings: Mapping[str, Any], data: str) -> list[records.Record]:
    """The record of a finished run, if there is one. ValueError where its settings, encoder or data are others."""
    if not (done := folder / "results.json").is_file():
        return []
    (record,) = records.read(done)
    if other := _differences({**record.settings, "data": record.data}, {**plain(dict(settings)), "data": data}):
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
