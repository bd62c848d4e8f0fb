"""The command that writes, verifies and locates shards, and training that finds them where it finds files."""

import dataclasses
import os
import sys
from pathlib import Path

import pytest
import torch
from folders import ten_classes
from PIL import Image
from tones import make_speech, tiny

from recipes import shards as command
from recipes.audio.run import open_corpus
from recipes.vision import inputs, run
from recipes.vision.presets import preset
from stec.core.shards import INDEX, ShardBatches, ShardIndex
from stec.vision.decoding import decode
from stec.vision.folder import image_folder
from stec.vision.shards import ShardedImages

PRESET = preset("folder")


def say_of(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    command.main([str(word) for word in argv])
    return capsys.readouterr().out


def test_images_are_written_verified_and_located(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = ten_classes(tmp_path / "images") / "train", tmp_path / "shards"
    said = say_of(capsys, root, "--out", out, "--shard-mb", "0.02")
    assert "20 samples of images in" in said
    assert "writing images: 20 of 20" in said
    assert "nothing was to do" in say_of(capsys, root, "--out", out, "--shard-mb", "0.02")
    assert "20 samples are whole" in say_of(capsys, out, "--verify")
    index = ShardIndex.open(out)
    away = tmp_path / "away"
    away.mkdir()
    for shard in index.shards:
        (out / shard.name).rename(away / shard.name)
    assert "is read from file:" in say_of(capsys, out, "--url", f"file:{away}")
    assert "20 samples are whole" in say_of(capsys, out, "--verify")
    assert "is read from itself" in say_of(capsys, out, "--url", "")
    with pytest.raises(ValueError, match="is missing"):
        command.main([str(out), "--verify"])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nowhere", "--out", "x"], "nowhere does not exist"),
        (["file", "--out", "x"], "file is a file; name a folder"),
        (["empty", "--out", "x"], "empty holds no image"),
        (["images", "--out", "images/x"], "images/x lies in the folder that is read"),
        (["images", "--out", "."], "holds other files, such as empty, file, images; choose an empty folder"),
        (["images", "--out", "file"], "cannot write to file"),
        (["images", "--out", "x", "--shard-mb", "nan"], "shards of nan MB"),
        (["."], "give one of --out"),
        ([".", "--verify", "--out", "x"], "give one of --out"),
        ([".", "--verify"], "holds no shards"),
    ],
)
def test_mistakes_are_named(argv: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "images"):
        Path(folder).mkdir()
    Path("file").touch()
    Image.new("RGB", (4, 4)).save("images/a.png")
    with pytest.raises(ValueError, match=words):
        command.main(argv)
    assert sorted(os.listdir()) == ["empty", "file", "images"]
    assert os.listdir("images") == ["a.png"]


def test_without_webdataset_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "a.png")
    for name in ("webdataset", "webdataset.writer"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    with pytest.raises(ValueError, match=r'with webdataset: pip install -e "\.\[shards\]"'):
        command.main([str(tmp_path / "images"), "--out", str(tmp_path / "shards" / "train")])
    assert os.listdir(tmp_path) == ["images"]  # no unfinished shards, for which training would look


def test_odd_files_come_out_as_they_went_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CMYK, greyscale, a palette, turned by EXIF; names that a tar, a shell or a line of text would stumble on."""
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = torch.randint(256, (20, 30, 3), dtype=torch.uint8).numpy()
    turned = Image.Exif()
    turned[0x0112] = 6
    names = ["new\nline.jpg", "-rf.JPG", "c:o[l]on.jpeg", "back\\slash.png", "a.tar.gif", "umlaut \u00fc.webp"]
    for name, mode in zip(names, ("CMYK", "L", "RGB", "RGBA", "P", "RGB")):
        Image.fromarray(pixels).convert(mode).save(folder / name)
    Image.fromarray(pixels).save(folder / "turned.jpg", exif=turned)
    os.rename(folder / "umlaut \u00fc.webp", os.fsencode(folder) + b"/no text \xff.webp")
    say_of(capsys, folder, "--out", tmp_path / "shards")
    shards = ShardedImages.open(tmp_path / "shards")
    lines = (tmp_path / "shards" / "sources.txt").read_bytes().split(b"\n")[:-1]
    assert len(shards) == len(lines) == 7
    for i, line in enumerate(lines):
        path = os.path.join(os.fsencode(folder), line.replace(b"\\n", b"\n"))
        assert shards.encoded(i) == Path(os.fsdecode(path)).read_bytes()
        assert torch.equal(shards.decode(i), decode(os.fsdecode(path)))
    assert sorted(tuple(shards.decode(i).shape) for i in range(7)) == 6 * [(3, 20, 30)] + [(3, 30, 20)]


def test_training_finds_shards_where_it_finds_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ten_classes(tmp_path / "images")
    for split in ("train", "test"):
        say_of(capsys, root / split, "--out", tmp_path / "shards" / split, "--shard-mb", "0.02")
    config = dataclasses.replace(PRESET, root=tmp_path / "shards", batch_size=8, workers=0)
    source = inputs.training_images(config)
    assert isinstance(source.images, ShardedImages)
    assert len(source.images) == 20
    assert "streamed from" in source.note
    order = run.order(config, source)
    assert isinstance(order, ShardBatches)
    batch = next(iter(run.loader(config, source, order)))
    assert tuple(batch.x.shape) == (8, 3, config.augmentation.size, config.augmentation.size)
    assert batch.label.tolist() == source.images.labels[next(iter(order))].tolist()
    train, test = inputs.labelled_images(config)
    assert (len(train.images), len(test.images)) == (20, 30)
    assert train.images.classes == image_folder(root / "train", labelled=True).classes
    alone = dataclasses.replace(PRESET, root=tmp_path / "shards" / "train", limit=10)
    assert inputs.training_images(alone).images.labels.tolist().count(0) == 1
    with pytest.raises(ValueError, match="none to probe with"):
        inputs.labelled_images(alone)
    (tmp_path / "shards" / "train" / INDEX).unlink()
    (tmp_path / "shards" / "train" / "shards.journal").touch()
    with pytest.raises(ValueError, match="unfinished"):
        inputs.training_images(config)


def test_training_finds_shards_where_it_finds_a_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speech = make_speech(tmp_path / "speech")
    said = say_of(capsys, speech.cache, "--out", tmp_path / "shards", "--shard-mb", "0.2")
    assert "24 samples of speech in" in said
    config = tiny(speech)
    notes = []
    for where in (speech.cache, tmp_path / "shards"):
        corpus, note = open_corpus(dataclasses.replace(config, corpus=where, split=None), None)
        assert len(corpus) == 24
        assert torch.isfinite(corpus.waveform(3)).all()
        notes.append(note)
    assert notes[1].startswith(notes[0])
    assert notes[1].endswith("shards")


def test_a_shard_that_was_lost_or_cut_is_written_again_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = ten_classes(tmp_path / "images") / "train", tmp_path / "shards"
    say_of(capsys, root, "--out", out, "--shard-mb", "0.02")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    first, second, *_ = sorted(out.glob("*.tar"))
    first.unlink()
    second.write_bytes(before[second.name][:700])
    assert "nothing was to do" not in say_of(capsys, root, "--out", out, "--shard-mb", "0.02")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_train_and_test_are_no_classes(tmp_path: Path) -> None:
    root = ten_classes(tmp_path / "images")
    with pytest.raises(ValueError, match=r"holds train and test, which are no classes: write each, such as .*train"):
        command.main([str(root), "--out", str(tmp_path / "shards")])
    assert not (tmp_path / "shards").exists()
