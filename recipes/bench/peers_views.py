"""Two augmented views of every image under one law: made by this package, and by each public library in its own way.

An arm prepares uint8 images as they would lie in memory for it (a tensor, or decoded PIL images), and makes batches of
views of them. Libraries are imported where their arm is built. What an arm's views are is told as plain numbers, each
change by itself, so that the command can see that all arms follow the same law before it times them.
"""

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF
from torchvision.transforms import v2

from recipes.bench.views import Peer, real_images, rendered_images
from stec.vision.views import SIMCLR_CIFAR, SIMCLR_STL, Augmentation, two_views

Two = Callable[[Image.Image], list[Tensor]]  # two views (3, s, s) of an image, floats in [0, 1]
N_IMAGES = 256


class Pipeline(NamedTuple):
    """How an arm makes views."""

    prepare: Callable[[Tensor], Any]  # of uint8 images (b, 3, s, s), once: how they lie in memory
    views: Callable[[Any], tuple[Tensor, Tensor]]  # x and x', of each image one
    two: Two | None = None  # where it works by the image: its two views, for a DataLoader


def law_of(size: int) -> Augmentation:
    """CIFAR's views below 64 pixels (crop, flip, jitter, grey), else STL-10's, with blur and solarise."""
    return SIMCLR_CIFAR if size < 64 else SIMCLR_STL


def kernel_of(size: int) -> int:
    """The blur's kernel: a tenth of the image, odd."""
    kernel = int(0.1 * size)
    return kernel + (kernel % 2 == 0)


def sigma_of(law: Augmentation, size: int) -> tuple[float, float]:
    """The blur's standard deviation, in pixels of these views."""
    return law.sigma[0] * size / 224, law.sigma[1] * size / 224


def jitter_of(law: Augmentation) -> tuple[float, float, float, float]:
    """Brightness, contrast, saturation, hue."""
    s = law.strength
    return 0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s


def per_image(two: Two) -> Pipeline:
    """Images as PIL images, one after the other, and two batches of the views."""

    def views(pictures: list[Image.Image]) -> tuple[Tensor, Tensor]:
        pairs = [two(picture) for picture in pictures]
        return torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])

    return Pipeline(lambda images: [TF.to_pil_image(image) for image in images], views, two)


def stec(law: Augmentation, size: int, *, compiled: bool = False) -> Pipeline:
    """Ours, with the actions between the views."""
    generator = torch.Generator().manual_seed(0)

    def views(images: Tensor) -> tuple[Tensor, Tensor]:
        pair = two_views(images, generator=generator, augmentation=law, compile=compiled)
        return pair.x, pair.x_prime

    return Pipeline(lambda images: images, views)


def released(law: Augmentation, size: int) -> Pipeline:
    """As the authors' released code does, with the parameters of the crops."""
    peer = Peer(law, size)

    def views(pictures: list[Image.Image]) -> tuple[Tensor, Tensor]:
        made: Any = peer(pictures)
        return made[0], made[1]

    return per_image(lambda picture: [peer.view(picture)[0], peer.view(picture)[0]])._replace(views=views)


def torchvision(law: Augmentation, size: int) -> Pipeline:
    """The transforms v2 in the order of SimCLR: PIL images until they are grey, then tensors."""
    steps: list[torch.nn.Module] = [
        v2.RandomResizedCrop(size, scale=law.scale, ratio=law.ratio),
        v2.RandomHorizontalFlip(law.p_flip),
        v2.RandomApply([v2.ColorJitter(*jitter_of(law))], p=law.p_jitter),
        v2.RandomGrayscale(law.p_grayscale),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
    ]
    if law.p_blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(kernel_of(size), sigma_of(law, size))], p=law.p_blur))
    if law.p_solarise:
        steps.append(v2.RandomSolarize(law.threshold, p=law.p_solarise))
    view = v2.Compose(steps)
    return per_image(lambda picture: [view(picture), view(picture)])


def lightly(law: Augmentation, size: int) -> Pipeline:
    """lightly's SimCLRTransform; where views are solarised, its second view of BYOL twice, which does that besides.

    Without its normalisation, which no other arm has either. Its blur is Pillow's. ValueError for another ratio.
    """
    library = importlib.import_module("lightly.transforms")
    if law.ratio != (3 / 4, 4 / 3):
        raise ValueError(f"the ratio is {law.ratio}; lightly's transforms crop at 3/4 to 4/3 alone")
    settings: dict[str, Any] = {
        "input_size": size,
        "cj_prob": law.p_jitter,
        "cj_strength": law.strength,
        "cj_bright": 0.8,
        "cj_contrast": 0.8,
        "cj_sat": 0.8,
        "cj_hue": 0.2,
        "min_scale": law.scale[0],
        "random_gray_scale": law.p_grayscale,
        "gaussian_blur": law.p_blur,
        "sigmas": sigma_of(law, size),
        "hf_prob": law.p_flip,
        "normalize": None,
    }
    if law.p_solarise:
        view = library.BYOLView2Transform(**settings, solarization_prob=law.p_solarise)
        return per_image(
            importlib.import_module("lightly.transforms.multi_view_transform").MultiViewTransform([view] * 2)
        )
    return per_image(library.SimCLRTransform(**settings))


def kornia(law: Augmentation, size: int) -> Pipeline:
    """kornia's batched transforms, on a batch of floats."""
    K = importlib.import_module("kornia.augmentation")
    steps: list[torch.nn.Module] = [
        K.RandomResizedCrop((size, size), scale=law.scale, ratio=law.ratio, align_corners=False, cropping_mode="slice"),
        K.RandomHorizontalFlip(p=law.p_flip),
        K.ColorJitter(*jitter_of(law), p=law.p_jitter),
        K.RandomGrayscale(p=law.p_grayscale),
    ]
    if law.p_blur:
        kernel = kernel_of(size)
        steps.append(K.RandomGaussianBlur((kernel, kernel), sigma_of(law, size), p=law.p_blur))
    if law.p_solarise:
        steps.append(K.RandomSolarize((law.threshold, law.threshold), (0.0, 0.0), p=law.p_solarise))
    view = K.AugmentationSequential(*steps)

    @torch.no_grad()
    def views(images: Tensor) -> tuple[Tensor, Tensor]:
        floats = images.float().div_(255)
        return view(floats), view(floats)

    return Pipeline(lambda images: images, views)


PIPELINES: dict[str, Callable[[Augmentation, int], Pipeline]] = {
    "stec": stec,
    "stec-compiled": lambda law, size: stec(law, size, compiled=True),
    "released": released,
    "torchvision": torchvision,
    "lightly": lightly,
    "kornia": kornia,
}


def images_of(folder: str | None, n: int, size: int) -> UInt8[Tensor, "n 3 size size"]:
    """The first images of a folder, or rendered ones; repeated where there are fewer."""
    found = rendered_images(n, size) if folder is None else real_images(Path(folder), n, size)
    return found[torch.arange(n) % len(found)]


def describe(
    make: Callable[[Augmentation, int], Pipeline], law: Augmentation, images: UInt8[Tensor, "b 3 s s"]
) -> dict[str, float]:
    """What the views of these images are under a law, and each change alone on an image that shows it.

    Shares of views that are flipped, jittered, grey, blurred, solarised; the mean width of a crop as a share of the
    image's; mean brightness and its standard deviation over views; least and largest value, and the size.
    """
    b, _, _, size = images.shape
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  lightly draws from it
    whole = replace(
        law, scale=(1.0, 1.0), p_flip=0.0, p_jitter=0.0, p_grayscale=0.0, p_blur=0.0, p_solarise=0.0
    )  # the image as it is, but for a pixel at the border

    def views(law: Augmentation, images: Tensor) -> Float[Tensor, "2*b 3 s s"]:
        pipeline = make(law, size)
        return torch.cat(pipeline.views(pipeline.prepare(images.expand(b, 3, size, size).contiguous()))).float()

    def share(mask: Tensor) -> float:
        return float(mask.float().mean())

    column = torch.arange(size)
    ramp = (255 * column // (size - 1)).byte()
    stripes = (255 * (column // 4 % 2)).byte()
    colour = torch.tensor([180, 120, 60], dtype=torch.uint8)[:, None, None]

    geometric = views(replace(whole, scale=law.scale, p_flip=law.p_flip), ramp).mean(dim=(1, 2))
    rise = geometric[:, -1] - geometric[:, 0]
    jittered = views(replace(whole, p_jitter=law.p_jitter), colour)
    moved = (jittered.mean(dim=(2, 3)) - colour[:, 0, 0] / 255).abs().amax(dim=1)
    grey = views(replace(whole, p_grayscale=law.p_grayscale), colour)
    sigma = 224 / size  # one pixel of these views
    edges = (
        views(replace(whole, p_blur=law.p_blur, sigma=(sigma, sigma)), stripes).diff(dim=3).abs().amax(dim=(1, 2, 3))
    )
    solarised = views(replace(whole, p_solarise=law.p_solarise), torch.tensor(255, dtype=torch.uint8))
    everything = views(law, images)
    brightness = everything.mean(dim=(1, 2, 3))
    return {
        "flipped": share(rise < 0),
        "crop width": float(rise.abs().mean()),
        "jittered": share(moved > 0.01),
        "grey": share(grey.amax(dim=1).sub(grey.amin(dim=1)).amax(dim=(1, 2)) < 0.01),
        "blurred": share(edges < 0.6),
        "solarised": share(solarised.mean(dim=(1, 2, 3)) < 0.5),
        "brightness": float(brightness.mean()),
        "brightness spread": float(brightness.std()),
        "least": float(everything.min()),
        "largest": float(everything.max()),
        "size": everything.shape[-1],
    }


class ViewsWork:
    """A batch of pairs of views a piece."""

    lead = 0

    def __init__(self, arm: str, size: int, folder: str | None, batch: int, probes: int) -> None:
        make, law = PIPELINES[arm], law_of(size)
        images = images_of(folder, max(batch, probes), size)
        self.units = batch
        self.facts: dict[str, Any] = {"views": describe(make, law, images[:probes]), "device": "cpu"}
        self.pipeline = make(law, size)
        self.images = self.pipeline.prepare(images[:batch])

    def run(self) -> None:
        """Two views of every image."""
        self.pipeline.views(self.images)
