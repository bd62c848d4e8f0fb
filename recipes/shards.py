"""Write a data set as shards, few large files: python -m recipes.shards FOLDER --out SHARDS.

  python -m recipes.shards ImageNet --data imagenet --out shards/train         class folders, or any folder of images
  python -m recipes.shards cache/libri --out shards/libri                      what recipes.audio.prepare made
  python -m recipes.shards shards/train --verify                               compare all checksums
  python -m recipes.shards shards/train --url https://host/bucket/train        read them from there, from now on

Training takes a folder of shards wherever it takes one of images (--root) or a prepared corpus (--corpus). What is
interrupted goes on with the same command. Needs webdataset: pip install -e ".[shards]". More in docs/shards.md.
"""

import dataclasses
import math
import os
import time
from pathlib import Path
from typing import Literal

import tyro

from recipes.counting import Counting
from recipes.terminal import command, say
from recipes.vision.inputs import has_classes
from stec.audio import corpus
from stec.audio.corpus import Corpus
from stec.audio.shards import speech_sources
from stec.core.shards import ShardIndex, is_sharded
from stec.core.shards.checks import locate, verify
from stec.core.shards.files import webdataset_part
from stec.core.shards.writing import Sources, write_shards
from stec.vision.folder import image_folder, imagenet, tiny_imagenet
from stec.vision.shards import image_sources


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to write as shards, or which shards to look at."""

    folder: tyro.conf.Positional[Path]  # of images, or a prepared corpus; with --verify or --url, of shards
    out: Path | None = None  # the folder of the shards
    data: Literal["folder", "imagenet", "tiny-imagenet"] = "folder"  # how images are laid out
    split: Literal["train", "val"] = "train"  # of ImageNet or Tiny-ImageNet
    shard_mb: float = 256.0  # of each file, about
    seed: int = 0  # of the order in which samples are spread over the shards
    workers: int = os.cpu_count() or 1  # threads that read and check
    skip_broken: bool = False  # leave unreadable images out; otherwise they are listed and nothing is finished
    verify: bool = False  # compare the checksums of shards and look at every member
    url: str | None = None  # where the shards lie that this index speaks of; "" for beside it again
    cache_gb: float = 100.0  # of shards at --url that are kept on this machine


def find(arguments: Arguments) -> Sources:
    """What the folder holds: a prepared corpus, whose checksums are compared, or images."""
    folder = arguments.folder.expanduser()
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"{folder} {what}; name a folder of images or a prepared corpus")
    if is_sharded(folder):
        raise ValueError(f"{folder} holds shards already; name what they are to be written from")
    if any((folder / name).is_file() for name in (corpus.INDEX, corpus.JOURNAL)):
        return speech_sources(Corpus.open(folder, verify=True))
    if arguments.data == "folder":
        parts = [name for name in ("train", "val", "test") if (folder / name).is_dir()]
        if len(parts) > 1:
            raise ValueError(
                f"{folder} holds {' and '.join(parts)}, which are no classes: write each, such as {folder / parts[0]} "
                f"with --out SHARDS/{parts[0]}, and give --root SHARDS to what reads them"
            )
        return image_sources(image_folder(folder, labelled=has_classes(folder)))
    files = imagenet if arguments.data == "imagenet" else tiny_imagenet
    return image_sources(files(folder, arguments.split))


def write(arguments: Arguments, out: Path) -> None:
    """Write the shards and say what there is."""
    webdataset_part("writer", "TarWriter")  # whether it is there shows before anything is read or written
    sources = find(arguments)
    if out.resolve().is_relative_to(arguments.folder.expanduser().resolve()):
        raise ValueError(f"{out} lies in the folder that is read; choose another folder (--out)")
    if not 0 < arguments.shard_mb < math.inf:
        raise ValueError(f"shards of {arguments.shard_mb} MB; give the size of each, such as --shard-mb 256")
    start = time.monotonic()
    with Counting(f"writing {sources.kind}") as progress:
        done = write_shards(
            sources,
            out,
            shard_bytes=int(arguments.shard_mb * 1e6),
            seed=arguments.seed,
            workers=arguments.workers,
            skip_broken=arguments.skip_broken,
            progress=progress,
        )
    index = ShardIndex.open(out)
    size = sum(shard.bytes for shard in index.shards)
    say(f"{out}: {len(index):,} samples of {index.kind} in {len(index.shards):,} shards, {size / 1e6:,.1f} MB")
    if done.resumed == done.shards:
        say("nothing was to do: shards of these sources are there (--verify compares their content)")
    else:
        kept = f", {done.resumed} shards were there from an earlier run" if done.resumed else ""
        say(f"written in {time.monotonic() - start:.1f} s{kept}")
    if done.left_out:
        say(f"{len(done.left_out)} left out, such as: {done.left_out[0]}")


def main(argv: list[str] | None = None) -> None:
    """The command line; ValueError for a user's mistake."""
    arguments = tyro.cli(Arguments, args=argv, prog="python -m recipes.shards", description=__doc__)
    folder = arguments.folder.expanduser()
    if (arguments.out is not None) + arguments.verify + (arguments.url is not None) != 1:
        raise ValueError("give one of --out SHARDS, to write, --verify, to compare checksums, and --url")
    if arguments.url is not None:
        locate(folder, arguments.url or None, cache_bytes=int(arguments.cache_gb * 1e9))
        say(f"{folder} is read from {arguments.url or 'itself'}")
    elif arguments.verify:
        index = ShardIndex.open(folder)
        with Counting("verifying shards") as progress:
            verify(index, progress=progress)
        say(f"{folder}: {len(index.shards):,} shards with {len(index):,} samples are whole")
    elif arguments.out is not None:
        try:
            write(arguments, arguments.out.expanduser())
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; the same command goes on where it stopped") from None


if __name__ == "__main__":
    command(main)
