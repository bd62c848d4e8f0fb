"""Take over a checkpoint of the authors' released code: python -m recipes.vision.import_official FILE.ckpt --out DIR.

FILE is what that code (NeuromorphicComputing/S-TEC, PyTorch Lightning 1.5.9) saved; nothing in it is executed. DIR gets
encoder.safetensors, the encoder alone with torchvision's names and the file's values, and checkpoints/imported.ckpt, a
checkpoint of ours with all its heads, for recipes.vision.evaluate (--protocols online gives the accuracy of its online
head), recipes.vision.export and the rest. Sizes come from the weights, settings from what the file says of itself. A
table shows what is used beside what is said, and where the two differ.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from recipes.run_folder import check_writable
from recipes.terminal import command, say, table
from recipes.vision import networks
from recipes.vision.config import Config, Data, method
from recipes.vision.official_settings import PIXELS, Stem, claims, config_of, data_of, stem_of
from recipes.vision.run import build_learner
from stec.core.checkpoints import export_weights, load_weights, save_checkpoint
from stec.core.learner import Learner
from stec.vision.official import OfficialCheckpoint, read_official


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to read, where to write, and what the file alone may not tell."""

    file: tyro.conf.Positional[Path]
    out: Path  # a new folder
    stem: Stem | None = None  # told by the weights, but for 7x7 with (imagenet) or without (stl) pooling
    data: Data | None = None  # what it was trained on, where the file does not tell
    skip_foreign: bool = False  # read a file that names unknown classes or functions; they are left out, and never run
    encoder_only: bool = False  # write encoder.safetensors alone, such as from a file without the heads


class Imported(NamedTuple):
    """What was read, and where it lies now."""

    official: OfficialCheckpoint
    config: Config
    encoder: Path
    checkpoint: Path | None  # None with --encoder-only


def learner_of(official: OfficialCheckpoint, config: Config, path: Path) -> Learner:
    """Our networks with the weights of the file. ValueError where parts are missing or do not fit together."""
    if official.projector is None:
        raise ValueError(f"{path} has no projection; --encoder-only reads the encoder alone")
    size = PIXELS[config.stem]
    learner = build_learner(config, (size, size), official.sizes.classes or 0, batches=None, trainable=False)
    models: Any = learner.objective.models
    load_weights(learner.encoder, official.encoder, source=f"{path}, encoder,")
    load_weights(models["identity"].projector, official.projector, source=f"{path}, projection,")
    if "manipulation" in models and official.manipulation is not None:
        load_weights(models["manipulation"].head, official.manipulation, source=f"{path}, binned_prediction_model,")
    if learner.probe is not None and official.probe is not None:
        load_weights(learner.probe, official.probe, source=f"{path}, supervised_head,")
    return learner


def import_official(arguments: Arguments) -> Imported:
    """Read and write. ValueError for a file that is torn, foreign or incomplete, or a folder that holds a run."""
    path, out = arguments.file, arguments.out
    if (out / "checkpoints").exists() or (out / "encoder.safetensors").exists():
        raise ValueError(f"{out} holds a run or an encoder already; choose another --out")
    official = read_official(path, skip_foreign=arguments.skip_foreign, encoder_only=arguments.encoder_only)
    says = official.hyper_parameters
    stem = stem_of(official.sizes, says, arguments.stem)
    config = config_of(official, stem, arguments.data or data_of(official.sizes, stem, says))
    encoder, checkpoint, learner = out / "encoder.safetensors", None, None
    if arguments.encoder_only:
        load_weights(networks.encoder(config), official.encoder, source=f"{path}, encoder,")
    else:
        learner = learner_of(official, config, path)
    check_writable(out)
    built = {"arch": config.arch, "stem": config.stem, "width": str(config.width)}
    export_weights(official.encoder, encoder, metadata={**built, "imported_sha256": official.sha256})
    if learner is not None:
        checkpoint = out / "checkpoints" / "imported.ckpt"
        origin = {"file": path.name, "sha256": official.sha256, "hyper_parameters": says}
        record = {**learner.record, "imported": origin}
        save_checkpoint(checkpoint, learner.state_dict(), record, step=official.step)
    return Imported(official, config, encoder, checkpoint)


def show(imported: Imported) -> None:
    """What the file holds, and where it went, for a person."""
    official, config = imported.official, imported.config
    parts = {
        "encoder": official.encoder,
        "projection": official.projector,
        "binned_prediction_model": official.manipulation,
        "supervised_head": official.probe,
    }
    rows = [(name, f"{sum(value.numel() for value in of.values()):,}" if of else "none") for name, of in parts.items()]
    table(["part", "numbers"], rows, title=f"{method(config)}, nearest preset {config.preset}")
    found = claims(official, config)
    compared = [(c.what, _text(c.used), _text(c.said), "differs" if c.differs else "") for c in found]
    table(["", "used", "hyper_parameters", ""], compared, title="what is used, what the file says")
    keys = {claim.key for claim in found}
    _say_all("hyper_parameters besides", {k: v for k, v in official.hyper_parameters.items() if k not in keys})
    _say_all("the file besides", official.says)
    if official.left_out:
        say(f"left out, since nothing of ours stands for it: {_text(', '.join(official.left_out))}")
    if any(name.startswith("encoder.fc.") for name in official.left_out):
        say("encoder.fc is a classifier that the released code builds and never uses: no gradient has reached it")
    if official.manipulation is not None and config.lambda_manip == 0:
        say("left out: binned_prediction_model, which manip_lambda 0 never trained; this is SimCLR")
    if official.foreign:
        say(f"passed over and never run: {_text(', '.join(official.foreign))}")
    say(f"written: {_text(imported.encoder)}, with torchvision's names and without fc, values unchanged")
    if imported.checkpoint:
        where = _text(imported.checkpoint)
        say(f"written: {where}. Now:")
        say(f"python -m recipes.vision.evaluate --checkpoint {where} --root FOLDER --protocols online")


def _text(value: object) -> str:
    """What the file says, as text that a terminal shows and does not obey."""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else "?" for c in text[:1000])


def _say_all(title: str, values: dict[str, Any]) -> None:
    say(f"{title}: " + (", ".join(f"{_text(name)} {_text(value)}" for name, value in values.items()) or "nothing"))


def main() -> None:
    """The command line."""
    arguments = tyro.cli(Arguments, prog="python -m recipes.vision.import_official", description=__doc__)
    show(import_official(arguments))


if __name__ == "__main__":
    command(main)
