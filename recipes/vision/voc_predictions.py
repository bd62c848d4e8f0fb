"""What a detector or segmenter finds on test images: its predictions, their scores, and pictures beside the truth."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.typing import ColorType
from PIL import Image
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader

from recipes.records import Result
from recipes.terminal import CONSOLE
from recipes.vision.finetune_loop import device
from stec.vision.voc import DetectionSet, Objects
from stec.vision.voc_masks import IGNORE, SegmentationSet

Found = dict[str, Tensor]  # boxes (n, 4), labels (n,), scores (n,), as torchvision gives them
SURE = 0.5  # the score from which a box is drawn
BRIGHT = ("#ffd400", "#e0201b", "#1560d0", "#12a012", "#a335ee", "#ff7f0e", "#00c2d1", "#ff4fa3")  # of boxes, in turn


@torch.no_grad()
def find_objects(model: nn.Module, data: DetectionSet, *, workers: int) -> list[Found]:
    """The boxes, labels and scores that a detector finds in each image, on the CPU; `workers` processes decode."""
    model.eval()
    where = device()
    loader = DataLoader(data, batch_size=None, num_workers=workers)
    found = []
    for image, _ in track(loader, "testing", total=len(data), console=CONSOLE, disable=not CONSOLE.is_terminal):
        outputs = model([image.to(where).float() / 255])
        found.append({name: value.cpu() for name, value in outputs[0].items()})
    return found


@torch.no_grad()
def find_classes(model: nn.Module, data: SegmentationSet, *, workers: int) -> list[Tensor]:
    """The likeliest class of each pixel, uint8 (h, w), of each image at its own size, on the CPU."""
    model.eval()
    where = device()
    loader = DataLoader(data, batch_size=None, num_workers=workers)
    return [
        model(image[None].to(where).float() / 255)["out"][0].argmax(dim=0).to(torch.uint8).cpu()
        for image, _ in track(loader, "testing", total=len(data), console=CONSOLE, disable=not CONSOLE.is_terminal)
    ]


def average_precision(
    found: Sequence[Found], objects: Sequence[Objects], classes: Sequence[str], *, points: int
) -> list[Result]:
    """AP50, AP75 and their mean over thresholds from 0.5 to 0.95 (AP), each a mean over the classes that occur.

    By torchmetrics on pycocotools: precision, made monotonic, is read at `points` equally distant recalls (11:
    VOC2007's rule). Objects marked difficult count for nothing, whether found or not: pycocotools' crowds, which
    differ from VOC's rule in that the overlap with them is the share of the detection that they cover. ValueError where
    every object is difficult, or there is none: precision is not defined then.
    """
    from torchmetrics.detection import MeanAveragePrecision  # of the extra `transfer`

    if all(bool(o.difficult.all()) for o in objects):
        hard = sum(len(o.labels) for o in objects)
        raise ValueError(
            f"none of the {len(objects)} test images holds an object that counts ({hard} are marked difficult), so "
            "average precision is not defined; test on a split that has some (--test)"
        )
    metric = MeanAveragePrecision(
        iou_thresholds=[k / 100 for k in range(50, 100, 5)],
        rec_thresholds=[k / (points - 1) for k in range(points)],
        extended_summary=True,
    )
    targets = [{"boxes": o.boxes, "labels": o.labels, "iscrowd": o.difficult.long()} for o in objects]
    metric.update(list(found), targets)
    measured = metric.compute()
    seen = sorted({int(label) for part in (*found, *targets) for label in part["labels"]})
    precision = measured["precision"][0, :, :, 0, -1].mean(dim=0)  # at 0.5; -1 where a class has no object
    each = {classes[label - 1]: round(float(precision[i]), 4) for i, label in enumerate(seen) if precision[i] >= 0}
    details: dict[str, object] = {"test": len(objects), "recall points": points}
    results = [
        Result(name, round(float(measured[key]), 4), "fine-tuned", details)
        for name, key in (("AP50", "map_50"), ("AP75", "map_75"), ("AP", "map"))
    ]
    results[0] = dataclasses.replace(results[0], details={**details, "of each class": each})
    return results


def mean_iou(found: Sequence[Tensor], masks: Sequence[Tensor], classes: Sequence[str]) -> list[Result]:
    """The mean over classes of intersection over union, each from all pixels of the set together; 255 does not count.

    By torchmetrics; classes that neither occur nor are predicted are left out of the mean.
    """
    from torchmetrics.classification import MulticlassJaccardIndex  # of the extra `transfer`

    metric = MulticlassJaccardIndex(len(classes), average="none", ignore_index=IGNORE)
    for numbers, mask in zip(found, masks, strict=True):
        metric.update(numbers[None].long(), mask[None].long())
    each, counts = metric.compute(), metric.confmat
    there = (counts.sum(dim=0) + counts.sum(dim=1)) > 0
    details = {
        "test": len(masks),
        "of each class": {name: round(float(each[i]), 4) for i, name in enumerate(classes) if there[i]},
    }
    return [Result("mIoU", round(float(each[there].mean()), 4), "fine-tuned", details)]


def draw_objects(path: Path, data: DetectionSet, found: Sequence[Found], *, count: int = 3) -> None:
    """A picture of the first test images: above, the annotated boxes; below, those found with a score from 0.5."""
    count = min(count, len(data))
    figure = Figure(figsize=(4 * count, 6.4), dpi=72, layout="constrained")
    axes = figure.subplots(2, count, squeeze=False)
    names = data.classes if len(data.classes) > len(BRIGHT) else None  # where colours come twice, each box is named
    for i in range(count):
        image, truth = data[i]
        sure = found[i]["scores"] >= SURE
        _boxes(axes[0][i], image, truth.boxes, truth.labels, names)
        _boxes(axes[1][i], image, found[i]["boxes"][sure], found[i]["labels"][sure], names)
    axes[0][0].set_ylabel("annotated")
    axes[1][0].set_ylabel(f"found, score from {SURE}")
    shown = {int(label) for i in range(count) for part in (data[i][1].labels, found[i]["labels"]) for label in part}
    named = {data.classes[label - 1]: BRIGHT[(label - 1) % len(BRIGHT)] for label in sorted(shown)}
    _finish(figure, path, named)


def _boxes(axes: Axes, image: Tensor, boxes: Tensor, labels: Tensor, names: Sequence[str] | None) -> None:
    axes.imshow(image.permute(1, 2, 0).numpy(), extent=(0, image.shape[2], image.shape[1], 0))
    for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist()):
        colour = BRIGHT[(label - 1) % len(BRIGHT)]
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.8))
        if names:
            axes.text(
                x1, y1, names[label - 1], size=8, color="white", backgroundcolor=colour, va="bottom", parse_math=False
            )


def draw_classes(path: Path, data: SegmentationSet, found: Sequence[Tensor], *, count: int = 3) -> None:
    """A picture of the first test images, their annotated classes and the predicted ones; unknown pixels are white."""
    count = min(count, len(data))
    figure = Figure(figsize=(3.4 * count, 7.6), dpi=72, layout="constrained")
    axes = figure.subplots(3, count, squeeze=False)
    palette = np.array([_colour(number) for number in range(IGNORE)] + [(1.0, 1.0, 1.0)])
    for i in range(count):
        image, mask = data[i]
        axes[0][i].imshow(image.permute(1, 2, 0).numpy())
        axes[1][i].imshow(palette[mask.numpy()], interpolation="nearest")
        axes[2][i].imshow(palette[found[i].numpy()], interpolation="nearest")
    for row, label in enumerate(("image", "annotated", "predicted")):
        axes[row][0].set_ylabel(label)
    shown = {int(number) for i in range(count) for part in (data[i][1], found[i]) for number in part.unique()}
    _finish(figure, path, {data.classes[number]: _colour(number) for number in sorted(shown - {IGNORE})})


def _colour(number: int) -> tuple[float, float, float]:
    """The colour of a class in VOC's own masks: red from bits 0, 3, 6 of its number, green from 1, 4, 7, and so on.

    >>> [round(255 * value) for value in _colour(15)]  # a person
    [192, 128, 128]
    """
    channels = [sum((number >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
    return channels[0] / 255, channels[1] / 255, channels[2] / 255


def _finish(figure: Figure, path: Path, colours: Mapping[str, ColorType]) -> None:
    """The legend, and a PNG of 256 colours, which takes a third of the room."""
    for axes in figure.axes:
        axes.set(xticks=[], yticks=[])
    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=7, frameon=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    # The octree keeps the few pixels of a bright line their colour, where the median cut gives them a neighbour's.
    pixels.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, optimize=True)
