"""The speed of shards: that every arm reads the same samples, and that all is recorded."""

import gc
import hashlib
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from folders import ten_classes

from recipes import records
from recipes.bench import shards as bench
from recipes.bench import shards_peers, shards_speech
from stec.audio.corpus import Corpus
from stec.audio.preparing import prepare
from stec.audio.shards import SpeechShards, speech_sources
from stec.audio.sources import find_audio
from stec.audio.windows import WindowIndex
from stec.core.shards.writing import write_shards
from stec.vision.folder import image_folder
from stec.vision.shards import ShardedImages, image_sources

WINDOW = 1_000


def audio_files(folder: Path) -> Path:
    random = np.random.default_rng(0)
    for i in range(8):
        path = folder / f"speaker{i % 2}" / f"{i}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, random.uniform(-0.5, 0.5, 3_000 + 500 * i), 16_000, subtype="PCM_16")
    return folder


def places(batch: WindowIndex) -> list[tuple[int, int]]:
    return list(zip(batch.utterance.tolist(), batch.start.tolist()))


def test_windows_are_the_same_from_everywhere(tmp_path: Path) -> None:
    files = find_audio(audio_files(tmp_path / "audio"), speaker="folder")
    prepare(files, tmp_path / "cache", workers=1)
    corpus = Corpus.open(tmp_path / "cache")
    write_shards(speech_sources(corpus), tmp_path / "shards", shard_bytes=20_000)
    shards = SpeechShards.open(tmp_path / "shards")
    paths = [file.path for file in files]
    wav = shards_speech.write_wav(paths, tmp_path / "wav")
    of_corpus, of_shards = (shards_speech.from_corpus(each, WINDOW) for each in (corpus, shards))
    whole = torch.cat(list(of_corpus()))
    assert len(whole) == 32  # of 34 windows, in batches of 8
    for other in (paths, wav):
        assert torch.equal(torch.cat(list(shards_speech.from_audio(other, corpus, WINDOW)())), whole)
    batches = shards_speech.batches_of(shards, WINDOW)
    expected = [shards.waveform(u)[s : s + WINDOW] for batch in batches for u, s in places(batch)]
    found = torch.cat(list(of_shards()))
    assert torch.equal(found / 32_768, torch.stack(expected))
    assert len(found) == 32


def test_bytes_are_the_same_from_files_and_shards(tmp_path: Path) -> None:
    files = image_folder(ten_classes(tmp_path, train=4, size=8) / "train", labelled=True)
    write_shards(image_sources(files), tmp_path / "shards", shard_bytes=8_000)
    shards = ShardedImages.open(tmp_path / "shards")
    wanted = {hashlib.sha256(Path(files.path(i)).read_bytes()).digest(): int(files.labels[i]) for i in range(40)}
    for arm in (shards_peers.from_files(files), shards_peers.from_shards(shards), shards_peers.from_webdataset(shards)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # webdataset 1.0.2 leaves its files to the collector
            found = [(hashlib.sha256(content).digest(), label) for content, label in arm(0)]
            gc.collect()
        assert len({digest for digest, _ in found}) == len(found) >= 32
        assert all(wanted[digest] == label for digest, label in found)


def test_both_end_in_one_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = ten_classes(tmp_path / "images", train=4, size=8) / "train"
    speech = audio_files(tmp_path / "audio")
    tiny = ["--rounds", "1", "--size", "8", "--window", str(WINDOW), "--shard-mb", "0.02"]
    out = tmp_path / "speed.json"
    bench.main(["--root", str(images), "--corpus", str(speech), *tiny, "--out", str(out)])
    (record,) = records.read(out)
    assert record.data == "40 images of train; 8 files of audio, 0.00 h"
    found = {result.metric: result for result in record.results}
    assert list(found) == [
        "images: shards over files",
        "images: shards over files, two crops",
        "windows: shards over single files (FLAC)",
        "windows: shards over single WAV files",
        "windows: shards over prepared corpus",
    ]
    for result in record.results:
        assert result.value > 0
        unit, _, name = result.metric.partition(": shards over ")
        ours, theirs = (float(str(result.details[f"{arm}, {unit}/s of one core"])) for arm in ("shards", name))
        assert result.value == pytest.approx(ours / theirs, rel=0.02)  # the rates are rounded
    said = capsys.readouterr().out
    assert "images/s of one core" in said
    assert "windows/s of one core" in said
    assert said.count("of a core meanwhile") == 2
    with pytest.raises(ValueError, match="give --root, a folder of images, or --corpus"):
        bench.main([])
    with pytest.raises(ValueError, match="has 30 images; need at least 32"):
        bench.main(["--root", str(images.parent / "test")])
