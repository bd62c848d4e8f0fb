"""What reading shards is measured against: the bytes of single files, and what webdataset and litdata read of them."""

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stec.core.batches import EpochBatches
from stec.core.shards import ShardBatches
from stec.vision.folder import ImageFiles
from stec.vision.shards import ShardedImages

Arm = Callable[[int], Iterator[tuple[bytes, int]]]  # the samples of an epoch: the encoded image, its label


def from_files(files: ImageFiles) -> Arm:
    """Each file opened, read and closed, in a random order."""

    def epoch(number: int) -> Iterator[tuple[bytes, int]]:
        order = EpochBatches(len(files), batch_size=min(32, len(files)), seed=number)
        for batch in order:
            for i in batch.tolist():
                with open(files.path(i), "rb", buffering=0) as file:
                    yield file.read(), int(files.labels[i])

    return epoch


def from_shards(shards: ShardedImages) -> Arm:
    """Ours: by offset, in the order of shards; files are closed before each epoch."""

    def epoch(number: int) -> Iterator[tuple[bytes, int]]:
        shards.source.close()
        order = ShardBatches(shards.shard, batch_size=min(32, len(shards)), seed=number)
        for batch in order:
            for i in batch.tolist():
                yield shards.encoded(i), int(shards.labels[i])

    return epoch


def from_webdataset(shards: ShardedImages) -> Arm:
    """The library's own pipeline over the same tar files: shards shuffled, then a buffer of 1,000 samples."""
    library = importlib.import_module("webdataset")
    urls = [str(shards.root / shard.name) for shard in shards.source.index.shards]

    def epoch(number: int) -> Iterator[tuple[bytes, int]]:
        stream = library.WebDataset(urls, shardshuffle=len(urls), seed=number, empty_check=False).shuffle(1_000)
        for sample in stream:
            content = next(value for key, value in sample.items() if key != "cls" and not key.startswith("__"))
            yield content, int(sample.get("cls", b"-1"))

    return epoch


def from_litdata(files: ImageFiles, folder: Path, chunk_bytes: int) -> Arm:
    """litdata's chunks of the same bytes, each with its number, written first, and its shuffle."""
    library = importlib.import_module("litdata")
    cache = library.streaming.Cache(str(folder), chunk_bytes=chunk_bytes)
    for i in range(len(files)):
        cache[i] = {"image": Path(files.path(i)).read_bytes(), "number": i}
    cache.done()
    cache.merge()

    def epoch(number: int) -> Iterator[tuple[bytes, int]]:
        for sample in library.StreamingDataset(str(folder), shuffle=True, seed=number):
            yield sample["image"], sample["number"]

    return epoch


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def numbers(items: list[dict[str, Any]]) -> list[int]:
    """The numbers of a batch's images."""
    return [int(item["number"]) for item in items]


def litdata_resumes(folder: Path, *, workers: int, workers_after: int, at: int) -> str:
    """Whether litdata's loader, stopped after `at` batches of 16, goes on with what the unbroken epoch has left."""
    library = importlib.import_module("litdata")

    def loader(processes: int) -> Any:
        data = library.StreamingDataset(str(folder), shuffle=True, seed=0)
        return library.StreamingDataLoader(data, batch_size=16, num_workers=processes, collate_fn=numbers)

    whole = list(loader(workers))
    torn = loader(workers)
    for number, _ in enumerate(torn, 1):
        if number == at:
            break
    state = torn.state_dict()
    resumed = loader(workers_after)
    try:
        resumed.load_state_dict(state)
        rest = list(resumed)
    except Exception as error:  # what it says is the result
        return f"refused: {type(error).__name__}: {error}"
    return "the same batches" if rest == whole[at:] else "other batches"
