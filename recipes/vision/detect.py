"""Detection on PASCAL VOC, or data in its layout: Faster R-CNN from an encoder, average precision on the test split.

  python -m recipes.vision.detect voc --root VOCdevkit --checkpoint RUN/checkpoints/FILE.ckpt --random --seeds 0 1 2 3
  python -m recipes.vision.detect bccd-small --root BCCD_Dataset/BCCD --checkpoint FILE.ckpt --random
  python -m recipes.vision.detect voc --help                    every setting, with the preset's values

The data are checked as a whole before anything is trained. With several encoders or seeds every one has a run of its
own in a folder of --out: config.json, metrics.csv, checkpoints/, predictions.png, weights.safetensors, results.json.
The same command with --resume goes on after an interruption. Preset voc is the protocol of He et al. (2020, MoCo).
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from recipes.progress import EpochProgress
from recipes.records import Record, Result
from recipes.run_folder import plain
from recipes.terminal import command, say
from recipes.vision import voc_runs
from recipes.vision.finetune_loop import fit
from recipes.vision.voc_encoders import Encoders, Source, sources
from recipes.vision.voc_predictions import average_precision, draw_objects, find_objects
from recipes.vision.voc_schedule import Schedule
from stec.core.actions import step_seed
from stec.core.checkpoints import export_weights
from stec.core.learner import NonFiniteLoss
from stec.vision.transfer import c4_detector, fpn_detector
from stec.vision.voc import DetectionSet, MirroredAtRandom, Objects, read_detection
from stec.vision.voc_layout import VOC_CLASSES, Part


@dataclasses.dataclass(frozen=True)
class Config:
    """The data and the detector."""

    preset: str
    train: tuple[str, ...]  # FOLDER/SPLIT below root, SPLIT alone, or all
    test: tuple[str, ...]
    classes: tuple[str, ...]  # their names; () takes those of the training annotations
    boxes: Literal["refuse", "clip", "skip"] = "refuse"  # what becomes of boxes outside their image or without area
    keep_empty: bool = False  # images without objects are data, not mistakes
    one_based: bool = True  # pixels count from 1, both ends included, as in VOC
    train_difficult: bool = True  # train on objects marked difficult too, as detectron2 does
    form: Literal["c4", "fpn"] = "c4"
    min_sizes: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)  # shorter sides; last: test
    max_size: int = 1333  # longer side
    anchors: tuple[int, ...] = (32, 64, 128, 256, 512)  # pixels of the resized image
    proposals: tuple[int, int] = (2000, 1000)  # kept in training, in test
    rois: int = 512  # proposals of an image that are trained on
    roi_size: int = 14  # pixels of a pooled proposal, c4
    channels: int = 256  # of the pyramid, fpn
    recall_points: Literal[11, 101] = 101  # where precision is read: VOC2007's 11 points, or COCO's 101


@dataclasses.dataclass(frozen=True)
class Arguments(voc_runs.Arguments):
    """What `detect PRESET` takes."""

    config: tyro.conf.OmitArgPrefixes[Config] = Config("", (), (), ())


PRESETS = {
    # MoCo's R50-C4 on detectron2: its batch of 16 is on one device here, so that BatchNorm sees the same 16 images.
    "voc": Arguments(
        Schedule(steps=24_000, batch_size=16, lr=0.02, warmup_steps=100, drops=(18_000, 22_000)),
        config=Config(
            preset="voc",
            train=("VOC2007/trainval", "VOC2012/trainval"),
            test=("VOC2007/test",),
            classes=VOC_CLASSES,
            recall_points=11,
        ),
    ),
    # Blood cells on one core, in minutes: small images, few and small proposals. The better of two trials.
    "bccd-small": Arguments(
        Schedule(
            steps=400, batch_size=4, lr=0.03, warmup_steps=20, drops=(300, 370), precise_bn=30, workers=0, save_every=50
        ),
        Encoders(arch="resnet18", stem="stl", width=16),
        config=Config(
            preset="bccd-small",
            train=("trainval",),
            test=("test",),
            classes=("Platelets", "RBC", "WBC"),
            boxes="skip",  # two red cells of the 4,888 boxes were clicked, not drawn: xmin = xmax
            min_sizes=(208, 240, 272, 240),
            max_size=400,
            anchors=(8, 16, 32, 64, 128),
            proposals=(400, 100),
            rois=64,
            roi_size=7,
        ),
    ),
}


def build(encoder: nn.Module, config: Config, classes: int) -> FasterRCNN:
    """The detector of a configuration."""
    if config.form == "c4":
        return c4_detector(
            encoder,
            classes,
            min_sizes=config.min_sizes,
            max_size=config.max_size,
            anchors=config.anchors,
            proposals=config.proposals,
            rois=config.rois,
            roi_size=config.roi_size,
        )
    return fpn_detector(
        encoder,
        classes,
        min_sizes=config.min_sizes,
        max_size=config.max_size,
        anchors=config.anchors,
        proposals=config.proposals,
        rois=config.rois,
        channels=config.channels,
    )


def read_data(config: Config, root: Path | None) -> tuple[DetectionSet, DetectionSet]:
    """Training and test data, checked."""
    splits = voc_runs.parts(root, config.train), voc_runs.parts(root, config.test)

    def read(name: str, split: Sequence[Part], classes: Sequence[str] | None) -> DetectionSet:
        with EpochProgress(reading=f"checking the {name} data") as progress:
            data = read_detection(
                split,
                classes=classes,
                boxes=config.boxes,
                keep_empty=config.keep_empty,
                one_based=config.one_based,
                progress=progress.reading,
            )
        left = "".join(f"; {count} {what}" for what, count in data.tolerated.items())
        say(f"{name}: {len(data)} images of {', '.join(data.classes)}{left}")
        return data

    train = read("training", splits[0], config.classes or None)
    test = read("test", splits[1], train.classes)
    voc_runs.check_apart(train.images, test.images)
    if all(bool(o.difficult.all()) for o in test.objects):
        raise ValueError("no test object counts: all are marked difficult, or there are none; name another --test")
    return train, test


def collate(items: list[tuple[Tensor, Objects]]) -> tuple[list[Tensor], list[Objects]]:
    """Images of different sizes stay a list."""
    return [image for image, _ in items], [objects for _, objects in items]


def loss_of(config: Config) -> Any:
    """The four losses of Faster R-CNN of a batch."""

    def loss(model: nn.Module, batch: Any, where: torch.device) -> dict[str, Tensor]:
        images = [image.to(where, non_blocking=True).float() / 255 for image in batch[0]]
        kept = [torch.ones_like(o.difficult) if config.train_difficult else ~o.difficult for o in batch[1]]
        targets = [{"boxes": o.boxes[k].to(where), "labels": o.labels[k].to(where)} for o, k in zip(batch[1], kept)]
        terms: dict[str, Tensor] = model(images, targets)
        return {name.removeprefix("loss_"): value for name, value in terms.items()}

    return loss


def detect(arguments: Arguments) -> list[Record]:
    """Every encoder with every seed: trained, measured, drawn, recorded."""
    config = arguments.config
    voc_runs.need_metrics()
    arguments.schedule.check()
    found = sources(arguments.encoders)
    train, test = read_data(config, arguments.root)

    def one(source: Source, seed: int, folder: Path, settings: dict[str, Any]) -> tuple[list[Result], float]:
        encoder = source.build(seed)
        torch.manual_seed(step_seed(seed, 0))  # the heads start alike, whatever the encoder's making drew
        model = build(encoder, config, len(train.classes))
        fitted = fit(
            model,
            MirroredAtRandom(train),
            collate,
            loss_of(config),
            folder,
            schedule=arguments.schedule,
            settings=settings,
            seed=seed,
            resume=arguments.resume,
        )
        export_weights({k: v.cpu() for k, v in model.state_dict().items()}, folder / "weights.safetensors")
        boxes = find_objects(model, test, workers=arguments.schedule.workers)
        draw_objects(folder / "predictions.png", test, boxes)
        return average_precision(boxes, test.objects, test.classes, points=config.recall_points), fitted.seconds

    settings = {**plain(config), **plain(arguments.schedule), "classes": list(train.classes)}
    return voc_runs.run_all(arguments, settings, found, one, task="detect", preset=config.preset)


def main(argv: list[str]) -> list[Record] | None:
    """The command line; ValueError for a user's mistake."""
    arguments = voc_runs.read_command(argv, PRESETS, Arguments, task="detect", doc=__doc__ or "")
    return detect(arguments) if arguments else None


if __name__ == "__main__":
    command(
        lambda: main(sys.argv[1:]), NonFiniteLoss, interrupted="interrupted; the same command with --resume goes on"
    )
