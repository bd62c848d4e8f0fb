"""Segmentation on PASCAL VOC, or data in its layout: an FCN from an encoder, mean intersection over union in test.

  python -m recipes.vision.segment voc --root VOCdevkit --checkpoint RUN/checkpoints/FILE.ckpt --random --seeds 0 1 2 3
  python -m recipes.vision.segment labelme-small --root labelme-voc-sample/semantic_segmentation --random

The data are checked as a whole before anything is trained. With several encoders or seeds every one has a run of its
own in a folder of --out: config.json, metrics.csv, checkpoints/, predictions.png, weights.safetensors, results.json.
The same command with --resume goes on after an interruption. Preset voc is the protocol of He et al. (2020, MoCo,
appendix), voc-train the same on VOC2012's own 1,464 training images.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import default_collate

from recipes.progress import EpochProgress
from recipes.records import Record, Result
from recipes.run_folder import plain
from recipes.terminal import command, say
from recipes.vision import voc_runs
from recipes.vision.finetune_loop import fit
from recipes.vision.voc_encoders import Encoders, Source, sources
from recipes.vision.voc_predictions import draw_classes, find_classes, mean_iou
from recipes.vision.voc_schedule import Schedule
from stec.core.actions import step_seed
from stec.core.checkpoints import export_weights
from stec.core.learner import NonFiniteLoss
from stec.vision.transfer import segmenter
from stec.vision.voc_layout import VOC_CLASSES, Part
from stec.vision.voc_masks import IGNORE, RandomCrops, SegmentationSet, read_segmentation


@dataclasses.dataclass(frozen=True)
class Config:
    """The data and the segmenter."""

    preset: str
    train: tuple[str, ...]  # FOLDER/SPLIT below root, SPLIT alone, or all
    test: tuple[str, ...]
    classes: tuple[str, ...] = ("background", *VOC_CLASSES)  # in the order of the masks' numbers
    masks: str = "SegmentationClass"  # the folder of the training masks
    test_masks: str = "SegmentationClass"
    same: bool = False  # test on the training images, which proves that the parts fit together and nothing else
    crop: int = 513  # pixels
    scale: tuple[float, float] = (0.5, 2.0)  # of the image before it is cropped
    channels: int = 256  # of the head
    dilation: int = 6  # of the head
    dilated_stages: int = 1  # last stages whose stride is taken out


@dataclasses.dataclass(frozen=True)
class Arguments(voc_runs.Arguments):
    """What `segment PRESET` takes."""

    config: tyro.conf.OmitArgPrefixes[Config] = Config("", (), ())


MOCO = Schedule(steps=30_000, batch_size=16, lr=0.003, warmup_steps=0, drops=(21_000, 27_000), precise_bn=0)

PRESETS = {
    # train_aug: VOC2012's training images and those that Hariharan et al. (2011) annotated, 10,582 in all.
    "voc": Arguments(
        MOCO,
        config=Config(preset="voc", train=("VOC2012/trainaug",), test=("VOC2012/val",), masks="SegmentationClassAug"),
    ),
    "voc-train": Arguments(MOCO, config=Config(preset="voc-train", train=("VOC2012/train",), test=("VOC2012/val",))),
    # Three images on two cores, in a minute: learnt by heart.
    "labelme-small": Arguments(
        Schedule(
            steps=240, batch_size=3, lr=0.02, warmup_steps=10, drops=(200,), precise_bn=20, workers=0, save_every=60
        ),
        Encoders(arch="resnet18", stem="stl", width=16),
        config=Config(
            preset="labelme-small", train=("all",), test=("all",), same=True, crop=256, scale=(0.5, 1.0), channels=64
        ),
    ),
}


def read_data(config: Config, root: Path | None) -> tuple[SegmentationSet, SegmentationSet]:
    """Training and test data, checked."""
    splits = voc_runs.parts(root, config.train), voc_runs.parts(root, config.test)

    def read(name: str, split: Sequence[Part], masks: str) -> SegmentationSet:
        with EpochProgress(reading=f"checking the {name} data") as progress:
            data = read_segmentation(split, classes=config.classes, folder=masks, progress=progress.reading)
        say(f"{name}: {len(data)} images, {len(data.classes)} classes")
        return data

    train, test = read("training", splits[0], config.masks), read("test", splits[1], config.test_masks)
    if not config.same:
        voc_runs.check_apart(train.images, test.images)
    return train, test


def loss(model: nn.Module, batch: Any, where: torch.device) -> dict[str, Tensor]:
    """Cross-entropy, the mean over the pixels whose class is known; 0 where there is none."""
    images, masks = (part.to(where, non_blocking=True) for part in batch)
    logits = model(images.float() / 255)["out"].float()
    total = functional.cross_entropy(logits, masks.long(), ignore_index=IGNORE, reduction="sum")
    return {"cross-entropy": total / (masks != IGNORE).sum().clamp(min=1)}


def segment(arguments: Arguments) -> list[Record]:
    """Every encoder with every seed: trained, measured, drawn, recorded."""
    config = arguments.config
    voc_runs.need_metrics()
    arguments.schedule.check()
    found = sources(arguments.encoders)
    train, test = read_data(config, arguments.root)

    def one(source: Source, seed: int, folder: Path, settings: dict[str, Any]) -> tuple[list[Result], float]:
        encoder = source.build(seed)
        torch.manual_seed(step_seed(seed, 0))  # the head starts alike, whatever the encoder's making drew
        model = segmenter(
            encoder,
            len(train.classes),
            channels=config.channels,
            dilation=config.dilation,
            dilated_stages=config.dilated_stages,
        )
        fitted = fit(
            model,
            RandomCrops(train, config.crop, scale=config.scale),
            default_collate,
            loss,
            folder,
            schedule=arguments.schedule,
            settings=settings,
            seed=seed,
            resume=arguments.resume,
        )
        export_weights({k: v.cpu() for k, v in model.state_dict().items()}, folder / "weights.safetensors")
        numbers = find_classes(model, test, workers=arguments.schedule.workers)
        draw_classes(folder / "predictions.png", test, numbers)
        return mean_iou(numbers, [test[i][1] for i in range(len(test))], test.classes), fitted.seconds

    settings = {**plain(config), **plain(arguments.schedule)}
    return voc_runs.run_all(arguments, settings, found, one, task="segment", preset=config.preset)


def main(argv: list[str]) -> list[Record] | None:
    """The command line; ValueError for a user's mistake."""
    arguments = voc_runs.read_command(argv, PRESETS, Arguments, task="segment", doc=__doc__ or "")
    return segment(arguments) if arguments else None


if __name__ == "__main__":
    command(
        lambda: main(sys.argv[1:]), NonFiniteLoss, interrupted="interrupted; the same command with --resume goes on"
    )
