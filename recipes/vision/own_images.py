"""What a preset's settings become for the images of a folder: a batch that fits, a size of views, a held-out share."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from recipes.ranks import is_first
from recipes.vision import inputs, splits
from recipes.vision.config import Config
from recipes.vision.networks import many_views
from recipes.vision.presets import PRESETS
from stec.vision.held import several_sizes

SPLIT_SEED = 0
PATIENCE = 60  # seconds, for the first process to list and split the folder


def settled(config: Config, *, typed: Sequence[str] = ()) -> tuple[Config, list[str]]:
    """The configuration as the images of its folder let it be, and a line on each change.

    What a preset says gives way: a batch larger than the set, and views of the images' own size where they are of
    several. The settings whose names are `typed` stay, to be refused later if they do not fit. A function of the
    settings and the files, so that the same command settles on the same again; other data than folders stay too.
    ValueError as `inputs.training_files`, and for more than two views of images of several sizes.
    """
    lines: list[str] = []
    if config.data != "folder" or inputs.sharded_folder(config):
        return config, lines
    if config.preset == "folder" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        lines.append("preset folder is meant for a GPU, and there is none: folder-small suits a laptop")
    files, _ = inputs.training_files(config)
    fitting = len(files) - len(files) % max(config.devices, 1)  # each process takes the same share of a batch
    if "batch_size" not in typed and fitting >= 2 and config.batch_size > fitting:
        lines.append(f"batch {fitting} in place of the preset's {config.batch_size}: there are {len(files)} images")
        config = dataclasses.replace(config, batch_size=fitting)
    law, many = config.augmentation, many_views(config)
    several = (law.size is None or many) and several_sizes(files)
    if several and many:
        raise ValueError(
            f"{config.preset} takes more than two views of an image, which images of several sizes do not have: "
            "save them all in one size, or choose a preset of two views"
        )
    if several:
        size = meant(config)
        lines.append(f"views of {size} pixels, since the images are of several sizes; --size N for others")
        config = dataclasses.replace(config, augmentation=dataclasses.replace(law, size=size))
    return config, lines


def meant(config: Config) -> int:
    """The size of the images that a preset without one was made for: those of STL-10, or of CIFAR.

    >>> meant(PRESETS["tiny-stec"])
    32
    """
    return 96 if config.preset in PRESETS and PRESETS[config.preset].data == "stl10" else 32


def hold_out(config: Config, share: float, folder: Path) -> tuple[Config, str]:
    """The configuration reading a split of its folder that leaves a share of each class out, and a line on it.

    The split lies in `folder`, and is the same for every seed of a training: runs of several seeds are tested on the
    same images. One that is there already is never written over, since a run may have trained on it: ValueError where
    it is of another folder or share, or where the images cannot be split.
    """
    if config.data != "folder" or config.root is None or inputs.sharded_folder(config):
        raise ValueError(f"--holdout takes a share of a folder of images apart; {config.preset} reads no such folder")
    root = config.root.expanduser()
    if root.is_file():
        raise ValueError(f"{root} is a split already; leave --holdout out")
    if not root.is_dir():
        raise ValueError(f"{root} does not exist; give --root a folder of images")
    if inputs.folder_split(root, "test"):
        raise ValueError(f"{root} has a test split already; leave --holdout out")
    if inputs.folder_split(root, "train") and not inputs.has_classes(root):  # else "train" is one of them
        raise ValueError(f"{root} has train/ and no test split; give --root {root / 'train'}, of which a share can go")
    if not inputs.has_classes(root):
        raise ValueError(
            f"{root} has no classes to hold a share of out for probes (two or more class folders, no image beside "
            "them); leave --holdout out"
        )
    path = folder / splits.NAME
    if not path.is_file() and is_first():
        splits.write_split(splits.make_split(root, share, seed=SPLIT_SEED), path)
    for _ in range(PATIENCE):  # of several processes the first one writes
        if path.is_file():
            break
        time.sleep(1.0)
    if not path.is_file():
        raise ValueError(f"the first process has written no {path} for {PATIENCE} s; see what it says, and start again")
    split = splits.read_split(path)
    if (Path(split.root), split.holdout) != (root.absolute(), share):
        raise ValueError(
            f"{path} holds {split.holdout:g} of {split.root} out, and a run may have trained on the rest; "
            "give the same --holdout and --root, or another folder for the run"
        )
    line = f"{len(split.test):,} of {len(split.train) + len(split.test):,} images held out for probes: {path}"
    return dataclasses.replace(config, root=path), line


def how_to_probe(config: Config, checkpoint: Path) -> str:
    """What to do with a finished run: the command that probes it, or why there is nothing to probe it on."""
    evaluate = f"python -m recipes.vision.evaluate --checkpoint {checkpoint}"
    if config.data == "folder":
        try:
            inputs.labelled_sources(config)
        except ValueError as reason:
            return f"the encoder: {checkpoint}\nnot probed: {reason}\nthere: {evaluate} --root LABELLED"
    return f"Now: {evaluate}"
