"""Probes on the simulated accelerator, as a program: everything that they move is moved, and nothing else differs.

Encoders of images and of speech are trained on the CPU for a few steps, then probed there and on the simulated device,
which may wait. Prints a line of JSON with both values for each number; `images` or `speech` does one of the two.
"""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from accelerator import DEVICE, Simulation, allowed_to_wait
from tones import make_speech, tiny

from recipes import records
from recipes.audio import measure as speech_measure
from recipes.audio import phones, speakers
from recipes.audio.run import pretrain as pretrain_speech
from recipes.vision import evaluate, measure, regression
from recipes.vision.inputs import labelled_images
from recipes.vision.presets import preset
from recipes.vision.run import pretrain
from stec.vision.data import ImageSet

Work = Callable[[], list[records.Record]]


def both(work: Work, module: ModuleType) -> Iterator[dict[str, Any]]:
    """Each number from the CPU and from the device."""
    host = work()
    kept = module.device
    module.device = lambda: DEVICE  # type: ignore[attr-defined]
    with Simulation() as simulation, allowed_to_wait():
        device = work()
    module.device = kept  # type: ignore[attr-defined]
    for one, other in zip(host, device, strict=True):
        for x, y in zip(one.results, other.results, strict=True):
            name = f"{one.method}, {x.metric}, {x.protocol}"
            yield {"case": name, "host": x.value, "device": y.value, "launches": len(simulation.launches)}


def images(folder: Path) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in range(3):
            (folder / split / str(label)).mkdir(parents=True)
            for i in range(12):
                pixels = rng.integers(40 * label, 160 + 40 * label, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / str(label) / f"{i}.png")
    config = dataclasses.replace(
        preset("tiny-stec"),
        root=folder,
        limit=None,
        batch_size=18,
        epochs=2,
        width=4,
        projection_hidden=16,
        projection_out=16,
        manipulation_hidden=16,
        warmup_epochs=0,
    )
    run = pretrain(config, folder / "run", quiet=True)
    task = evaluate.Arguments(run.checkpoint, protocols=("online", "linear", "logistic", "knn"), baselines=True)
    yield from both(lambda: evaluate.evaluate(task), measure)
    regressed = dataclasses.replace(config, manipulation="regressed")
    learner = pretrain(regressed, folder / "regressed", quiet=True).learner
    test = labelled_images(regressed)[1].images
    assert isinstance(test, ImageSet)

    def read() -> list[records.Record]:
        found = regression.read_regression(learner, regressed, test)
        return [dataclasses.replace(evaluate.evaluate(task)[-1], method="regressed", results=found)]

    yield from both(read, regression)


def speech(folder: Path) -> Iterator[dict[str, Any]]:
    made = make_speech(folder)
    run = pretrain_speech(tiny(made), folder / "run", quiet=True)
    read = phones.Arguments(
        run.checkpoint, made.cache, made.labels, made.train, made.test, hidden=(16,), baselines=True
    )
    yield from both(lambda: phones.evaluate(read), speech_measure)
    who = speakers.Arguments(run.checkpoint, made.cache, baselines=True, folds=2)
    yield from both(lambda: speakers.evaluate(who), speech_measure)


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for work in (images, speech):
            if names and work.__name__ not in names:
                continue
            (Path(folder) / work.__name__).mkdir()
            for found in work(Path(folder) / work.__name__):
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
