"""What a preset's settings become for the images of a folder: a batch that fits, a size of views, a held-out share.

Commands of many runs settle each of them, and look at the same files: within a process they are looked at once, until
`forget`.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from recipes.counting import Counting
from recipes.ranks import is_first
from recipes.run_folder import check_writable
from recipes.vision import inputs, splits
from recipes.vision.config import Config
from recipes.vision.networks import many_views
from recipes.vision.presets import PRESETS
from stec.vision.folder import ImageFiles
from stec.vision.held import several_sizes
from stec.vision.loading import load

SPLIT_SEED = 0
PATIENCE = 60  # seconds, for the first process to list and split the folder
MANY = 1_000  # images, whose check is worth a bar


@dataclasses.dataclass(frozen=True, eq=False)
class Looked:
    """The files to pretrain on; their headers are read only if somebody asks for their sizes."""

    files: ImageFiles

    @functools.cached_property
    def several(self) -> bool:
        """Whether they are of several sizes."""
        return several_sizes(self.files)


_LOOKED: dict[tuple[object, ...], Looked] = {}


def look(config: Config) -> Looked:
    """The files of this folder that the configuration pretrains on. ValueError as `inputs.training_files`."""
    own = config.preset in PRESETS and config.limit == PRESETS[config.preset].limit  # means at most so many
    key = (config.root and config.root.expanduser().absolute(), config.limit, own)
    if key not in _LOOKED:
        _LOOKED[key] = Looked(inputs.training_files(config)[0])
    return _LOOKED[key]


@functools.cache
def check_tests(root: Path, *, skip_broken: bool) -> str:
    """Decode the images that probes will be tested on, if there are any: a line on those to be left out, or none.

    Asked by one process. ValueError names broken ones unless `skip_broken`, and what is gone of a split.
    """
    try:
        _, files = inputs.labelled_folder(root)
    except ValueError:
        if root.is_file():
            raise
        return ""  # nothing to probe on, which `how_to_probe` says
    try:
        with Counting("checking test images") if len(files) >= MANY else nullcontext() as progress:
            checked = load(files, size=None, memory_budget=0, skip_broken=skip_broken, progress=progress)
    except ValueError as error:
        raise ValueError(f"of the images to test probes on, {error}") from error
    return f"test images: {checked.left_out}" if checked.left_out else ""


def forget() -> None:
    """Look at all files anew from now on."""
    _LOOKED.clear()
    check_tests.cache_clear()


def short_warm_up(config: Config, *, typed: Sequence[str] = ()) -> tuple[Config, list[str]]:
    """A preset's own warm-up ends before the last epoch; one that is `typed` stays, to be refused. And a line on it."""
    fitting = max(config.epochs - 1, 0)
    if "warmup_epochs" in typed or config.warmup_epochs <= fitting:
        return config, []
    line = f"warm-up of {fitting} epochs in place of the preset's {config.warmup_epochs}, of {config.epochs} in all"
    return dataclasses.replace(config, warmup_epochs=fitting), [line]


def settled(config: Config, *, typed: Sequence[str] = ()) -> tuple[Config, list[str]]:
    """The configuration as the images of its folder let it be, and a line on each change.

    What a preset says gives way: a warm-up longer than the run, a batch larger than the set, and views of the images'
    own size where they are of several. The settings whose names are `typed` stay, to be refused later if they do not
    fit. A function of the settings and the files, so that the same command settles on the same again; of other data
    than folders the warm-up alone is looked at. ValueError as `inputs.training_files`, for more than two views of
    images of several sizes, and for images to test probes on that are broken: better now than after hours.
    """
    config, lines = short_warm_up(config, typed=typed)
    if config.data != "folder" or inputs.sharded_folder(config):
        return config, lines
    if config.preset == "folder" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        lines.append("preset folder is meant for a GPU, and there is none: folder-small suits a laptop")
    looked = look(config)
    count = len(looked.files)
    fitting = count - count % max(config.devices, 1)  # each process takes the same share of a batch
    if "batch_size" not in typed and fitting >= 2 and config.batch_size > fitting:
        lines.append(f"batch {fitting} in place of the preset's {config.batch_size}: there are {count} images")
        config = dataclasses.replace(config, batch_size=fitting)
    law, many = config.augmentation, many_views(config)
    several = (law.size is None or many) and looked.several
    if several and many:
        raise ValueError(
            f"{config.preset} takes more than two views of an image, which images of several sizes do not have: "
            "save them all in one size, or choose a preset of two views"
        )
    if several:
        size = meant(config)
        lines.append(f"views of {size} pixels, since the images are of several sizes; --size N for others")
        config = dataclasses.replace(config, augmentation=dataclasses.replace(law, size=size))
    if config.root is not None and is_first():
        lines += filter(None, [check_tests(config.root.expanduser().absolute(), skip_broken=config.skip_broken)])
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
    it is of another folder or share, or where the images cannot be split. One whose images to test on are broken is
    not kept: they may be removed.
    """
    if config.data != "folder":
        raise ValueError(f"--holdout takes a share of a folder of images apart; {config.preset} reads no such folder")
    if config.root is None:
        raise ValueError("--holdout takes a share of a folder of images apart: give --root FOLDER")
    root = config.root.expanduser()
    if root.is_file():
        raise ValueError(f"{root} is a split already; leave --holdout out")
    if not root.is_dir():
        raise ValueError(f"{root} does not exist; give --root a folder of images")
    if inputs.folder_split(root, "test"):
        raise ValueError(f"{root} has a test split already; leave --holdout out")
    if inputs.sharded_folder(config):
        raise ValueError(
            f"{root} holds shards, of which no share can be held out; lay their images out as train/<class>/ and "
            "test/<class>/, write each as shards, or leave --holdout out"
        )
    if inputs.folder_split(root, "train") and not inputs.has_classes(root):  # else "train" is one of them
        raise ValueError(f"{root} has train/ and no test split; give --root {root / 'train'}, of which a share can go")
    if not inputs.has_classes(root):
        raise ValueError(
            f"{root} has no classes to hold a share of out for probes: {inputs.why_unlabelled(root)}, or leave "
            "--holdout out"
        )
    path = folder / splits.NAME
    if not path.is_file() and is_first():
        split = splits.make_split(root, share, seed=SPLIT_SEED)
        check_writable(folder)
        splits.write_split(split, path)
        try:
            check_tests(path.absolute(), skip_broken=config.skip_broken)
        except ValueError:
            path.unlink()
            raise
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
