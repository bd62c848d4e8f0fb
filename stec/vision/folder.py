"""Folders of image files: find them and label them, by folder or by list. `stec.vision.loading` decodes them."""

import dataclasses
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from stec.core.inert import named
from stec.vision.data import balanced

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


def scan(root: str | Path) -> list[Path]:
    """All image files below `root`, sorted; known by their extension, whatever its case.

    Names that begin with a dot are left out. Links are followed, but each real folder is read once, so a loop of
    links ends. Raises ValueError where the folder is missing, is a file, cannot be read or has no image.
    """
    folder = Path(root).expanduser()
    if not folder.exists():
        raise ValueError(f"{folder} does not exist; name a folder of images")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; name the folder that holds the images")
    found = sorted(path for path in _walk(folder) if path.name.lower().endswith(EXTENSIONS))
    if not found:
        raise ValueError(f"{folder} holds no image; looked at all levels for {', '.join(EXTENSIONS)}")
    return found


def _walk(root: Path) -> Iterator[Path]:
    """All files below `root`, each real folder once: first under its own name, then under links to it."""
    seen: set[tuple[int, int]] = set()
    folders = [root]
    links: list[Path] = []
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except PermissionError as error:
            raise ValueError(f"{folder} cannot be read; change its permissions, or leave it out") from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            if entry.is_symlink():
                if path.is_dir():
                    links.append(path)
                elif path.is_file() or not path.exists():  # no device and no pipe, whose reading would not end
                    yield path  # also a link to nothing: it is named when decoded, not passed over
            elif entry.is_dir():
                folders.append(path)
            elif entry.is_file():
                yield path


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files with labels (-1: unlabelled) and names of the classes; nothing is decoded yet.

    The paths lie in one tensor: workers share it, where a list of a million paths is copied into each of them.
    """

    root: Path
    encoded: UInt8[Tensor, " bytes"]  # paths relative to root, one after the other
    ends: Int[Tensor, " n"]
    labels: Int[Tensor, " n"]
    classes: tuple[str, ...]

    @classmethod
    def of(cls, root: Path, paths: Sequence[Path], labels: Int[Tensor, " n"], classes: Sequence[str]) -> "ImageFiles":
        """From paths that lie below `root`."""
        names = [os.fsencode(path.relative_to(root)) for path in paths]
        encoded = torch.from_numpy(np.frombuffer(b"".join(names), dtype=np.uint8).copy())
        ends = torch.tensor([len(name) for name in names], dtype=torch.int64).cumsum(0)
        return cls(root, encoded, ends, labels, tuple(classes))

    def __len__(self) -> int:
        """Number of files."""
        return len(self.ends)

    def path(self, index: int) -> str:
        """Where file `index` lies; a string, since making a Path takes half as long as decoding 32x32 pixels."""
        ends = self.ends.numpy()
        start = ends[index - 1] if index else 0
        return os.path.join(self.root, os.fsdecode(self.encoded.numpy()[start : ends[index]].tobytes()))

    def select(self, indices: Int[Tensor, " m"]) -> "ImageFiles":
        """The files at `indices`."""
        paths = [Path(self.path(i)) for i in indices.tolist()]
        return ImageFiles.of(self.root, paths, self.labels[indices], self.classes)

    def checksum(self) -> int:
        """CRC-32 of the names below `root`, and the labels; what the files hold is not read."""
        return zlib.crc32(self.encoded.numpy().data, zlib.crc32(self.labels.numpy().data))

    def subset(self, n: int, seed: int) -> "ImageFiles":
        """`n` files in their old order, as `ImageSet.subset`."""
        return self.select(balanced(self.labels, n, seed=seed))


def image_folder(root: str | Path, *, labelled: bool, classes: Sequence[str] | None = None) -> ImageFiles:
    """The images below `root`, at any depth; with `labelled`, the first folder below `root` names an image's class.

    `classes` are the folders in sorted order unless given, such as those of the training set for a test set.
    Raises ValueError for what `scan` refuses, images outside class folders, empty class folders and unknown classes.
    """
    folder = Path(root).expanduser()
    paths = scan(folder)
    if not labelled:
        return ImageFiles.of(folder, paths, torch.full((len(paths),), -1), ())
    firsts = [path.relative_to(folder).parts[0] for path in paths]
    loose = [path for path in paths if path.parent == folder]
    if loose:
        raise ValueError(
            f"{len(loose)} of {len(paths)} images lie in {folder} itself, such as {loose[0].name}; "
            "move them into one folder for each class, or pass labelled=False"
        )
    present = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if empty := sorted(set(present) - set(firsts)):
        raise ValueError(f"{folder} has class folders without an image: {_few(empty)}; fill or remove them")
    known = present if classes is None else list(classes)
    if unknown := sorted(set(present) - set(known)):
        raise ValueError(f"{folder} has folders that are no class: {_few(unknown)}; the classes are {_few(known)}")
    number = {name: i for i, name in enumerate(known)}
    return ImageFiles.of(folder, paths, torch.tensor([number[first] for first in firsts]), known)


def imagenet(root: str | Path, split: str) -> ImageFiles:
    """Split "train" or "val" of ImageNet (Deng et al. 2009) as class folders `root/<split>/<wnid>`; or of its like.

    The classes are train's folders for both splits. Raises ValueError where a split is missing or flat.
    """
    _check_split(split, ("train", "val"))
    folder = Path(root).expanduser()
    train = folder / "train"
    if split == "val" and any((folder / "val").glob("*.JPEG")):
        raise ValueError(
            f"{folder / 'val'} is flat; sort its images into one folder for each wnid, as "
            f"torchvision.datasets.ImageNet(root, 'val') does from the archives of the validation set and the devkit"
        )
    classes = None
    if split == "val" and train.is_dir():
        classes = sorted(entry.name for entry in train.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return image_folder(folder / split, labelled=True, classes=classes)


def tiny_imagenet(root: str | Path, split: str) -> ImageFiles:
    """Split "train" or "val" of Tiny-ImageNet as published: `train/<wnid>/images`, `val/images` with a list of labels.

    The classes are the sorted lines of `wnids.txt`, of which train has a folder each. Raises ValueError where one of
    these is missing, or images and annotations of val do not match one to one.
    """
    _check_split(split, ("train", "val"))
    folder = Path(root).expanduser()
    listing = folder / "wnids.txt" if split == "train" else folder / "val" / "val_annotations.txt"
    for needed in (folder / "wnids.txt", listing):
        if not needed.is_file():
            raise ValueError(f"{needed} does not exist; name the folder that Tiny-ImageNet's archive unpacks to")
    classes = sorted(_text(folder / "wnids.txt").split())
    if split == "train":
        files = image_folder(folder / "train", labelled=True, classes=classes)
        if absent := sorted(set(range(len(classes))) - set(files.labels.tolist())):
            raise ValueError(
                f"{folder / 'train'} has no folder for {_few([classes[i] for i in absent])} of wnids.txt; "
                "unpack the archive again, or take these lines out"
            )
        return files
    wnid = _annotations(listing, classes)
    paths = scan(folder / "val" / "images")
    names = {path.name for path in paths}
    if unlabelled := sorted(names - set(wnid)):
        raise ValueError(f"{listing} gives no class of wnids.txt to {_few(unlabelled)}; unpack the archive again")
    if missing := sorted(set(wnid) - names):
        raise ValueError(f"{folder / 'val' / 'images'} lacks {_few(missing)} of {listing}; unpack the archive again")
    labels = torch.tensor([classes.index(wnid[path.name]) for path in paths])
    return ImageFiles.of(folder / "val" / "images", paths, labels, classes)


def _annotations(listing: Path, classes: Sequence[str]) -> dict[str, str]:
    """The class of each image by its name. ValueError names the line that has none, or another than `classes`."""
    wnid: dict[str, str] = {}
    for number, line in enumerate(_text(listing).splitlines(), 1):
        name, *rest = line.split("\t")
        if line and (not rest or rest[0] not in classes):
            what = "has no tab and class"
            if rest:
                what = f"gives {named([name])} the class {named([rest[0]])}, which wnids.txt lacks"
            raise ValueError(f"{listing}, line {number}, {what}; unpack the archive again")
        if line:
            wnid[name] = rest[0]
    return wnid


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); unpack the archive again") from error


def _check_split(split: str, splits: tuple[str, ...]) -> None:
    if split not in splits:
        raise ValueError(f"split is {split!r}; there are {', '.join(splits)}")


def _few(names: Sequence[str]) -> str:
    return named(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
