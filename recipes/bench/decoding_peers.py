"""What decoding and cropping of files is measured against: torchvision's plain way, and decoding alone."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision import transforms

from stec.vision.decoding import decode
from stec.vision.folder import ImageFiles
from stec.vision.views import SIMCLR_IMAGENET


class PlainPairs(Dataset[tuple[Tensor, Tensor]]):
    """Item index: two views of a file as torchvision's documentation makes them, uint8, without their actions."""

    def __init__(self, files: ImageFiles, size: int) -> None:
        law = SIMCLR_IMAGENET
        self.files = files
        self.view = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=law.scale, ratio=law.ratio),
                transforms.RandomHorizontalFlip(law.p_flip),
                transforms.PILToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.files.path(index)) as image:
            colour = image.convert("RGB")
        return self.view(colour), self.view(colour)


class Decoded(Dataset[int]):
    """Item index: the number of pixels of a file, decoded for it as pretraining would."""

    def __init__(self, files: ImageFiles) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> int:
        return decode(self.files.path(index)).shape[1:].numel()


def keep_freed_memory(worker: int) -> None:
    """Lets the C allocator of a peer's worker keep what an image frees for the next one, as it does in ours by itself.

    glibc does so once it has seen a large block freed. Else the pages of each image are fresh ones, and in a worker
    that only decodes they cost more than the decoding.
    """
    torch.empty(16 << 20, dtype=torch.uint8)


def write_noise(folder: Path, n: int) -> None:
    """JPEG files of 500 x 375 pixels and some 110 kB, as ImageNet has them: coarse noise enlarged, fine noise on it."""
    generator = torch.Generator().manual_seed(0)
    for i in range(n):
        coarse = torch.rand(1, 3, 12, 16, generator=generator)
        fine = 0.07 * torch.randn(1, 3, 375, 500, generator=generator)
        pixels = (F.interpolate(coarse, size=(375, 500), mode="bicubic") + fine).clamp(0, 1).mul(255).byte()
        Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).save(folder / f"{i:04d}.jpg", quality=90)
