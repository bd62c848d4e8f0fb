"""Pairs of views with their actions, in pairs/s on one thread: the batched pipeline beside a per-image one.

The peer does to each PIL image what the authors' released code does (its data set's transform, then its batched blur
and solarisation, here for one view at a time): both crops, both flips, colour jitter, grey, tensor, blur, solarise, and
it returns the crops' parameters from which a label is made.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import transforms
from torchvision.transforms import functional as TF

from stec.vision.views import SIMCLR_CIFAR, SIMCLR_STL, Augmentation, two_views

N_IMAGES = 256


class Row(NamedTuple):
    """One comparison, each rate in pairs of views with actions per second of one core."""

    name: str
    image_size: int
    peer: float
    ours: float
    ratio: float


def rendered_images(n: int, size: int) -> UInt8[Tensor, "n 3 size size"]:
    """Noise with smooth structure: coarse noise enlarged, and a little fine noise on it."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, max(2, size // 8), max(2, size // 8), generator=generator)
    smooth = F.interpolate(coarse, size=(size, size), mode="bicubic")
    fine = 0.05 * torch.randn(n, 3, size, size, generator=generator)
    return (smooth + fine).clamp(0, 1).mul(255).byte()


def real_images(folder: Path, n: int, size: int) -> UInt8[Tensor, "n 3 size size"]:
    """The first n images of the folder and its subfolders, by name, cut to squares of this size."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[:n]
    if not paths:
        raise ValueError(f"{folder} holds no .jpg or .png image; give another folder, or none for rendered images")
    pictures = [Image.open(path).convert("RGB").resize((size, size)) for path in paths]
    return torch.stack([TF.pil_to_tensor(picture) for picture in pictures])


class Peer:
    """Per image, PIL in: the transforms of the released code, one view after the other."""

    def __init__(self, augmentation: Augmentation, size: int) -> None:
        s = augmentation.strength
        jitter = transforms.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)
        kernel = int(0.1 * size)
        low, high = (bound * size / 224 for bound in augmentation.sigma)
        steps: list[Callable[..., object]] = [
            transforms.RandomApply([jitter], p=augmentation.p_jitter),
            transforms.RandomGrayscale(p=augmentation.p_grayscale),
            transforms.ToTensor(),
        ]
        if augmentation.p_blur:
            blur = transforms.GaussianBlur(kernel + (kernel % 2 == 0), sigma=(low, high))
            steps.append(transforms.RandomApply([blur], p=augmentation.p_blur))
        if augmentation.p_solarise:
            steps.append(transforms.RandomSolarize(augmentation.threshold, p=augmentation.p_solarise))
        self.photometric = transforms.Compose(steps)
        self.augmentation = augmentation
        self.size = size

    def view(self, image: Image.Image) -> tuple[Tensor, tuple[int, int, int, int, bool]]:
        """One view (3, s, s), and its crop and flip."""
        law = self.augmentation
        crop = transforms.RandomResizedCrop.get_params(image, list(law.scale), list(law.ratio))
        view = TF.resized_crop(image, *crop, [self.size, self.size])
        flip = bool(torch.rand(1) < law.p_flip)
        if flip:
            view = TF.hflip(view)
        return self.photometric(view), (*crop, flip)

    def __call__(self, images: list[Image.Image]) -> object:
        """All pairs as two batches, with the parameters of their crops."""
        pairs = [(self.view(image), self.view(image)) for image in images]
        x, x_prime = (torch.stack([pair[k][0] for pair in pairs]) for k in range(2))
        return x, x_prime, torch.tensor([[*pair[0][1], *pair[1][1]] for pair in pairs])


def measure(
    image_size: int,
    *,
    folder: Path | None = None,
    compile: bool = False,
    seconds: float = 8.0,
) -> Iterator[Row]:
    """Runs peer and ours in turn on one thread for about `seconds` a row, and gives each one's best rate.

    Rows: the views of CIFAR below 64 pixels, else those of STL-10 without and with blur and solarisation. `folder`
    holds real images; without one they are rendered. Rates count this thread's CPU time, so other processes disturb
    them only through caches; the best of many short samples of each is taken.
    """
    images = rendered_images(N_IMAGES, image_size) if folder is None else real_images(folder, N_IMAGES, image_size)
    pictures = [TF.to_pil_image(image) for image in images]
    if image_size < 64:
        laws = {"crop, flip, jitter, grey": SIMCLR_CIFAR}
    else:
        plain = replace(SIMCLR_STL, p_blur=0.0, p_solarise=0.0)
        laws = {"crop, flip, jitter, grey": plain, "and blur, solarise": SIMCLR_STL}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, law in laws.items():
            yield _compare(name, law, images, pictures, compile, seconds)
    finally:
        torch.set_num_threads(threads)


def _compare(
    name: str,
    law: Augmentation,
    images: Tensor,
    pictures: list[Image.Image],
    compile: bool,
    seconds: float,
) -> Row:
    generator = torch.Generator().manual_seed(0)
    peer = Peer(law, images.shape[-1])
    some = max(1, len(pictures) // 8)  # short samples: the best of them met little disturbance

    def ours() -> object:
        return two_views(images, generator=generator, augmentation=law, compile=compile)

    for _ in range(3):
        ours()
    peer(pictures[:some])
    best = {"ours": 0.0, "peer": 0.0}
    end = time.perf_counter() + seconds
    part = 0
    while time.perf_counter() < end:
        chosen = pictures[part * some : (part + 1) * some]
        part = (part + 1) % (len(pictures) // some)
        best["peer"] = max(best["peer"], len(chosen) / _cpu_seconds(lambda: peer(chosen)))  # noqa: B023
        best["ours"] = max(best["ours"], len(images) / _cpu_seconds(ours))
    return Row(name, images.shape[-1], best["peer"], best["ours"], best["ours"] / best["peer"])


def _cpu_seconds(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start
