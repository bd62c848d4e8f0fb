"""Folders in PASCAL VOC's layout with drawn rectangles, red and blue, whose place and class are known to the pixel."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("blue", "red")
COLOURS = {"blue": (30, 40, 230), "red": (230, 40, 30)}
NUMBERS = {"blue": 1, "red": 2}  # in the masks


def annotation(objects: str, *, width: int = 64, height: int = 48, head: str = "") -> str:
    """An annotation file's text."""
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"{head}<annotation><filename>a.jpg</filename>{size}{objects}</annotation>"


def an_object(
    name: str, xmin: float, ymin: float, xmax: float, ymax: float, more: str = "<difficult>0</difficult>"
) -> str:
    """An <object> of an annotation."""
    box = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


def draw_folder(root: Path, split: str, names: list[str], *, seed: int = 0, difficult: bool = False) -> Path:
    """Images of 64 x 48 pixels, one red and one blue rectangle on each, with annotations, masks and the split's lists.

    Boxes are written as VOC has it, from 1 with both ends included. A mask's rectangle has a rim of 255.
    """
    for folder in ("Annotations", "JPEGImages", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for name in names:
        pixels = random.integers(100, 130, (48, 64, 3), dtype=np.uint8)
        mask = np.zeros((48, 64), dtype=np.uint8)
        objects = ""
        for i, kind in enumerate(("red", "blue")):
            width, height = random.integers(12, 24, 2)
            left, top = i * 32 + random.integers(0, 32 - width), random.integers(0, 48 - height)
            pixels[top : top + height, left : left + width] = COLOURS[kind]
            mask[top : top + height, left : left + width] = 255
            mask[top + 1 : top + height - 1, left + 1 : left + width - 1] = NUMBERS[kind]
            more = f"<difficult>{int(difficult and i == 1)}</difficult>"
            objects += an_object(kind, left + 1, top + 1, left + width, top + height, more)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg", quality=95, subsampling=0)
        picture = Image.fromarray(mask)
        picture.putpalette([0, 0, 0, *COLOURS["blue"], *COLOURS["red"]] + [255] * 3 * 253)
        picture.save(root / "SegmentationClass" / f"{name}.png")
        (root / "Annotations" / f"{name}.xml").write_text(annotation(objects))
    for task in ("Main", "Segmentation"):
        (root / "ImageSets" / task / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root
