"""Images in shards: written from image files as they are, read by their place, decoded as files are."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, Int64, UInt8
from PIL import Image
from torch import Tensor

from stec.core.shards import ShardIndex, check_names
from stec.core.shards.files import ShardFiles
from stec.core.shards.writing import Sample, Sources
from stec.vision.data import balanced
from stec.vision.decoding import check, decode_bytes
from stec.vision.folder import ImageFiles

KIND = "images"
TAR = 1024  # bytes that the label takes, a member of its own


def image_sources(files: ImageFiles) -> Sources:
    """Image files as `write_shards` takes them: bytes unchanged, as `000000042.jpg`, and the label as `.cls`.

    Reading one raises ValueError where it cannot be decoded, as loading and streaming refuse it (`decoding.check`).
    """
    paths = [files.path(i) for i in range(len(files))]
    status = [os.stat(path) if os.path.exists(path) else None for path in paths]
    labels = files.labels.tolist()

    def read(i: int) -> Sample:
        check(paths[i], pixels=True)
        extension = os.path.splitext(paths[i])[1].lower().lstrip(".")
        members = {extension: Path(paths[i]).read_bytes()}
        if labels[i] >= 0:
            members["cls"] = str(labels[i]).encode()
        return Sample(members, (labels[i],))

    return Sources(
        kind=KIND,
        names=[os.path.relpath(path, files.root) for path in paths],
        identity=[
            f"{found.st_size} {found.st_mtime_ns} {label}" if found else "" for found, label in zip(status, labels)
        ],
        sizes=[each.st_size + TAR if each else 0 for each in status],
        read=read,
        details={"classes": list(files.classes)},
    )


@dataclasses.dataclass(frozen=True, eq=False)
class ShardedImages:
    """Images in shards with labels (-1: unlabelled) and names of the classes; as `ImageFiles`, nothing decoded yet."""

    source: ShardFiles
    at: Int64[Tensor, " n"]  # rows of the index
    labels: Int64[Tensor, " n"]
    shard: Int64[Tensor, " n"]
    classes: tuple[str, ...]

    @classmethod
    def open(cls, folder: str | Path) -> "ShardedImages":
        """The images of a folder of shards. ValueError for what `ShardIndex.open` refuses, and unknown labels."""
        index = ShardIndex.open(folder, kind=KIND)
        check_names(index, "classes")
        classes = tuple(index.details["classes"])
        if index.rows.shape[1] != 3:
            raise ValueError(f"{index.folder} has rows of {index.rows.shape[1]} numbers, not 3; write the shards again")
        labels = torch.from_numpy(np.array(index.rows[:, 2]))
        if not -1 <= int(labels.min()) <= int(labels.max()) < max(len(classes), 1):
            raise ValueError(f"{index.folder} has labels beyond its {len(classes)} classes; write the shards again")
        return cls(ShardFiles(index), torch.arange(len(index)), labels, index.shard_of, classes)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.at)

    @property
    def root(self) -> Path:
        """The folder of the shards."""
        return self.source.index.folder

    def select(self, indices: Int[Tensor, " m"]) -> "ShardedImages":
        """The images at `indices`."""
        source = ShardFiles(self.source.index, ahead=False)
        return ShardedImages(source, self.at[indices], self.labels[indices], self.shard[indices], self.classes)

    def subset(self, n: int, seed: int) -> "ShardedImages":
        """`n` images in their old order, as `ImageSet.subset`."""
        return self.select(balanced(self.labels, n, seed=seed))

    def name(self, index: int) -> str:
        """Shard and byte of an image, for messages; `sources.txt` beside the index tells its file."""
        row = int(self.at[index])
        shard = self.source.index.shards[int(self.shard[index])].name
        offset = int(self.source.index.rows[row, 0])
        return f"{self.root / shard}, byte {offset} (line {row + 1} of sources.txt)"

    def encoded(self, index: int) -> bytes:
        """The bytes of an image's file."""
        offset, size = self.source.index.rows[int(self.at[index]), :2].tolist()
        return self.source.read(int(self.shard[index]), offset, size)

    def decode_rgb(self, index: int) -> Image.Image:
        """As `stec.vision.decoding.decode_rgb` of the image's file."""
        return decode_bytes(self.encoded(index), self.name(index))

    def decode(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """As `stec.vision.decoding.decode` of the image's file."""
        return torch.from_numpy(np.array(self.decode_rgb(index))).permute(2, 0, 1)
