"""The images of a Config: for pretraining, and labelled for probing."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from recipes.vision.config import Config
from recipes.vision.presets import PRESETS
from recipes.vision.splits import read_split, split_files
from stec.core.inert import named
from stec.core.shards import is_sharded
from stec.vision.data import ImageSet, cifar10, cifar100, stl10
from stec.vision.folder import EXTENSIONS, ImageFiles, image_folder, imagenet, tiny_imagenet
from stec.vision.held import HeldImages, hold
from stec.vision.loading import load
from stec.vision.rendered import rendered_images
from stec.vision.shards import ShardedImages

Progress = Callable[[int, int], None]
Images = ImageSet | ImageFiles | ShardedImages

# The shorter side of images held in several sizes, over the views'. The smallest crops of the paper's law (8 % of the
# area) then have about as many pixels as their views, so what is shrunk away would have been lost in nearly any view.
HELD = 4
# Disjoint seeds: no rendered image serves both training and testing.
RENDERED_TRAIN, RENDERED_TEST, RENDERED_N = 0, 1, 10_000


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Images in memory, or image files or shards to be streamed, and what a person wants to know of them.

    Images of several sizes in memory (`HeldImages`) are for pretraining alone.
    """

    images: Images | HeldImages
    note: str  # one line: how many, from where, how many left out
    left_out: str = ""  # how many files could not be read and which, where that is so

    def image_size(self, fallback: int) -> tuple[int, int]:
        """(H, W) that the law of the crops is drawn for; files of many sizes count as squares of `fallback`."""
        if isinstance(self.images, ImageSet):
            h, w = self.images.images.shape[2:]
            return int(h), int(w)
        return fallback, fallback


def _root(config: Config) -> Path:
    if config.root is None:
        what = "your own images" if config.data == "folder" else f"{config.data} from a folder"
        raise ValueError(f"preset {config.preset!r} reads {what}: give --root FOLDER")
    return config.root.expanduser()


def _in_memory(
    config: Config, files: ImageFiles, size: int | None, progress: Progress | None, *, shapes: bool = False
) -> Inputs:
    """Decode files into memory where they fit, else leave them to be streamed.

    With `shapes`, images that are of several sizes, or too large, are held in their own shapes and shrunk if need be:
    squares cut at the centre would lose borders, and squeezed ones the shape, of what is to be learned from crops.
    """
    budget = int(config.memory_gb * 1e9)
    loaded = load(files, size=size, memory_budget=budget, skip_broken=config.skip_broken, progress=progress)
    note, why = f"{len(loaded.files):,} images", loaded.why_streamed
    if loaded.left_out:
        note += f", {loaded.left_out}"
    if loaded.resident is not None:
        return Inputs(loaded.resident, f"{note}, in memory", loaded.left_out)
    if shapes and config.augmentation.size is not None:
        short = HELD * config.augmentation.size
        if (held := hold(loaded.files, short=short, memory_budget=budget, progress=progress)) is not None:
            note += f", in memory in their own shapes, the shorter side at most {short} pixels"
            return Inputs(held, note, loaded.left_out)
        why = f"with a shorter side of {short} pixels, too, they take more than --memory-gb {config.memory_gb:g}"
    return Inputs(loaded.files, f"{note}, streamed ({why})", loaded.left_out)


def folder_split(root: Path, split: Literal["train", "test"]) -> Path | None:
    """The folder of a split below `root`, if the set is laid out so: train, and test or val."""
    names = ("train",) if split == "train" else ("test", "val", "valid")
    return next((root / name for name in names if (root / name).is_dir()), None)


def has_classes(folder: Path) -> bool:
    """Whether images lie in class folders: at least two folders, and no image beside them."""
    folders, beside = _entries(folder)
    return len(folders) >= 2 and not beside


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the images right in a folder."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    beside = [entry for entry in entries if entry.is_file() and entry.suffix.lower() in EXTENSIONS]
    return [entry for entry in entries if entry.is_dir()], beside


def why_unlabelled(folder: Path) -> str:
    """What keeps the images of a folder from having classes (`has_classes`), and the cure."""
    folders, beside = _entries(folder)
    if len(folders) >= 2 and beside:
        more = f" and {len(beside) - 1:,} more images lie" if len(beside) > 1 else " lies"
        return f"{named([beside[0].name])}{more} beside the class folders; move what has no class away"
    while len(folders) == 1 and not beside:  # a root above them
        folder = folders[0]
        if has_classes(folder):
            return f"the class folders lie in {folder}; give --root {folder}"
        folders, beside = _entries(folder)
    return "there are not two or more class folders"


def training_images(config: Config, progress: Progress | None = None) -> Inputs:
    """The images to pretrain on, labelled where labels are at hand. ValueError where they are missing or broken."""
    source = _training_images(config, progress)
    left = len(source.images) % config.batch_size if len(source.images) > config.batch_size > 0 else 0
    return dataclasses.replace(source, note=f"{source.note}, {left} left out of each epoch") if left else source


def _training_images(config: Config, progress: Progress | None) -> Inputs:
    images: ImageSet | None = None
    if folder := sharded_folder(config):
        shards = ShardedImages.open(folder)
        return read(config, shards if config.limit is None else shards.subset(config.limit, seed=0))
    if config.data == "rendered":
        images = ImageSet(
            *rendered_images(config.limit or RENDERED_N, size=config.augmentation.size or 32, seed=RENDERED_TRAIN)
        )
    elif config.data == "cifar10":
        images = cifar10(_root(config), train=True, download=config.download)
    elif config.data == "cifar100":
        images = cifar100(_root(config), train=True, download=config.download)
    elif config.data == "stl10":
        images = stl10(_root(config), "train+unlabeled", download=config.download)
    if images is not None:
        if config.limit is not None:
            images = images.subset(config.limit, seed=0)
        return Inputs(images, f"{len(images):,} images, in memory")
    files, note = training_files(config)
    source = _in_memory(config, files, None, progress, shapes=True)
    return dataclasses.replace(source, note=source.note + note)


def training_files(config: Config) -> tuple[ImageFiles, str]:
    """The files to pretrain on, nothing decoded yet, and what is to be said of them.

    A preset's own limit means at most so many; one that is given must be there. ValueError as `training_images`.
    """
    note, root = "", _root(config)
    if config.data in ("imagenet", "tiny-imagenet"):
        files = (imagenet if config.data == "imagenet" else tiny_imagenet)(root, "train")
    elif root.is_file():
        files, note = split_files(root, "train"), f", {len(read_split(root).test):,} held out"
    else:
        folder = root
        if folder_split(root, "test"):  # else "train" may be a class, as in bus, car, train
            folder = folder_split(root, "train") or root
        if not folder.is_dir():
            raise ValueError(f"{folder} does not exist; give --root a folder of images")
        files = image_folder(folder, labelled=has_classes(folder))
        if not files.classes:
            note = f", unlabelled ({why_unlabelled(folder)})"
    own = config.preset in PRESETS and config.limit == PRESETS[config.preset].limit
    if config.limit is not None and own and config.limit > len(files):
        return files, f"{note}, all there are of the {config.limit:,} that the preset takes"
    return files if config.limit is None else files.subset(config.limit, seed=0), note


def sharded_folder(config: Config) -> Path | None:
    """The folder of shards that the root names, or its train folder is, whatever layout their files had; or none."""
    if config.root is None or config.data == "rendered":
        return None
    root = config.root.expanduser()
    return next((folder for folder in (root, root / "train") if is_sharded(folder)), None)


def labelled_images(config: Config, progress: Progress | None = None) -> tuple[Inputs, Inputs]:
    """Labelled images to fit probes on and to test them on. ValueError where there are no labels."""
    train, test = labelled_sources(config)
    return read(config, train, progress), read(config, test, progress)


def labelled_sources(config: Config) -> tuple[Images, Images]:
    """As `labelled_images`, but no file is decoded yet: a part of them can be selected first."""
    train: Images
    test: Images
    if sharded_folder(config):
        train, test = _labelled_shards(config)
    elif config.data == "rendered":
        size = config.augmentation.size or 32
        train = ImageSet(*rendered_images(config.limit or RENDERED_N, size=size, seed=RENDERED_TRAIN))
        test = ImageSet(*rendered_images(2_000, size=size, seed=RENDERED_TEST))
    elif config.data in ("cifar10", "cifar100"):
        cifar = cifar10 if config.data == "cifar10" else cifar100
        train, test = (cifar(_root(config), train=part, download=config.download) for part in (True, False))
    elif config.data == "stl10":
        train, test = (stl10(_root(config), part, download=config.download) for part in ("train", "test"))
    else:
        train, test = _labelled_files(config)
    if config.limit is not None and config.limit < len(train):
        train = train.subset(config.limit, seed=0)
    return train, test


def read(config: Config, images: Images, progress: Progress | None = None, *, size: int | None = None) -> Inputs:
    """Files decoded into memory where they fit, cut to squares of `size` if given; others stay as they are."""
    if isinstance(images, ImageSet):
        return Inputs(images, f"{len(images):,} images")
    if isinstance(images, ShardedImages):
        count = len(images.source.index.shards)
        unlabelled = "" if images.classes else ", unlabelled"
        return Inputs(images, f"{len(images):,} images, streamed from {count:,} shards{unlabelled}")
    return _in_memory(config, images, size, progress)


def _labelled_shards(config: Config) -> tuple[ShardedImages, ShardedImages]:
    root = _root(config)
    folders = folder_split(root, "train"), folder_split(root, "test")
    if folders[0] is None or folders[1] is None:
        raise ValueError(
            f"{root} holds shards to pretrain on, but none to probe with; lay shards out as train/ and test/ below one "
            "folder, or probe the encoder on files with --root and --data"
        )
    train, test = ShardedImages.open(folders[0]), ShardedImages.open(folders[1])
    if not train.classes or train.classes != test.classes:
        raise ValueError(
            f"the shards in {folders[0]} and {folders[1]} have no classes, or not the same; write both again"
        )
    return train, test


def _labelled_files(config: Config) -> tuple[ImageFiles, ImageFiles]:
    root = _root(config)
    if config.data in ("imagenet", "tiny-imagenet"):
        files = imagenet if config.data == "imagenet" else tiny_imagenet
        return files(root, "train"), files(root, "val")
    return labelled_folder(root)


def labelled_folder(root: Path) -> tuple[ImageFiles, ImageFiles]:
    """Files of one's own to fit probes on and to test them on, by folders or by a split. ValueError as above."""
    if root.is_file():
        return split_files(root, "train"), split_files(root, "test")
    folders = folder_split(root, "train"), folder_split(root, "test")
    if folders[0] is None or folders[1] is None or not has_classes(folders[0]):
        raise ValueError(_why_unprobed(root, folders[1] and (folders[0] or root)))
    train = image_folder(folders[0], labelled=True)
    return train, image_folder(folders[1], labelled=True, classes=train.classes)


def _why_unprobed(root: Path, train: Path | None) -> str:
    """What is missing for probes: a folder, labels, or a test split, which can be held out of labels."""
    elsewhere = "or probe the encoder on another set with --root and --data"
    if not root.is_dir():
        return f"{root} does not exist; give --root a folder of images"
    if train is None and has_classes(root):
        return (
            f"{root} has classes, but no test split to probe with: pretrain with --holdout 0.2 to keep a fifth of each "
            f"class apart, lay it out as train/<class>/ and test/<class>/, {elsewhere}"
        )
    why = why_unlabelled(train or root)
    return f"{root} has no labels to probe with ({why}); lay it out as train/<class>/ and test/<class>/, {elsewhere}"


def at_size(config: Config, image_size: Sequence[int], size: int | None = None) -> Config:
    """The configuration with images of `size` pixels a side; None: as large as those of pretraining.

    Those had the size that the law of the views gives, or their own, `image_size`: images of another size are then
    brought to it. ValueError for a size that is none.
    """
    if size is not None and size < 1:
        raise ValueError(f"size is {size}; need the pixels of a side, such as 32")
    height, width = image_size
    size = size or config.augmentation.size or (height if height == width else None)
    return dataclasses.replace(config, augmentation=dataclasses.replace(config.augmentation, size=size))
