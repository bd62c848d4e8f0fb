"""Two views of every image of a batch, and the action between them.

Crop, flip and photometric changes of all images are drawn on the host from one generator; the same draw gives the
pixels and, through its matrix, the action. The batch stays on its device, and pixels are made there.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stec.core.actions import EfferenceCopy, Egocentric, ViewPair
from stec.core.devices import to_device
from stec.vision.affine import Affine, CropFlip
from stec.vision.colour import poses
from stec.vision.photometric import Photometric, chunks, row_writer
from stec.vision.resample import crop_taps, resample
from stec.vision.saliency import Masked

EXACT = Egocentric(Affine())  # the label `exact`: the egocentric action, four components


class Draw(NamedTuple):
    """One draw of n views of b images, with two faces: `views(images)` and `poses(copy)`. Row i is of image i mod b."""

    crops: CropFlip
    changes: Photometric
    size: tuple[int, int]  # (h, w) pixels of the views

    def views(self, images: Tensor, *, compile: bool, masked: Masked | None = None) -> list[Float[Tensor, "b 3 h w"]]:
        """The n / b views of every image of a batch, on its device: one resampling, then the photometric changes.

        `masked` images stand in for the views that they name.
        """
        (b, _, full_y, full_x), (size_y, size_x), device = images.shape, self.size, images.device
        n = len(self.crops.top)
        order = self.changes.sorting()
        changes = self.changes.rows(order)
        sources = to_device(order % b, device)
        top, left, height, width, flip = (value[order] for value in self.crops[:5])
        vertical = crop_taps(top, height, flip=None, size_in=full_y, size_out=size_y, device=device)
        horizontal = crop_taps(left, width, flip=flip, size_in=full_x, size_out=size_x, device=device)
        if images.dtype == torch.uint8:
            vertical.weight.div_(255.0)

        views = torch.empty(n // b, b, 3, size_y, size_x, device=device)
        write = row_writer(views.flatten(0, 1))
        for part in chunks(n, 3 * max(full_y * full_x, size_y * size_x), device):
            taken = images.index_select(0, sources[part])
            if masked is not None:
                taken = masked.put(taken, order[part])
            cut = resample(taken, vertical.rows(part), horizontal.rows(part))
            write(order[part], changes.rows(part).change_(cut, compile=compile))
        return list(views)

    def poses(self, copy: EfferenceCopy) -> Tensor:
        """What `copy` reads of each view, (n, 3, 3) or with colour (n, 13), float64 on the host."""
        return poses(copy, self.crops.matrix(torch.float64), self.changes)


@dataclass(frozen=True)
class Augmentation:
    """The law of views. Probabilities are for each view; `strength` scales the jitter (.8, .8, .8, .2) of SimCLR."""

    size: int | None  # pixels of the square views; None: the images' own size
    scale: tuple[float, float]  # area of the crop over that of the image
    ratio: tuple[float, float]  # width over height of the crop, log-uniform
    p_flip: float
    strength: float
    p_jitter: float
    p_grayscale: float
    p_blur: float
    p_solarise: float
    sigma: tuple[float, float] = (0.1, 2.0)  # blur, in pixels of a view of 224 pixels
    threshold: float = 0.5  # solarise

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(
                f"views of {self.size} pixels; need at least 1 a side, such as --size 32 (--small-size 16 for small "
                "crops), or None for the images' own size"
            )

    def draw_crops(self, n: int, image_size: tuple[int, int], *, generator: torch.Generator) -> CropFlip:
        """n crops and flips of images of (H, W) pixels."""
        return CropFlip.draw(n, image_size, scale=self.scale, ratio=self.ratio, p_flip=self.p_flip, generator=generator)

    def draw_photometric(self, n: int, size: int, *, generator: torch.Generator) -> Photometric:
        """n photometric changes of views of `size` pixels; the blur's kernel and sigma grow with the size."""
        s = self.strength
        kernel = int(0.1 * size)
        return Photometric.draw(
            n,
            jitter=(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s),
            p_jitter=self.p_jitter,
            p_grayscale=self.p_grayscale,
            p_blur=self.p_blur,
            kernel_size=kernel + (kernel % 2 == 0),
            sigma=(self.sigma[0] * size / 224, self.sigma[1] * size / 224),
            p_solarise=self.p_solarise,
            threshold=self.threshold,
            generator=generator,
        )

    def draw(self, n: int, image_size: tuple[int, int], *, generator: torch.Generator) -> Draw:
        """n views of images of (H, W) pixels."""
        size = image_size if self.size is None else (self.size, self.size)
        crops = self.draw_crops(n, image_size, generator=generator)
        return Draw(crops, self.draw_photometric(n, size[0], generator=generator), size)


# Chen et al. (2020) as the authors' released code runs it: half the jitter and neither blur nor solarise for CIFAR.
SIMCLR_CIFAR = Augmentation(
    size=None,
    scale=(0.08, 1.0),
    ratio=(3 / 4, 4 / 3),
    p_flip=0.5,
    strength=0.5,
    p_jitter=0.8,
    p_grayscale=0.2,
    p_blur=0.0,
    p_solarise=0.0,
)
# The same code's flags for STL-10 (views of 96 pixels) and ImageNet (224).
SIMCLR_STL = replace(SIMCLR_CIFAR, strength=1.0, p_blur=0.5, p_solarise=0.2)
SIMCLR_IMAGENET = replace(SIMCLR_STL, size=224)
# The linear probe's views (that code's fit of STL-10): geometry alone.
CROP_FLIP = replace(SIMCLR_CIFAR, strength=0.0, p_jitter=0.0, p_grayscale=0.0)


class CroppedPair(NamedTuple):
    """A batch of pairs that workers have cropped from images of their own sizes: photometric changes are to come."""

    x: Tensor  # (b, 3, s, s) uint8 or float in [0, 1]
    x_prime: Tensor  # as x
    to_x: Float[Tensor, "b 3 3"]  # CropFlip.matrix(torch.float64) of each, on the CPU
    to_x_prime: Float[Tensor, "b 3 3"]
    label: Int[Tensor, " b"]


@torch.no_grad()
def two_views(
    images: Tensor,
    label: Int[Tensor, " b"] | None = None,
    *,
    generator: torch.Generator,
    augmentation: Augmentation = SIMCLR_CIFAR,
    copy: EfferenceCopy = EXACT,
    compile: bool = False,
) -> ViewPair:
    """Two views of every image (b, 3, H, W), uint8 or float in [0, 1], on their device, with the actions between them.

    `generator` lives on the CPU; equal generators give equal views on every device. `valid` is False where a view is
    solarised; labels are -1 where none are given. `compile` fuses the pointwise work, which the first call compiles.
    ValueError for images that are not colour batches, or a generator on a device.

    >>> pair = two_views(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), generator=torch.Generator().manual_seed(0))
    >>> pair.x.shape, pair.action.shape, pair.label
    (torch.Size([2, 3, 32, 32]), torch.Size([2, 4]), tensor([-1, -1]))
    """
    check_images(images, generator)
    # rows 0 ... b - 1 are the views x, rows b ... 2b - 1 the views x'
    draw = augmentation.draw(2 * len(images), (images.shape[2], images.shape[3]), generator=generator)
    x, x_prime = draw.views(images, compile=compile)
    return label_pair(x, x_prime, draw.poses(copy), draw.changes.solarise, label, copy)


class TwoViews:
    """Makes the ViewPair of a batch: of whole images (images, labels), or of pairs that workers have cropped."""

    def __init__(self, augmentation: Augmentation, copy: EfferenceCopy, *, compile: bool = False) -> None:
        self.augmentation = augmentation
        self.copy = copy
        self.compile = compile

    @torch.no_grad()
    def __call__(
        self, batch: CroppedPair | tuple[Tensor, Int[Tensor, " b"] | None], generator: torch.Generator
    ) -> ViewPair:
        if not isinstance(batch, CroppedPair):
            images, label = batch
            return two_views(
                images,
                label,
                generator=generator,
                augmentation=self.augmentation,
                copy=self.copy,
                compile=self.compile,
            )
        check_images(batch.x, generator)
        both = torch.cat((batch.x, batch.x_prime))
        changes = self.augmentation.draw_photometric(len(both), both.shape[2], generator=generator)
        views = changes.apply(both, compile=self.compile)
        x, x_prime = views.chunk(2)
        to_views = poses(self.copy, torch.cat((batch.to_x, batch.to_x_prime)), changes)
        return label_pair(x, x_prime, to_views, changes.solarise, batch.label, self.copy)


def label_pair(
    x: Float[Tensor, "b 3 h w"],
    x_prime: Float[Tensor, "b 3 h w"],
    to_views: Float[Tensor, "2*b ..."],
    solarised: Bool[Tensor, " 2*b"],
    label: Int[Tensor, " b"] | None,
    copy: EfferenceCopy,
) -> ViewPair:
    """The pair of two ready views, with the action between their poses: those of x, then those of x'."""
    device = x.device
    # Labels are made in float64 and rounded once: equal crop heights give a scale of exactly 1, a bin's edge.
    action = copy(*to_views.double().chunk(2)).float()
    first, second = solarised.chunk(2)
    valid = ~(first | second)
    if label is None:
        label = torch.full((len(x),), -1)
    return ViewPair(
        x,
        x_prime,
        to_device(action, device),
        to_device(valid, device),
        to_device(label, device),
    )


def check_images(images: Tensor, generator: torch.Generator) -> None:
    """ValueError where views cannot be made of these images by this generator."""
    if generator.device.type != "cpu":
        raise ValueError(f"generator lives on {generator.device}; views are drawn on the host: use torch.Generator()")
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(
            f"images have shape {tuple(images.shape)}; need a batch (b, 3, h, w) of colour images. "
            "Grey images (b, 1, h, w) become colour by images.expand(-1, 3, -1, -1)"
        )
    if images.is_floating_point() and images.device.type == "cpu":  # where looking waits for nothing
        low, high = (float(end) for end in images.aminmax())
        if not (low >= 0.0 and high <= 1.0):
            cure = "divide by 255" if high > 2.0 else "scale or clamp them, before they are normalised"
            raise ValueError(f"float images lie between {low:.8g} and {high:.8g}; need values in [0, 1]: {cure}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; need uint8 in [0, 255] or floats in [0, 1]")
