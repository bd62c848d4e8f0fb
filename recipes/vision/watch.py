"""What becomes of features while an encoder learns: rank, spread and neighbours, measured on plain images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning

from recipes.vision import inputs
from recipes.vision.config import Config
from recipes.vision.measure import plain_batches
from stec.core.diagnostics import effective_rank, feature_std
from stec.core.learner import Learner
from stec.core.probe import extract, knn_accuracy

CURVE = "curve.jsonl"  # in a run's folder: a line for each measurement
NEIGHBOURS = 20  # a tenth of a class, of 2,000 images of ten classes


class Watch(lightning.Callback):
    """Measures the features of plain images before training and after every epoch, a line of `path` each.

    Training is left as it is: nothing is drawn, and modules are in evaluation mode only meanwhile. A resumed run drops
    the lines after its checkpoint and goes on.
    """

    def __init__(self, path: Path, config: Config, images: Sequence[int]) -> None:
        self.path = path
        self.config = config
        self.images = list(images)
        self.train, self.test = some(config, *images)

    def on_train_start(self, trainer: lightning.Trainer, learner: lightning.LightningModule) -> None:
        # A run that begins anew may have other settings than the one that left a curve here.
        rows = [row for row in read_curve(self.path) if row["step"] <= trainer.global_step and trainer.global_step > 0]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if not any(row["step"] == trainer.global_step for row in rows):
            self._measure(trainer.current_epoch, trainer.global_step, learner)

    def on_train_epoch_end(self, trainer: lightning.Trainer, learner: lightning.LightningModule) -> None:
        self._measure(trainer.current_epoch + 1, trainer.global_step, learner)

    def _measure(self, epoch: int, step: int, learner: lightning.LightningModule) -> None:
        assert isinstance(learner, Learner)
        found = measured(learner, self.config, self.train, self.test)
        row = {"epoch": epoch, "step": step, "images": self.images, **found}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def measured(learner: Learner, config: Config, train: inputs.Inputs, test: inputs.Inputs) -> dict[str, float]:
    """Rank and spread of the features of the test images and of their projections, and accuracy by their neighbours."""
    where = learner.device  # of training: the encoder must stay there
    known, features = (extract(learner.encoder, plain_batches(s, config), device=where) for s in (train, test))
    nearest = knn_accuracy(*known, *features, k=NEIGHBOURS)
    projector: Any = learner.objective.models["identity"].projector
    z, _ = extract(projector, [features], device=where)
    return {
        "effective rank": round(float(effective_rank(features[0])), 3),
        "standard deviation": round(float(feature_std(features[0])), 5),
        "effective rank, projection": round(float(effective_rank(z)), 3),
        "standard deviation, projection": round(float(feature_std(z)), 5),
        "accuracy": round(nearest.accuracy, 4),
    }


def some(config: Config, train: int, test: int) -> tuple[inputs.Inputs, inputs.Inputs]:
    """At most so many labelled images of each split, classes balanced; the same on every call."""
    sources = inputs.labelled_sources(config)
    few = [images.subset(min(n, len(images)), seed=0) for images, n in zip(sources, (train, test))]
    return inputs.read(config, few[0]), inputs.read(config, few[1])


def read_curve(path: Path) -> list[dict[str, Any]]:
    """The lines of a curve; one that was torn by an interruption is no line."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
