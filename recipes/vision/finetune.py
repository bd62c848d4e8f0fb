"""Fine-tune an encoder on few labels: python -m recipes.vision.finetune --checkpoint RUN/checkpoints/FILE.ckpt.

For every share of the labels (1 % and 10 %, as many of each class) and every seed, the whole encoder and a new linear
classifier are trained on crops and flips of the labelled images ("finetune 1%"), BatchNorm in training mode, and tested
after the last epoch. On the same labels, for comparison: an untrained encoder of the same architecture trained in the
same way, and a linear layer and a logistic regression on the frozen features of both encoders ("linear 1%", "logistic
1%"). Images and labels are chosen by share and seed alone, so every checkpoint sees the same. Finished runs are kept
and interrupted ones taken up: the same command goes on.
"""

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Literal

import lightning
import tyro
from torch import Tensor, nn

from recipes import records
from recipes.differing import differing
from recipes.progress import EpochProgress
from recipes.results.cells import spread
from recipes.run import check_schedule, fit, quieten
from recipes.run_folder import check_writable, plain
from recipes.stopping import going_on_by
from recipes.terminal import CONSOLE, command, say, table
from recipes.vision import inputs, networks
from recipes.vision.config import Data, method
from recipes.vision.measure import device, frozen, plain_batches, probe
from recipes.vision.run import load_learner, loader, read_config, to_plain
from stec.core.batches import EpochBatches
from stec.core.checkpoints import load_weights
from stec.core.learner import Learner
from stec.core.probe import extract
from stec.vision.data import class_share
from stec.vision.finetune import fine_tuner, tuned
from stec.vision.views import CROP_FLIP, Augmentation

Start = Literal["pretrained", "untrained"]
DONE = "results.json"  # in the folder of a fit: it is trained and measured
GO_ON = "the same command goes on"
MIN_STEPS = 400  # chosen: 60 epochs of a hundred images would hardly move the weights


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to fine-tune, on which labels, for how long. Published: the protocol of Chen et al. (2020, B.5)."""

    checkpoint: Path  # a file of a run's checkpoints folder
    share: tuple[float, ...] = (0.01, 0.1)  # of the labels, as many of each class
    seeds: tuple[int, ...] = (0, 1, 2)  # of the choice of labels, the order, and the start of what is untrained
    from_scratch: bool = True  # also train an untrained encoder on the same labels
    root: Path | None = None  # where the labelled data lie; the run's own by default
    data: Data | None = None  # which data; the run's own by default
    limit: int | None = None  # training images of which the share is taken; the run's own by default
    epochs: int | None = None  # published: 60 on 1 %, 30 above; here as many more as 400 steps need, by default
    batch_size: int = 64  # published: 4096, more than a small set's share
    lr: float = 0.05  # at a batch of 256, in proportion to the batch (published)
    out: Path | None = None  # the folder of the runs; finetune-FILE in the run's folder by default


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """Everything that one run of fine-tuning depends on, and so what it must share with its checkpoint."""

    start: Start
    checkpoint: str  # a digest of the file
    share: float
    seed: int
    data: Data
    limit: int | None
    augmentation: Augmentation
    epochs: int
    batch_size: int
    lr: float  # of the first step
    checkpoint_every: int
    warmup_epochs: int = 0
    check_every: int = 10
    devices: int = 1


class Runs:
    """The runs of one command: one for each share, seed and start."""

    def __init__(self, arguments: Arguments) -> None:
        learner, config, record = load_learner(arguments.checkpoint)
        self.arguments = arguments
        self.digest = hashlib.sha256(arguments.checkpoint.read_bytes()).hexdigest()[:10]
        self.pretraining = to_plain(config)
        self.pretrained = learner.encoder.state_dict()
        folder, own = arguments.checkpoint.parent.parent, arguments.data in (None, config.data)
        root = arguments.root
        if root is None and own and (folder / "config.json").is_file():
            root = read_config(folder).root
        limit = arguments.limit or (config.limit if own else None)
        config = dataclasses.replace(config, root=root, data=arguments.data or config.data, limit=limit)
        self.config = inputs.at_size(config, record["image_size"])
        self.images, test = inputs.labelled_sources(self.config)
        with EpochProgress(reading="reading images") as progress:
            self.test = inputs.read(self.config, test, progress.reading)

    def encoder(self, start: Start, seed: int) -> nn.Module:
        """As it is before fine-tuning."""
        lightning.seed_everything(seed, verbose=False)
        encoder = networks.encoder(self.config)
        if start == "pretrained":
            load_weights(encoder, self.pretrained, source=self.arguments.checkpoint)
        return encoder

    def choose(self, share: float, seed: int) -> Tensor:
        """Which images' labels are used: a function of the data, the share and the seed, whatever the checkpoint."""
        return class_share(self.images.labels, share, classes=self.images.classes, seed=seed)

    def settings(self, share: float, seed: int, start: Start) -> FineTuning:
        """The settings of a run. ValueError where they make no sense."""
        n = len(self.choose(share, seed))
        batch, epochs = min(self.arguments.batch_size, n), self.arguments.epochs
        if batch < 2:
            raise ValueError(f"batch_size is {batch}; BatchNorm needs at least 2 images")
        if epochs is None:
            epochs = max(60 if share <= 0.01 else 30, math.ceil(MIN_STEPS / (n // batch)))
        settings = FineTuning(
            start=start,
            checkpoint=self.digest,
            share=share,
            seed=seed,
            data=self.config.data,
            limit=self.config.limit,
            augmentation=dataclasses.replace(CROP_FLIP, size=self.config.augmentation.size),
            epochs=epochs,
            batch_size=batch,
            lr=self.arguments.lr * batch / 256,
            checkpoint_every=max(1, epochs // 10),
        )
        check_schedule(settings)
        return settings

    def train(self, settings: FineTuning, images: inputs.Inputs, folder: Path, progress: EpochProgress) -> Learner:
        """To the end, from the start or from the last checkpoint of `folder`."""
        batches = EpochBatches(len(images.images), batch_size=settings.batch_size, seed=settings.seed)
        classes = len(images.images.classes)
        learner = fine_tuner(
            self.encoder(settings.start, settings.seed),
            classes,
            augmentation=settings.augmentation,
            lr=settings.lr,
            total_steps=settings.epochs * len(batches),
            seed=settings.seed,
            check_every=settings.check_every,
            compiled=self.config.compiled,
            record={"config": plain(settings), "classes": classes, "batches": batches.state_dict()},
        )
        views = dataclasses.replace(self.config, augmentation=settings.augmentation, devices=1)
        with going_on_by(GO_ON):
            fit(
                learner,
                loader(views, images, batches),
                batches,
                folder,
                config=settings,
                precision=self.config.precision,
                paths={"root": self.config.root},
                progress=progress,
                resume=any((folder / "checkpoints").glob("*.ckpt")),
            )
        return learner

    def measure(self, settings: FineTuning, images: inputs.Inputs, learner: Learner) -> list[records.Result]:
        """Test accuracy of the fine-tuned network, and of probes on the encoder as it was before."""
        logits, labels = extract(tuned(learner).to(device()), plain_batches(self.test, self.config), device=device())
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        details = {"train": len(images.images), "test": len(labels)}
        found = [records.Result("accuracy", round(float(hits[:, 0].double().mean()), 4), "finetune", details)]
        if logits.shape[1] >= 100:  # as published for ImageNet
            value = float(hits.any(dim=1).double().mean())
            found.append(records.Result("top-5 accuracy", round(value, 4), "finetune", details))
        before = frozen(self.encoder(settings.start, settings.seed), images, self.test, self.config)
        found += probe(before, ("linear", "logistic"), seed=settings.seed)
        return [dataclasses.replace(x, protocol=f"{x.protocol} {100 * settings.share:g}%") for x in found]

    def run(self, settings: FineTuning, folder: Path) -> records.Record:
        """Fine-tune and measure, as far as that is not done yet. ValueError where the folder holds another run."""
        done, here = folder / DONE, plain(settings)
        if done.is_file():
            record = records.read(done)[0]
            if other := differing(record.settings, here):
                raise ValueError(f"{folder} holds a run with other settings ({'; '.join(other)}); give another --out")
            return record
        check_writable(folder)
        # Off a terminal a line for each run is enough: they are many and short.
        with EpochProgress(quiet=not CONSOLE.is_terminal, training="fine-tuning") as progress:
            chosen = self.images.select(self.choose(settings.share, settings.seed))
            images = inputs.read(self.config, chosen, progress.reading)
            learner = self.train(settings, images, folder, progress)
        record = records.record(
            method=method(self.config) if settings.start == "pretrained" else "untrained encoder",
            preset=self.config.preset,
            data=settings.data,
            seed=settings.seed,
            seconds=None,
            results=self.measure(settings, images, learner),
            settings={**here, "pretraining": self.pretraining},
            stage="finetune",
        )
        records.write([record], done)
        return record


def finetune(arguments: Arguments, folder: Path) -> list[records.Record]:
    """Every share, seed and start that the arguments ask for, as records."""
    quieten()
    check_writable(folder)
    runs = Runs(arguments)
    starts: tuple[Start, ...] = ("pretrained", "untrained") if arguments.from_scratch else ("pretrained",)
    order = [(share, seed, start) for share in arguments.share for seed in arguments.seeds for start in starts]
    found = []
    planned = [runs.settings(*which) for which in order]  # all of them first: mistakes show before hours
    for i, settings in enumerate(planned, start=1):
        name = f"share{settings.share:g}-seed{settings.seed}-{settings.start}"
        if not (folder / name / DONE).is_file():
            share = f"{100 * settings.share:g} % of the labels"
            say(f"fit {i} of {len(planned)}: {share}, seed {settings.seed}, {settings.start}")
        found.append(runs.run(settings, folder / name))
        accuracy = 100 * found[-1].results[0].value
        say(f"{name}: {found[-1].results[0].details['train']:,} images, {settings.epochs} epochs, {accuracy:.1f} %")
    return found


def main() -> None:
    """The command line."""
    arguments = tyro.cli(Arguments, prog="python -m recipes.vision.finetune", description=__doc__)
    folder = arguments.out or arguments.checkpoint.parent.parent / f"finetune-{arguments.checkpoint.stem}"
    found = finetune(arguments, folder)
    records.write(found, folder / "results.json")
    for share in arguments.share:
        of = [record for record in found if record.settings["share"] == share]
        protocols = [x.protocol for x in of[0].results if x.metric == "accuracy"]
        rows = []
        for name in dict.fromkeys(record.method for record in of):
            results = [x for record in of if record.method == name for x in record.results if x.metric == "accuracy"]
            cells = [spread([x.value for x in results if x.protocol == p], 100, 1) for p in protocols]
            rows.append([name, *cells])
        table(["", *protocols], rows, title=f"accuracy, %, over seeds {', '.join(map(str, arguments.seeds))}")
    say(f"written to {folder / 'results.json'}")


if __name__ == "__main__":
    command(main, RuntimeError, interrupted=f"interrupted; {GO_ON}")
