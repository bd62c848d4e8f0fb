"""Images of several sizes in memory: each in its own shape, so that nothing is cut off and no epoch decodes files."""

import dataclasses
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from stec.vision.decoding import FORMATS, ORIENTATION, decode_rgb
from stec.vision.folder import ImageFiles

Progress = Callable[[int, int], None]  # files done, of how many
WIDTH, LENGTH = 256, 257  # TIFF's tags


@dataclasses.dataclass(frozen=True, eq=False)
class HeldImages:
    """Decoded images, each (h, w, 3) uint8 behind the other, with labels (-1: unlabelled) and names of the classes.

    One tensor holds all of them: workers share it, also where they are spawned.
    """

    pixels: UInt8[Tensor, " bytes"]
    sizes: Int64[Tensor, "n 2"]  # height, width
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]
    starts: Int64[Tensor, " n"] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        counts = 3 * self.sizes.prod(dim=1)
        object.__setattr__(self, "starts", counts.cumsum(0) - counts)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.sizes)

    def decode(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """The pixels of an image, a view of the memory, which lies as `stec.vision.decoding.decode` has it."""
        height, width = self.sizes[index].tolist()
        start = int(self.starts[index])
        return self.pixels[start : start + 3 * height * width].view(height, width, 3).permute(2, 0, 1)

    def decode_rgb(self, index: int) -> Image.Image:
        """As `decode`, as a Pillow image."""
        return Image.fromarray(self.decode(index).permute(1, 2, 0).numpy())

    def checksum(self) -> int:
        """CRC-32 of pixels, sizes and labels: another number for other images."""
        crc = zlib.crc32(self.sizes.numpy().data, zlib.crc32(self.labels.numpy().data))
        return zlib.crc32(self.pixels.numpy().data, crc)


def header_size(path: str | Path) -> tuple[int, int] | None:
    """(height, width) of an image once upright, read off its header; None where that cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            try:
                if image.format == "TIFF":  # as in the file: Pillow's own size is upright in some versions
                    width, height = (int(image.tag_v2[tag]) for tag in (WIDTH, LENGTH))  # type: ignore[attr-defined]
                note = image.getexif() if image.format != "PNG" else Image.Exif()
                if image.format == "PNG" and "exif" in image.info:  # its getexif() would decode all pixels first
                    note.load(image.info["exif"])
                lies = note.get(ORIENTATION, 1) in (5, 6, 7, 8)
            except Exception:  # a broken note: `decode` takes such an image as it is, too
                lies = False
    except Exception:  # decoders raise many sorts; `decode` says which file it is and why
        return None
    return (width, height) if lies else (height, width)


def held_size(height: int, width: int, *, short: int) -> tuple[int, int]:
    """The size that an image is held in: its shorter side at most `short`, its shape to within half a pixel.

    >>> held_size(480, 640, short=192), held_size(60, 81, short=192)
    ((192, 256), (60, 81))
    """
    scale = min(1.0, short / min(height, width))
    return round(height * scale), round(width * scale)


def several_sizes(files: ImageFiles) -> bool:
    """Whether the files have images of more than one size, by their headers; those without a readable one aside."""
    first = None
    for i in range(len(files)):
        size = header_size(files.path(i))
        first = first or size
        if size is not None and size != first:
            return True
    return False


def hold(
    files: ImageFiles, *, short: int, memory_budget: int, threads: int | None = None, progress: Progress | None = None
) -> HeldImages | None:
    """All images in memory, each in its own shape, shrunk (bilinear, antialiased) where the shorter side is above
    `short`; None where that takes more than `memory_budget` bytes.

    No border is cut off, as squares would, and crops fall on the held pixels exactly: the action between two crops is
    that of what is held, whose shape is the file's to within half a pixel. Headers are read until the budget is spent.
    `threads` defaults to the cores, at most 16. Raises ValueError naming a file that cannot be decoded.
    """
    sizes: list[tuple[int, int]] = []
    needed = 0
    for i in range(len(files)):
        found = header_size(files.path(i))
        if found is None:
            decode_rgb(files.path(i))  # says what is wrong with it
            raise ValueError(f"{files.path(i)} has no readable header; restore or remove it")
        sizes.append(held_size(*found, short=short))
        needed += 3 * sizes[-1][0] * sizes[-1][1]
        if needed > memory_budget:
            return None
    held = HeldImages(torch.empty(needed, dtype=torch.uint8), torch.tensor(sizes), files.labels, files.classes)

    def fill(i: int) -> None:
        image = decode_rgb(files.path(i))
        height, width = held_size(image.height, image.width, short=short)
        if (width, height) == sizes[i]:  # turned by a note behind the pixels, which the header does not show
            held.sizes[i] = torch.tensor([height, width])
        elif (height, width) != sizes[i]:
            raise ValueError(f"{files.path(i)} has another size than its header says; save it again, or remove it")
        if image.size != (width, height):
            image = functional.resize(image, [height, width], antialias=True)
        held.decode(i).permute(1, 2, 0).numpy()[:] = np.asarray(image)

    with ThreadPoolExecutor(threads or min(os.cpu_count() or 1, 16)) as pool:
        for done, _ in enumerate(pool.map(fill, range(len(files))), 1):
            if progress is not None and (done % 32 == 0 or done == len(files)):
                progress(done, len(files))
    return held
