"""Tiny-ImageNet in its published layout: what is read, and what is refused, with the file and the line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stec.vision.folder import tiny_imagenet

WNIDS = ("n02", "n01", "n03")


def lay_out(root: Path, train: int = 2, val: int = 4) -> Path:
    """Three classes; image i of val is of class i mod 3 in the order of WNIDS, and has the grey value 10 i."""
    (root / "val" / "images").mkdir(parents=True)
    for wnid in WNIDS:
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
        for i in range(train):
            Image.new("RGB", (64, 64)).save(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
    lines = []
    for i in range(val):
        pixels = np.full((64, 64, 3), 10 * i, dtype=np.uint8)
        Image.fromarray(pixels).save(root / "val" / "images" / f"val_{i}.JPEG")
        lines.append(f"val_{i}.JPEG\t{WNIDS[i % 3]}\t0\t1\t62\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    return root


def test_classes_are_sorted_and_labels_go_with_the_images(tmp_path: Path) -> None:
    train, val = (tiny_imagenet(lay_out(tmp_path / "t"), "train"), tiny_imagenet(tmp_path / "t", "val"))
    assert train.classes == val.classes == ("n01", "n02", "n03")
    assert [Path(train.path(i)).name[:3] for i in range(6)] == [train.classes[k] for k in train.labels]
    number = {"n01": 0, "n02": 1, "n03": 2}
    for i in range(4):
        assert int(val.labels[i]) == number[WNIDS[int(Path(val.path(i)).stem.split("_")[1]) % 3]]
    assert len(train) == 6


def test_blank_lines_are_passed_over(tmp_path: Path) -> None:
    listing = lay_out(tmp_path) / "val" / "val_annotations.txt"
    listing.write_text(listing.read_text() + "\n\n")
    assert len(tiny_imagenet(tmp_path, "val")) == 4


@pytest.mark.parametrize(
    ("change", "split", "words"),
    [
        (lambda text: text + "val_9.JPEG\tn01\n", "val", r"images lacks val_9\.JPEG of .*val_annotations\.txt"),
        (lambda text: text.split("\n", 1)[1], "val", r"gives no class of wnids\.txt to val_0\.JPEG"),
        (lambda text: text.replace("n01", "n77"), "val", r"line 2, gives val_1\.JPEG the class n77, which wnids"),
        (lambda text: text.replace("\t", " "), "val", r"val_annotations\.txt, line 1, has no tab and class"),
    ],
)
def test_annotations_and_images_have_to_match(
    change: Callable[[str], str], split: str, words: str, tmp_path: Path
) -> None:
    listing = lay_out(tmp_path) / "val" / "val_annotations.txt"
    listing.write_text(change(listing.read_text()))
    with pytest.raises(ValueError, match=words):
        tiny_imagenet(tmp_path, split)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    root = lay_out(tmp_path)
    with pytest.raises(ValueError, match="'test'; there are train, val"):
        tiny_imagenet(root, "test")
    (root / "wnids.txt").write_text("n01\nn02\nn03\nn04\n")
    with pytest.raises(ValueError, match=r"train has no folder for n04 of wnids\.txt"):
        tiny_imagenet(root, "train")
    (root / "val" / "val_annotations.txt").unlink()
    with pytest.raises(ValueError, match=r"val_annotations\.txt does not exist; name the folder"):
        tiny_imagenet(root, "val")
    (root / "wnids.txt").unlink()
    with pytest.raises(ValueError, match=r"wnids\.txt does not exist; name the folder"):
        tiny_imagenet(root, "train")
