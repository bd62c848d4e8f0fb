"""The command that writes, verifies and locates shards, and training that finds them where it finds files."""

import dataclasses
from pathlib import Path

import pytest
import torch
from folders import ten_classes
from tones import make_speech, tiny

from recipes import shards as command
from recipes.audio.run import open_corpus
from recipes.vision import inputs, run
from recipes.vision.presets import preset
from stec.core.shards import INDEX, ShardBatches, ShardIndex
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
        (["."], "give one of --out"),
        ([".", "--verify", "--out", "x"], "give one of --out"),
        ([".", "--verify"], "holds no shards"),
    ],
)
def test_mistakes_are_named(argv: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        command.main(argv)


def test_training_finds_shards_where_it_finds_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ten_classes(tmp_path / "images")
    for split in ("train", "test"):
        say_of(capsys, root / split, "--out", tmp_path / "shards" / split, "--shard-mb", "0.02")
    config = dataclasses.replace(PRESET, root=tmp_path / "shards", batch_size=8, workers=0)
    source = inputs.training_images(config)
    assert isinstance(source.images, ShardedImages)
    assert not source.resident
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
