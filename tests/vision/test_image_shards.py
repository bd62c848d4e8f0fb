"""Images from shards are those of their files: pixels, views, labels, batches, at any step and with any workers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stec.core.shards import ShardBatches, ShardIndex
from stec.core.shards.writing import write_shards
from stec.vision.decoding import decode
from stec.vision.folder import ImageFiles, image_folder
from stec.vision.shards import ShardedImages, image_sources
from stec.vision.streaming import CroppedPairs, EvalImages, streaming_loader

# Python 3.12 warns wherever a process with threads, such as torch's own, starts another one by fork.
may_fork = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
LAW: dict[str, Any] = {"scale": (0.1, 1.0), "ratio": (3 / 4, 4 / 3), "p_flip": 0.5}


@pytest.fixture
def files(tmp_path: Path) -> ImageFiles:
    """Thirty images of as many sizes in two classes, some greyscale, some PNG, with names that a tar would not like."""
    for i in range(30):
        pixels = np.random.default_rng(i).integers(0, 256, (20 + i, 50 - i, 3), dtype=np.uint8)
        folder = tmp_path / "files" / ("a.b é" if i % 2 else "b" * 120)
        folder.mkdir(exist_ok=True, parents=True)
        image = Image.fromarray(pixels)
        (image.convert("L") if i % 5 == 0 else image).save(folder / f"{i:02}.x.{'PNG' if i % 3 else 'jpg'}")
    return image_folder(tmp_path / "files", labelled=True)


@pytest.fixture
def shards(files: ImageFiles, tmp_path: Path) -> ShardedImages:
    write_shards(image_sources(files), tmp_path / "shards", shard_bytes=20_000)
    return ShardedImages.open(tmp_path / "shards")


def place_of(files: ImageFiles, shards: ShardedImages) -> list[int]:
    """The file of each image in the shards."""
    names = [str(Path(files.path(i)).relative_to(files.root)) for i in range(len(files))]
    return [names.index(line) for line in (shards.root / "sources.txt").read_text().splitlines()]


def test_images_labels_and_views_are_those_of_the_files(files: ImageFiles, shards: ShardedImages) -> None:
    place = place_of(files, shards)
    assert sorted(place) == list(range(30))
    assert place != sorted(place)  # spread over the shards
    assert len(shards.source.index.shards) > 2
    assert shards.labels.tolist() == files.labels[torch.tensor(place)].tolist()
    assert shards.classes == files.classes
    pairs = [CroppedPairs(each, 16, **LAW) for each in (files, shards)]
    centres = [EvalImages(each, 16) for each in (files, shards)]
    for index, i in enumerate(place):
        assert shards.encoded(index) == Path(files.path(i)).read_bytes()
        assert torch.equal(shards.decode(index), decode(files.path(i)))
        assert shards.decode(index).stride() == decode(files.path(i)).stride()  # crops are fastest so
        for ours, theirs in zip(pairs[1][index, 5], pairs[0][i, 5]):
            assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))
        assert torch.equal(centres[1][index][0], centres[0][i][0])
        assert centres[1][index][1] == centres[0][i][1]


@may_fork
def test_workers_and_interruptions_change_nothing(shards: ShardedImages) -> None:
    def batches(done: int, workers: int) -> list[list[torch.Tensor]]:
        order = ShardBatches(shards.shard, batch_size=8, seed=3, mixed=1)
        order.steps_done = lambda: done
        data = CroppedPairs(shards, 8, **LAW)
        return [list(batch) for batch in streaming_loader(data, order, workers=workers, pin_memory=False)]

    whole = batches(3, 0)  # the second epoch of three steps
    assert len(whole) == 3
    for found, expected in ((batches(3, 2), whole), (batches(4, 0), whole[1:]), (batches(5, 1), whole[2:])):
        assert len(found) == len(expected)
        for batch, other in zip(found, expected):
            assert all(torch.equal(a, b) for a, b in zip(batch, other))


def test_an_epoch_opens_each_shard_once(shards: ShardedImages) -> None:
    data = CroppedPairs(shards, 8, **LAW)
    order = ShardBatches(shards.shard, batch_size=2, seed=0, mixed=2)
    assert len(list(streaming_loader(data, order, workers=0, pin_memory=False))) == 15
    assert shards.source.opened == len(shards.source.index.shards)


def test_a_subset_keeps_order_classes_and_places(files: ImageFiles, shards: ShardedImages) -> None:
    place = place_of(files, shards)
    few = shards.subset(10, seed=1)
    assert few.labels.bincount().tolist() == [5, 5]
    assert few.at.tolist() == sorted(few.at.tolist())
    some = few.select(torch.tensor([7, 2]))
    for index, row in enumerate(few.at[[7, 2]].tolist()):
        assert torch.equal(some.decode(index), decode(files.path(place[row])))
    assert some.shard.tolist() == shards.shard[few.at[[7, 2]]].tolist()


def test_unlabelled_images_have_no_label_members(files: ImageFiles, tmp_path: Path) -> None:
    flat = image_folder(files.root, labelled=False)
    write_shards(image_sources(flat), tmp_path / "flat", shard_bytes=10**9)
    shards = ShardedImages.open(tmp_path / "flat")
    assert shards.labels.unique().tolist() == [-1]
    assert shards.classes == ()
    assert b".cls\0" not in (tmp_path / "flat" / "shard-000000.tar").read_bytes()


def test_what_cannot_be_decoded_is_refused_or_left_out(files: ImageFiles, tmp_path: Path) -> None:
    torn = Path(files.path(4))
    torn.write_bytes(torn.read_bytes()[:300])
    Path(files.path(9)).unlink()
    with pytest.raises(ValueError, match="2 of 30 cannot be read") as error:
        write_shards(image_sources(files), tmp_path / "shards", shard_bytes=20_000)
    assert torn.name in str(error.value)
    done = write_shards(image_sources(files), tmp_path / "shards", shard_bytes=20_000, skip_broken=True)
    assert len(done.left_out) == 2
    shards = ShardedImages.open(tmp_path / "shards")
    assert len(shards) == 28
    assert not {4, 9} & set(place_of(files, shards))


def test_bytes_that_rot_are_named_when_decoded(files: ImageFiles, shards: ShardedImages) -> None:
    shard = shards.source.index.shards[int(shards.shard[7])]
    offset, size = shards.source.index.rows[7, :2].tolist()
    with (shards.root / shard.name).open("r+b") as file:
        file.seek(offset)
        file.write(bytes(size))
    with pytest.raises(ValueError, match=rf"{shard.name}, byte {offset} \(line 8 of sources.txt\) is no image"):
        shards.decode(7)


def test_shards_of_another_kind_are_refused(shards: ShardedImages) -> None:
    with pytest.raises(ValueError, match="shards of images, not of speech"):
        ShardIndex.open(shards.root, kind="speech")
