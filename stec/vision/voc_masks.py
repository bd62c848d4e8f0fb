"""Images with masks of classes in PASCAL VOC's layout, and the random crops that segmentation is trained on."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode, functional

from stec.vision.decoding import Bomb, decode
from stec.vision.loading import Progress
from stec.vision.voc_layout import Part, Problem, find_image, image_size, read_parts, report

IGNORE = 255  # VOC's number for borders and whatever is of no known class
PADDING = [124, 116, 104]  # ImageNet's mean colour, which is what others' 0 means: they pad after normalising


class SegmentationSet(Dataset[tuple[Tensor, Tensor]]):
    """Item i: an image, uint8 (3, h, w), and the number of each pixel's class, uint8 (h, w), 255 where unknown."""

    def __init__(self, images: Sequence[Path], masks: Sequence[Path], classes: Sequence[str]) -> None:
        self.images = tuple(images)
        self.masks = tuple(masks)
        self.classes = tuple(classes)  # class i has number i; 0 is the background

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 h w"], UInt8[Tensor, "h w"]]:
        return decode(self.images[index]), read_mask(self.masks[index])


def read_mask(path: Path) -> UInt8[Tensor, "h w"]:
    """The class numbers of a mask: the indices of a palette picture, or the grey values.

    ValueError where the file is torn, no PNG, larger than Pillow's limit against decompression bombs, or its pixels are
    no 8-bit numbers: colours do not say which number they mean.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:  # Pillow only warns up to twice the limit
                raise Image.DecompressionBombError
            image.load()
            mode, numbers = image.mode, torch.from_numpy(np.array(image))
    except Bomb as error:
        raise ValueError(
            f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels; shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except Exception as error:  # Pillow's decoders raise SyntaxError, struct.error and more on broken files
        raise ValueError(f"{path} cannot be read: {error or type(error).__name__}") from error
    if mode not in ("P", "L"):
        raise ValueError(f"{path} has pixels of the kind {mode}, neither palette nor 8-bit grey")
    return numbers


class _Read(NamedTuple):
    """What one image's files gave."""

    image: Path
    mask: Path
    problems: list[Problem]


def read_segmentation(
    parts: Iterable[Part],
    *,
    classes: Sequence[str],
    folder: str = "SegmentationClass",
    progress: Progress | None = None,
) -> SegmentationSet:
    """Reads and checks the parts, joined to one set; `classes` begins with the background, number 0.

    `folder` holds the masks, such as SegmentationClassAug for the 10,582 of the augmented training set (Hariharan et
    al. 2011). Raises one ValueError for all problems together (`stec.vision.voc_layout.CURES` has the kinds).
    """

    def read(root: Path, name: str) -> _Read:
        problems: list[Problem] = []
        image, mask = find_image(root, name), root / folder / f"{name}.png"
        size = image_size(image, problems)
        if not mask.is_file():
            problems.append(Problem("files are missing", mask, "no such mask"))
        else:
            _check_mask(mask, size, classes, problems)
        return _Read(image, mask, problems)

    found = read_parts(parts, "Segmentation", folder, read, progress)
    report([problem for one in found for problem in one.problems], len(found))
    return SegmentationSet([one.image for one in found], [one.mask for one in found], classes)


def _check_mask(path: Path, size: tuple[int, int] | None, classes: Sequence[str], problems: list[Problem]) -> None:
    try:
        mask = read_mask(path)
    except ValueError as error:
        kind = "masks are no pictures of class numbers" if "neither" in str(error) else "files cannot be read"
        problems.append(Problem(kind, path, str(error)))
        return
    height, width = mask.shape
    if size is not None and size != (width, height):
        what = "the mask has {} x {} pixels, the image {} x {}".format(width, height, *size)
        problems.append(Problem("masks are of another size than their image", path, what))
    numbers = [number for number in torch.unique(mask).tolist() if number != IGNORE]
    if not numbers:
        problems.append(Problem("masks mark nothing", path, "all of it is 255"))
    if unknown := [number for number in numbers if number >= len(classes)]:
        what = f"numbers {', '.join(map(str, unknown[:5]))}; the classes are 0 to {len(classes) - 1}, and 255"
        problems.append(Problem("masks hold unknown classes", path, what))


class RandomCrops(Dataset[tuple[Tensor, Tensor]]):
    """Item (index, seed): image and mask resized by one random factor, cut to `size` x `size` pixels, maybe mirrored.

    The factor is uniform in `scale`, the place of the crop uniform, the mirror has probability 1/2 (He et al. 2020,
    appendix). Where the resized image is smaller than the crop, pixels of a mean colour and unknown class are added
    at its right and bottom, before it is mirrored. Images are resized bilinearly with antialiasing, masks to the
    nearest pixel.
    """

    def __init__(self, source: SegmentationSet, size: int, *, scale: tuple[float, float]) -> None:
        if size < 1 or not 0 < scale[0] <= scale[1]:
            raise ValueError(f"crop {size}, scale {scale}; need a positive size and 0 < lowest <= highest scale")
        self.source = source
        self.size = size
        self.scale = scale

    def __len__(self) -> int:
        """Number of images."""
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> tuple[UInt8[Tensor, "3 s s"], UInt8[Tensor, "s s"]]:
        index, seed = key
        image, mask = self.source[index]
        size, (low, high) = self.size, self.scale
        at = torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
        factor = low + (high - low) * at[0]
        height, width = (max(1, round(side * factor)) for side in mask.shape)
        image = functional.resize(image, [height, width], antialias=True)
        nearest = InterpolationMode.NEAREST_EXACT  # pixel centres as in the image's resizing
        mask = functional.resize(mask[None], [height, width], interpolation=nearest)[0]
        top, left = int(at[1] * (max(0, height - size) + 1)), int(at[2] * (max(0, width - size) + 1))
        image, mask = (pixels[..., top : top + size, left : left + size] for pixels in (image, mask))
        padding = [0, 0, size - mask.shape[1], size - mask.shape[0]]  # left, top, right, bottom
        image = functional.pad(image, padding, fill=PADDING)
        mask = functional.pad(mask[None], padding, fill=IGNORE)[0]
        return (image.flip(2), mask.flip(1)) if at[3] < 0.5 else (image.contiguous(), mask.contiguous())
