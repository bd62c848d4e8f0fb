"""A held-out share of class folders, as a file: which images train and which test, by name.

`--root` takes such a file wherever it takes a folder of images, so that evaluation, fine-tuning and comparisons have
exactly the images that training left out, whatever was added to the folder since.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from recipes.settings import typed
from stec.core.files import whole
from stec.core.inert import named
from stec.vision.folder import ImageFiles, image_folder

NAME = "split.json"  # in a run's folder


@dataclasses.dataclass(frozen=True)
class Split:
    """The names below `root` of the images of each part; the first folder of a name is the image's class."""

    root: str
    holdout: float
    seed: int
    classes: tuple[str, ...]
    train: tuple[str, ...]
    test: tuple[str, ...]


def held_out(labels: Int[Tensor, " n"], share: float, *, seed: int) -> Int[Tensor, " m"]:
    """Rising indices of round(share * images of a class), at least one, of every class: a function of (labels, seed).

    A smaller share lies within a larger one. ValueError for a share that is none, or a class of a single image.

    >>> held_out(torch.tensor([0, 0, 0, 0, 1, 1]), 0.25, seed=0)
    tensor([0, 4])
    """
    if not 0 < share < 1:
        raise ValueError(f"holdout is {share}; need a share of the images above 0 and below 1, such as 0.2")
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for number in labels.unique().tolist():
        own = (labels == number).nonzero()[:, 0]
        if len(own) < 2:
            raise ValueError(f"class {number} has a single image, of which no share can be held out; add more of it")
        count = min(max(1, round(share * len(own))), len(own) - 1)
        parts.append(own[torch.randperm(len(own), generator=generator)[:count]])
    return torch.cat(parts).sort().values


def make_split(root: Path, holdout: float, *, seed: int) -> Split:
    """The split of a folder of class folders. ValueError as `image_folder` and `held_out`."""
    files = image_folder(root, labelled=True)
    counts = files.labels.bincount(minlength=len(files.classes)).tolist()
    if single := [name for name, count in zip(files.classes, counts) if count == 1]:
        raise ValueError(
            f"{root / single[0]} holds a single image, of which no share can be held out; add images, or remove it"
        )
    test = held_out(files.labels, holdout, seed=seed)
    left = torch.ones(len(files), dtype=torch.bool)
    left[test] = False
    names = [str(Path(files.path(i)).relative_to(files.root)) for i in range(len(files))]
    parts = [tuple(names[i] for i in rows.tolist()) for rows in (left.nonzero()[:, 0], test)]
    return Split(str(files.root.absolute()), holdout, seed, files.classes, *parts)


def write_split(split: Split, path: Path) -> None:
    """The split as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as file:
        file.write((json.dumps(dataclasses.asdict(split), indent=1) + "\n").encode())


def read_split(path: Path) -> Split:
    """What `write_split` wrote. ValueError names the file where it is none, or its names lead out of its folder."""
    try:
        content: Any = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no split of images; give --root a folder, or a run's {NAME}") from error
    if not isinstance(content, dict) or not {"classes", "train", "test"} & content.keys():  # such as a config.json
        raise ValueError(f"{path} is no split of images; give --root a folder, or a run's {NAME}")
    split = typed(Split, content, source=path)
    for name in (*split.train, *split.test):
        parts = Path(name).parts
        if len(parts) < 2 or parts[0] not in split.classes or ".." in parts:
            raise ValueError(f"{path} names {named([name])}, which lies in none of its classes; make the split again")
    return split


def split_files(path: Path, part: Literal["train", "test"]) -> ImageFiles:
    """The files of one part, labelled. ValueError as `read_split`, and where the folder is gone."""
    split = read_split(path)
    root = Path(split.root)
    if not root.is_dir():
        raise ValueError(f"{path} splits {named([split.root])}, which does not exist; put the images back there")
    names = split.train if part == "train" else split.test
    if gone := [name for name in names if not (root / name).exists()]:
        raise ValueError(
            f"{path} names {len(gone)} images that are gone from {named([split.root])}, such as {named(gone[:1])}; "
            f"put them back, train another run on what is left, or remove {path} if no run was trained with it"
        )
    number = {name: i for i, name in enumerate(split.classes)}
    labels = torch.tensor([number[Path(name).parts[0]] for name in names], dtype=torch.int64)
    return ImageFiles.of(root, [root / name for name in names], labels, split.classes)
