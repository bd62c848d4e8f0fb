"""Views cut by workers against CropFlip.apply and torchvision; batches that no number of workers changes."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from stec.core.batches import EpochBatches
from stec.vision.affine import CropFlip
from stec.vision.decoding import decode
from stec.vision.folder import ImageFiles, image_folder
from stec.vision.streaming import CroppedPairs, EvalImages, SeededBatches, collate, streaming_loader
from stec.vision.views import CroppedPair

# Python 3.12 warns wherever a process with threads, such as torch's own, starts another one by fork.
may_fork = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
LAW = {"scale": (0.1, 1.0), "ratio": (3 / 4, 4 / 3), "p_flip": 0.5}


@pytest.fixture
def files(tmp_path: Path) -> ImageFiles:
    """Twelve images of as many sizes in two classes, smooth enough that JPEG is not the point."""
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (5, 4, 3), dtype=np.uint8)
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        image = Image.fromarray(pixels).resize((60 + 7 * i, 90 - 3 * i), Image.Resampling.BICUBIC)
        image.save(tmp_path / "ab"[i % 2] / f"{i:02}.jpg")
    return image_folder(tmp_path, labelled=True)


def draws(image: torch.Tensor, seed: int) -> list[CropFlip]:
    generator = torch.Generator().manual_seed(seed)
    height, width = image.shape[1:]
    return [CropFlip.draw(1, (height, width), generator=generator, **LAW) for _ in range(2)]  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [16, 128])  # crops shrunk (antialias matters) and enlarged
def test_views_equal_crop_flip_of_the_same_draws(files: ImageFiles, size: int) -> None:
    dataset = CroppedPairs(files, size, **LAW)  # type: ignore[arg-type]
    flips = set()
    for index in range(len(files)):
        item = dataset[index, 1000 + index]
        image = decode(files.path(index))
        both = draws(image, 1000 + index)
        for view, matrix, draw in zip((item.x, item.x_prime), (item.to_x, item.to_x_prime), both):
            expected = draw.apply(image[None].contiguous(), size)[0] * 255
            assert view.dtype == torch.uint8
            assert view.shape == (3, size, size)
            assert (view - expected).abs().max() <= 1.01  # torchvision rounds after each of two passes
            assert (view - expected).abs().mean() <= 0.4
            assert torch.equal(matrix, draw.matrix(torch.float64)[0])
            flips.add(bool(draw.flip))
        assert item.label == files.labels[index]
    assert flips == {False, True}


def test_pose_finds_the_views_pixels_in_the_image(tmp_path: Path) -> None:
    # A plane in x and y is reproduced by linear sampling, so the pose alone tells every pixel's value.
    height, width, size = 200, 240, 64
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    Image.fromarray(np.dstack((x, y, 255 - x)).astype(np.uint8)).save(tmp_path / "plane.png")
    dataset = CroppedPairs(image_folder(tmp_path, labelled=False), size, **LAW)  # type: ignore[arg-type]
    grid = (torch.arange(size, dtype=torch.float64) + 0.5) * 2 / size - 1
    inner = slice(3, -3)  # a crop's border repeats its last pixel
    for seed in range(10):
        item = dataset[0, seed]
        for view, theta in ((item.x, item.to_x), (item.x_prime, item.to_x_prime)):
            column = ((theta[0, 0] * grid + theta[0, 2] + 1) * width / 2 - 0.5)[inner]
            row = ((theta[1, 1] * grid + theta[1, 2] + 1) * height / 2 - 0.5)[inner]
            assert (view[0, 10, inner] - column).abs().max() <= 1.01
            assert (view[1, inner, 10] - row).abs().max() <= 1.01
            assert (255 - view[2, 10, inner].double() - column).abs().max() <= 1.01


def test_seed_alone_decides(files: ImageFiles) -> None:
    dataset = CroppedPairs(files, 16, **LAW)  # type: ignore[arg-type]
    first, again, other = dataset[3, 7], dataset[3, 7], dataset[3, 8]
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.to_x_prime, again.to_x_prime)
    assert not torch.equal(first.to_x, other.to_x)
    assert not torch.equal(first.to_x, first.to_x_prime)


def test_collate_stacks_the_fields_in_order(files: ImageFiles) -> None:
    dataset = CroppedPairs(files, 16, **LAW)  # type: ignore[arg-type]
    items = [dataset[i, i] for i in (8, 2)]
    batch = collate(items)
    assert batch._fields == items[0]._fields
    assert batch.x.shape == batch.x_prime.shape == (2, 3, 16, 16)
    assert batch.to_x.shape == (2, 3, 3)
    assert torch.equal(batch.x_prime[1], items[1].x_prime)
    assert torch.equal(batch.to_x_prime[0], items[0].to_x_prime)
    assert batch.label.tolist() == [1, 0]


def test_keys_are_the_order_of_the_batches_with_a_new_seed_each_epoch() -> None:
    batches = EpochBatches(12, batch_size=4, seed=5)
    keys = SeededBatches(batches)
    assert len(keys) == 3
    first = list(keys)
    assert [[index for index, _ in batch] for batch in first] == [batch.tolist() for batch in batches]
    assert list(keys) == first
    batches.steps_done = lambda: 1
    assert list(keys) == first[1:]  # an interrupted epoch goes on with the same keys
    batches.steps_done = lambda: 3
    both = [dict(chain(*epoch)) for epoch in (first, list(keys))]
    assert both[0].keys() == both[1].keys() == set(range(12))
    assert len(set(both[0].values()) | set(both[1].values())) == 24
    other = dict(chain(*SeededBatches(EpochBatches(12, batch_size=4, seed=6))))
    assert not set(other.values()) & set(both[0].values())


def two_epochs(dataset: CroppedPairs, workers: int) -> list[CroppedPair]:
    batches = EpochBatches(12, batch_size=4, seed=5)
    seen: list[CroppedPair] = []
    batches.steps_done = lambda: len(seen)
    loader = streaming_loader(dataset, batches, workers=workers, pin_memory=False)
    assert len(loader) == 3
    seen.extend(list(loader))
    seen.extend(list(loader))
    return seen


@may_fork
def test_workers_change_nothing(files: ImageFiles) -> None:
    dataset = CroppedPairs(files, 16, **LAW)  # type: ignore[arg-type]
    alone, many = two_epochs(dataset, 0), two_epochs(dataset, 2)
    assert len(alone) == len(many) == 6
    for one, other in zip(alone, many):
        assert isinstance(other, CroppedPair)
        assert all(torch.equal(a, b) for a, b in zip(one, other))
    assert not torch.equal(alone[0].x, alone[3].x)


def test_loader_refuses_batches_of_another_set(files: ImageFiles) -> None:
    dataset = CroppedPairs(files, 16, **LAW)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="index 11 images, the data set has 12"):
        streaming_loader(dataset, EpochBatches(11, batch_size=4, seed=5), workers=0, pin_memory=False)


@may_fork
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_named_from_within_a_worker(files: ImageFiles, workers: int) -> None:
    Path(files.path(5)).write_bytes(b"no image")
    dataset = CroppedPairs(files, 16, **LAW)  # type: ignore[arg-type]
    loader = streaming_loader(dataset, EpochBatches(12, batch_size=4, seed=0), workers=workers, pin_memory=False)
    with pytest.raises(ValueError, match=r"\.jpg is no image"):
        list(loader)


def test_eval_images_equal_torchvision_on_tensors(files: ImageFiles) -> None:
    dataset = EvalImages(files, 56)
    assert len(dataset) == 12
    for index in (0, 7, 11):
        image, label = dataset[index]
        resized = functional.resize(decode(files.path(index)).float(), [64], antialias=True)
        assert image.dtype == torch.uint8
        assert (image - functional.center_crop(resized, [56])).abs().max() <= 1.01
        assert label == files.labels[index]


@pytest.mark.shared
def test_photographs_of_blood_cells(shared_data: Callable[[str], Path]) -> None:
    files = image_folder(shared_data("BCCD_Dataset") / "BCCD" / "JPEGImages", labelled=False)
    assert len(files) == 364
    dataset = CroppedPairs(files, 96, **LAW)  # type: ignore[arg-type]
    item = dataset[100, 1]
    image = decode(files.path(100))
    assert image.shape == (3, 480, 640)
    expected = draws(image, 1)[0].apply(image[None].contiguous(), 96)[0] * 255
    assert (item.x - expected).abs().max() <= 1.01
    assert item.label == -1
