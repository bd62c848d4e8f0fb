"""Images too large for memory, or of several sizes: workers cut two views of each on uint8, with the draw that labels
them.

An image is a file, or lies in a shard (`stec.vision.shards`), and is decoded; or it is held (`stec.vision.held`).
Every item's randomness is a function of (seed, epoch, index), so the number of workers changes nothing.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from torchvision.transforms.v2 import functional

from stec.core.actions import step_seed
from stec.core.batches import EpochBatches
from stec.vision.affine import CropFlip
from stec.vision.decoding import centre, decode, decode_rgb
from stec.vision.folder import ImageFiles
from stec.vision.held import HeldImages
from stec.vision.shards import ShardedImages
from stec.vision.views import CroppedPair

Source = ImageFiles | ShardedImages | HeldImages


class CroppedItem(NamedTuple):
    """One image's two views and poses, before `collate`; the fields of CroppedPair without the batch."""

    x: UInt8[Tensor, "3 s s"]
    x_prime: UInt8[Tensor, "3 s s"]
    to_x: Float[Tensor, "3 3"]  # float64
    to_x_prime: Float[Tensor, "3 3"]
    label: int


class CroppedPairs(Dataset[CroppedItem]):
    """Item (index, seed): two crops of an image, resized to `size` pixels, flipped, with their poses.

    The views equal `CropFlip.apply` of the same draws (bilinear, antialiased) up to the rounding to uint8. The scaled
    decoding of JPEG is not used: it would move the crops' edges off the pixels that the poses name.
    """

    def __init__(
        self,
        files: Source,
        size: int,
        *,
        scale: tuple[float, float],
        ratio: tuple[float, float],
        p_flip: float,
    ) -> None:
        self.files = files
        self.size = size
        self.scale = scale
        self.ratio = ratio
        self.p_flip = p_flip

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def __getitem__(self, key: tuple[int, int]) -> CroppedItem:
        index, seed = key
        files = self.files
        image = decode(files.path(index)) if isinstance(files, ImageFiles) else files.decode(index)
        generator = torch.Generator().manual_seed(seed)
        first, second = (self._draw(image, generator) for _ in range(2))
        return CroppedItem(
            self._view(image, first),
            self._view(image, second),
            first.matrix(torch.float64)[0],
            second.matrix(torch.float64)[0],
            int(self.files.labels[index]),
        )

    def _draw(self, image: UInt8[Tensor, "3 h w"], generator: torch.Generator) -> CropFlip:
        height, width = image.shape[1:]
        return CropFlip.draw(
            1, (height, width), scale=self.scale, ratio=self.ratio, p_flip=self.p_flip, generator=generator
        )

    def _view(self, image: UInt8[Tensor, "3 h w"], draw: CropFlip) -> UInt8[Tensor, "3 s s"]:
        box = [int(side) for side in draw[:4]]  # top, left, height, width
        view: Tensor = functional.resized_crop(image, *box, size=[self.size, self.size], antialias=True)
        return (view.flip(-1) if draw.flip else view).contiguous()


def collate(items: list[CroppedItem]) -> CroppedPair:
    """A batch of items: (b, 3, h, w) uint8 views, (b, 3, 3) poses, (b,) labels."""
    return CroppedPair(*default_collate(items))


class EvalImages(Dataset[tuple[Tensor, int]]):
    """Item index: the central square of an image as uint8 (3, size, size), and its label, for probes.

    The shorter side is resized to 256/224 of `size`, then the centre is cut out (He et al. 2016).
    """

    def __init__(self, files: Source, size: int) -> None:
        self.files = files
        self.size = size

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 s s"], int]:
        files = self.files
        whole = decode_rgb(files.path(index)) if isinstance(files, ImageFiles) else files.decode_rgb(index)
        image = centre(whole, resize=round(self.size * 256 / 224), crop=self.size)
        return functional.pil_to_tensor(image), int(self.files.labels[index])


class SeededBatches(Sampler[list[tuple[int, int]]]):
    """Batches of keys (index, seed) from batches of indices: a sampler for CroppedPairs."""

    def __init__(self, batches: EpochBatches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # Two mixings: stream 1 orders the epoch, and no index may share another stream's seed.
        epoch_seed = step_seed(self.batches.seed, self.batches.epoch, stream=-1)
        for indices in self.batches:
            yield [(index, step_seed(epoch_seed, index)) for index in indices.tolist()]


def streaming_loader(dataset: CroppedPairs, batches: EpochBatches, *, workers: int, pin_memory: bool) -> DataLoader:
    """Batches of CroppedPair in the order of `batches`, decoded and cut in `workers` processes (0: in this one).

    Workers live through all epochs. The batches are the same for any number of workers, and after an interruption.
    """
    if batches.n != len(dataset):
        raise ValueError(f"the batches index {batches.n} images, the data set has {len(dataset)}; use equal numbers")
    return DataLoader(
        dataset,
        batch_sampler=SeededBatches(batches),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
    )
