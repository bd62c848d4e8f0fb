"""Image sets that lie in memory as uint8, on the CPU or on a GPU: CIFAR, STL-10, and batches that are an index.

Folders of image files are read by `stec.vision.folder`; sets too large for memory are streamed by
`stec.vision.streaming`.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torchvision
from jaxtyping import Int, UInt8
from torch import Tensor

from stec.core.devices import to_device


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one size, their labels (-1: unlabelled) and the names of the classes, all on one device.

    Raises ValueError where shapes, types or labels do not fit together.
    """

    images: Tensor  # (n, 3, h, w) uint8
    labels: Tensor  # (n,) int64
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not images.is_contiguous():
            raise ValueError(
                f"images are {images.dtype} of shape {tuple(images.shape)}; need contiguous uint8 (n, 3, h, w)"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or labels.device != images.device:
            raise ValueError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)} on {labels.device}; "
                f"need int64 ({len(images)},) on {images.device}, -1 where unlabelled"
            )
        if len(labels) and not -1 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
            raise ValueError(
                f"labels reach from {int(labels.min())} to {int(labels.max())}; "
                f"need -1 to {len(self.classes) - 1}, one name in `classes` for each"
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same set on another device."""
        return ImageSet(self.images.to(device), self.labels.to(device), self.classes)

    def select(self, indices: Int[Tensor, " m"]) -> "ImageSet":
        """The images at `indices`."""
        return ImageSet(self.images[indices], self.labels[indices], self.classes)

    def checksum(self) -> int:
        """CRC-32 of pixels and labels: another number for other images, at some 2 GB a second."""
        return zlib.crc32(self.images.cpu().numpy().data, zlib.crc32(self.labels.cpu().numpy().data))

    def subset(self, n: int, seed: int) -> "ImageSet":
        """`n` images in their old order, drawn by `balanced`: a function of (set, n, seed) alone.

        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
        >>> ImageSet(torch.zeros(6, 3, 2, 2, dtype=torch.uint8), labels, ("cat", "dog")).subset(4, seed=0).labels
        tensor([0, 0, 1, 1])
        """
        return self.select(balanced(self.labels, n, seed=seed))


def balanced(labels: Int[Tensor, " n"], count: int, *, seed: int) -> Int[Tensor, " count"]:
    """Rising indices of `count` items with classes as equal as they can be; smaller choices lie within larger ones.

    A class that runs out gives what it has and the others give more. Unlabelled items (-1) count as one class.
    Raises ValueError where there are fewer than `count` items.
    """
    if not 1 <= count <= len(labels):
        raise ValueError(f"a subset of {count} from {len(labels)} images; choose from 1 to {len(labels)} (--limit)")
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    _, which, sizes = labels.cpu()[shuffled].unique(return_inverse=True, return_counts=True)
    by_class = which.argsort(stable=True)
    rank = torch.empty_like(which)  # how many of its class come before an item in the shuffled order
    rank[by_class] = torch.arange(len(which)) - (sizes.cumsum(0) - sizes)[which[by_class]]
    # Rounds: one of each class, then another one; within a round the classes come in random order.
    turn = torch.randperm(len(sizes), generator=generator)[which]
    chosen = shuffled[(rank * len(sizes) + turn).argsort()[:count]]
    return chosen.sort().values.to(labels.device)


def class_share(
    labels: Int[Tensor, " n"], share: float, *, classes: Sequence[str], seed: int
) -> Int[Tensor, " share_n"]:
    """Rising indices of a share of the labelled items: few labels for semi-supervised learning.

    Takes round(share * labelled items), as many of each class, their counts differing by one at most; where a class has
    too few for that, the share of every class, at least one item; all items where `share` is 1. A function of
    (labels, share, seed) alone, and a smaller share of equal classes lies within a larger one (see `balanced`). Raises
    ValueError where that is fewer than one item a class.

    >>> class_share(torch.tensor([0, 1, 0, 1, 0, 1, -1]), 1 / 3, classes=("cat", "dog"), seed=0)
    tensor([2, 5])
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; need more than 0 and at most 1, such as 0.01 for 1 %")
    labelled = (labels >= 0).nonzero()[:, 0]
    if not len(labelled):
        raise ValueError("no item has a label; give labelled images")
    if share == 1:
        return labelled
    count = round(share * len(labelled))
    if count < len(classes):
        raise ValueError(
            f"a share of {share:g} of {len(labelled)} labels is {count}, but there are {len(classes)} classes; "
            f"take at least {len(classes)} / {len(labelled)}, or more images"
        )
    chosen = labelled[balanced(labels[labelled], count, seed=seed)]
    counts = labels[chosen].bincount(minlength=len(classes))
    if int(counts.max() - counts.min()) <= 1:
        return chosen
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for number in range(len(classes)):
        own = (labels == number).nonzero()[:, 0]
        if not len(own):
            raise ValueError(f"no item of class {classes[number]} has a label; give labelled images of every class")
        parts.append(own[torch.randperm(len(own), generator=generator)[: max(1, round(share * len(own)))]])
    return torch.cat(parts).sort().values


def cifar10(root: str | Path, *, train: bool, download: bool = False) -> ImageSet:
    """CIFAR-10 (Krizhevsky 2009), 50,000 training or 10,000 test images of 32x32, from `root/cifar-10-batches-py`.

    Raises ValueError where it is not there and `download` is False.
    """
    return _cifar(torchvision.datasets.CIFAR10, root, train, download)


def cifar100(root: str | Path, *, train: bool, download: bool = False) -> ImageSet:
    """CIFAR-100 (Krizhevsky 2009), fine labels, as `cifar10`, from `root/cifar-100-python`."""
    return _cifar(torchvision.datasets.CIFAR100, root, train, download)


def stl10(
    root: str | Path,
    split: str,
    *,
    fold: int | None = None,
    download: bool = False,
) -> ImageSet:
    """STL-10 (Coates et al. 2011), 96x96, from `root/stl10_binary`: 5,000 train, 8,000 test, 100,000 unlabelled.

    `split` is "train", "test", "unlabeled" or "train+unlabeled"; images of the unlabelled split have label -1. `fold`
    0 to 9 picks one of the ten predefined folds of 1,000 labelled training images. Raises ValueError where the data
    are not there and `download` is False.
    """
    splits = ("train", "test", "unlabeled", "train+unlabeled")
    if split not in splits:
        raise ValueError(f"split is {split!r}; STL-10 has {', '.join(splits)}")
    if fold is not None and ("train" not in split or fold not in range(10)):
        raise ValueError(f"fold {fold} of split {split!r}; folds 0 to 9 exist in 'train' and 'train+unlabeled'")
    folder = torchvision.datasets.STL10.base_folder
    data = _torchvision_set(
        lambda: torchvision.datasets.STL10(_root(root), split=split, download=download), root, folder
    )
    images, labels = torch.from_numpy(data.data), torch.from_numpy(np.asarray(data.labels, dtype=np.int64))
    if fold is not None:
        labelled = int((labels >= 0).sum())
        listed = stl10_fold(Path(_root(root)) / folder / data.folds_list_file, fold, images=labelled)
        chosen = torch.cat((listed, torch.arange(labelled, len(labels))))
        images, labels = images[chosen], labels[chosen]
    return ImageSet(images.contiguous(), labels, tuple(data.classes))


def stl10_fold(path: Path, fold: int, *, images: int) -> Int[Tensor, " n"]:
    """The indices of a predefined fold, line `fold` of STL-10's list, which no checksum covers.

    ValueError names a file that is missing, or whose line holds anything but indices below `images`.
    """
    try:
        words = path.read_text(encoding="utf-8").split("\n")[fold].split()
        listed = [int(word) if word.isascii() and word.isdecimal() and len(word) < 10 else -1 for word in words]
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise ValueError(f"{path} lacks the list of fold {fold} ({error}); unpack the archive again") from error
    if not listed or not 0 <= min(listed) <= max(listed) < images:
        raise ValueError(f"{path}, line {fold + 1}, is no list of images from 0 to {images - 1}; unpack it again")
    return torch.tensor(listed)


def _cifar(kind: type[torchvision.datasets.CIFAR10], root: str | Path, train: bool, download: bool) -> ImageSet:
    data = _torchvision_set(lambda: kind(_root(root), train=train, download=download), root, kind.base_folder)
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.tensor(data.targets), tuple(data.classes))


def _root(root: str | Path) -> str:
    return str(Path(root).expanduser())


def _torchvision_set(build: Callable[[], Any], root: str | Path, folder: str) -> Any:
    """A torchvision data set; its complaint about missing files as one that names the folder and the cure."""
    try:
        return build()
    except RuntimeError as error:
        where = Path(_root(root)) / folder
        state = "does not match its checksums" if where.exists() else "does not exist"
        raise ValueError(
            f"{where} {state}; name the folder that holds {folder!r}, or pass download=True (--download) to fetch it"
        ) from error


@runtime_checkable
class Batches(Protocol):
    """Batches of indices, such as `stec.core.batches.EpochBatches`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Tensor]: ...


class ResidentLoader(Iterable[tuple[Tensor, Tensor]], Sized):
    """Batches of a set in memory: (b, 3, h, w) uint8 images and (b,) labels, gathered on the set's own device.

    >>> data = ImageSet(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 2, 3]), ("a", "b", "c", "d"))
    >>> [labels.tolist() for _, labels in ResidentLoader(data, [torch.tensor([3, 1])])]
    [[3, 1]]
    """

    def __init__(self, data: ImageSet, batches: Batches) -> None:
        self.data = data
        self.batches = batches

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[UInt8[Tensor, "b 3 h w"], Int[Tensor, " b"]]]:
        device = self.data.images.device
        for index in self.batches:
            index = to_device(index, device)
            yield self.data.images[index], self.data.labels[index]
