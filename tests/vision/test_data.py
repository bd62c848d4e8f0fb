"""Image sets in memory: what they refuse, balanced subsets against counts, torchvision's files, batches by index."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from stec.core.batches import EpochBatches
from stec.vision.data import ImageSet, ResidentLoader, balanced, cifar10, cifar100, stl10


def numbered(labels: list[int], classes: int) -> ImageSet:
    """Images whose every pixel is their index."""
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4).contiguous()
    return ImageSet(images, torch.tensor(labels), tuple("abcdefgh"[:classes]))


def test_length_is_the_number_of_images() -> None:
    assert len(numbered([0, 1, 0, 1, 1], 2)) == 5


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.tensor([0, 0]), "uint8"),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.tensor([0, 0]), "3, h, w"),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8).permute(0, 3, 1, 2), torch.tensor([0, 0]), "contiguous"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0]), "labels are"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0.0, 0.0]), "int64"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 2]), "need -1 to 1"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([-2, 0]), "need -1 to 1"),
    ],
)
def test_sets_that_do_not_fit_together_are_refused(images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageSet(images, labels, ("a", "b"))


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=60), st.data())
def test_balanced_counts_are_those_of_dealing_in_rounds(labels: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(labels)))
    seed = data.draw(st.integers(0, 100))
    chosen = balanced(torch.tensor(labels), count, seed=seed).tolist()
    assert chosen == sorted(set(chosen))
    taken = {label: sum(labels[i] == label for i in chosen) for label in set(labels)}
    # No class is two ahead of a class that still has images left.
    assert sum(taken.values()) == count
    for label, number in taken.items():
        if number < labels.count(label):
            assert max(taken.values()) <= number + 1


def test_the_checksum_is_of_pixels_and_labels() -> None:
    same, labels, pixels = numbered([0, 1, 0], 2), numbered([0, 1, 1], 2), numbered([0, 1, 0], 2)
    pixels.images[2, 1, 3, 3] += 1
    known = numbered([0, 1, 0], 2).checksum()
    assert same.checksum() == known
    assert known not in {labels.checksum(), pixels.checksum()}


def test_subsets_repeat_grow_and_differ_by_seed() -> None:
    labels = torch.arange(300) % 7
    small, large = balanced(labels, 50, seed=3), balanced(labels, 120, seed=3)
    assert torch.equal(small, balanced(labels, 50, seed=3))
    assert set(small.tolist()) < set(large.tolist())
    assert not torch.equal(small, balanced(labels, 50, seed=4))


def test_subset_keeps_images_and_labels_together() -> None:
    data = numbered([0, 1, 2, 0, 1, 2, 0, 0, 0, 0], 3)
    part = data.subset(6, seed=1)
    assert part.labels.bincount().tolist() == [2, 2, 2]
    assert torch.equal(part.labels, data.labels[part.images[:, 0, 0, 0].long()])


@pytest.mark.parametrize("n", [0, 4])
def test_subset_of_impossible_size(n: int) -> None:
    with pytest.raises(ValueError, match="choose from 1 to 3"):
        numbered([0, 1, 1], 2).subset(n, seed=0)


def test_resident_batches_are_the_indexed_rows() -> None:
    data = numbered([0, 1, 2, 3, 0, 1, 2, 3, 0, 1], 4)
    batches = EpochBatches(10, batch_size=3, seed=5)
    loader = ResidentLoader(data, batches)
    assert len(loader) == len(list(loader)) == 3
    for (images, labels), index in zip(loader, batches):
        assert images.dtype == torch.uint8
        assert images.shape == (3, 3, 4, 4)
        assert images[:, 1, 2, 3].tolist() == index.tolist()
        assert labels.tolist() == [i % 4 for i in index.tolist()]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_resident_batches_stay_on_the_device() -> None:
    data = numbered([0, 1, 2, 3], 4).to("cuda")
    ((images, labels),) = ResidentLoader(data, [torch.tensor([2, 0])])
    assert images.is_cuda
    assert images[:, 0, 0, 0].tolist() == labels.tolist() == [2, 0]


def write_cifar(root: Path, folder: str, label_key: str, names: dict[str, list[str]], files: list[str]) -> np.ndarray:
    """Files as CIFAR's authors lay them out: rows of 3,072 bytes, channel after channel."""
    pixels = np.random.default_rng(0).integers(0, 256, (len(files), 4, 3072), dtype=np.uint8)
    (root / folder).mkdir()
    for name, rows in zip(files, pixels):
        entry = {"data": rows, label_key: [3, 1, 0, 2]}
        (root / folder / name).write_bytes(pickle.dumps(entry))
    meta = "batches.meta" if folder == "cifar-10-batches-py" else "meta"
    (root / folder / meta).write_bytes(pickle.dumps(names))
    return pixels.reshape(-1, 3, 32, 32)


@pytest.fixture
def _any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets torchvision read small files in the place of the real ones."""
    for module in (torchvision.datasets.cifar, torchvision.datasets.stl10):
        monkeypatch.setattr(module, "check_integrity", lambda *_: True)


@pytest.mark.usefixtures("_any_checksum")
def test_cifar10_pixels_and_labels(tmp_path: Path) -> None:
    names = {"label_names": ["plane", "car", "bird", "cat"]}
    files = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    pixels = write_cifar(tmp_path, "cifar-10-batches-py", "labels", names, files)
    train, test = cifar10(tmp_path, train=True), cifar10(str(tmp_path), train=False)
    assert torch.equal(train.images, torch.from_numpy(pixels[:20]))
    assert torch.equal(test.images, torch.from_numpy(pixels[20:]))
    assert test.labels.tolist() == [3, 1, 0, 2]
    assert test.classes == ("plane", "car", "bird", "cat")


@pytest.mark.usefixtures("_any_checksum")
def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    names = {"fine_label_names": ["apple", "baby", "bear", "bed"], "coarse_label_names": ["fruit"]}
    pixels = write_cifar(tmp_path, "cifar-100-python", "fine_labels", names, ["train", "test"])
    train = cifar100(tmp_path, train=True)
    assert torch.equal(train.images, torch.from_numpy(pixels[:4]))
    assert train.labels.tolist() == [3, 1, 0, 2]
    assert train.classes[3] == "bed"


@pytest.fixture
def stl_folder(tmp_path: Path, _any_checksum: None) -> Path:
    """Twelve training, two test and three unlabelled images; rows of a file run down the columns of an image."""
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for name, count in (("train", 12), ("test", 2), ("unlabeled", 3)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        pixels.tofile(folder / f"{name}_X.bin")
        (np.arange(count, dtype=np.uint8) % 10 + 1).tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    (folder / "fold_indices.txt").write_text("\n".join(f"{i} {i + 2}" for i in range(10)))
    return tmp_path


def test_stl10_splits(stl_folder: Path) -> None:
    raw = np.fromfile(stl_folder / "stl10_binary" / "train_X.bin", dtype=np.uint8).reshape(12, 3, 96, 96)
    train = stl10(stl_folder, "train")
    assert torch.equal(train.images, torch.from_numpy(raw).mT)
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert len(train.classes) == 10
    assert stl10(stl_folder, "unlabeled").labels.tolist() == [-1, -1, -1]
    assert stl10(stl_folder, "test").labels.tolist() == [0, 1]
    assert stl10(stl_folder, "train+unlabeled").labels.tolist() == [*train.labels.tolist(), -1, -1, -1]


def test_stl10_fold_is_the_listed_images(stl_folder: Path) -> None:
    train, fold = stl10(stl_folder, "train"), stl10(stl_folder, "train", fold=4)
    assert torch.equal(fold.images, train.images[[4, 6]])
    assert fold.labels.tolist() == [4, 6]


@pytest.mark.parametrize(("split", "fold"), [("test", 0), ("unlabeled", 0), ("train", 10), ("train", -1)])
def test_stl10_fold_that_does_not_exist(split: str, fold: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="folds 0 to 9 exist in 'train'"):
        stl10(tmp_path, split, fold=fold)


@pytest.mark.unchecked
def test_stl10_split_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'valid'; STL-10 has train, test"):
        stl10(tmp_path, "valid")


def test_missing_and_damaged_sets_name_folder_and_cure(tmp_path: Path) -> None:
    for load, folder in (
        (lambda: cifar10(tmp_path, train=True), "cifar-10-batches-py"),
        (lambda: cifar100(tmp_path, train=False), "cifar-100-python"),
        (lambda: stl10(tmp_path, "train"), "stl10_binary"),
    ):
        with pytest.raises(ValueError, match=rf"{folder} does not exist; .*download=True"):
            load()
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(ValueError, match="does not match its checksums"):
        cifar10(tmp_path, train=True)
