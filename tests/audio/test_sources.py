"""Which files a folder of speech holds, and who speaks in them."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torchaudio

from stec.audio import sources
from stec.audio.decoding import RATE, read_audio
from stec.audio.sources import audio_folder, download_librispeech, find_audio, librispeech

NOISE = np.random.default_rng(0).integers(-20_000, 20_000, 5000, dtype=np.int16)


def save(path: Path, samples: np.ndarray = NOISE, rate: int = RATE, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path


def libri(root: Path, *names: str, extension: str = ".flac") -> Path:
    """A folder in LibriSpeech's layout with an utterance for each `subset/speaker-chapter-utterance`."""
    for name in names:
        subset, stem = name.split("/")
        speaker, chapter, _ = stem.split("-")
        save(root / subset / speaker / chapter / f"{stem}{extension}", NOISE[:100])
    return root


# --- LibriSpeech


@pytest.mark.parametrize("above", [".", "LibriSpeech"])
def test_librispeech_from_its_folder_or_the_one_above(tmp_path: Path, above: str) -> None:
    libri(tmp_path / above, "dev-clean/20-3-0001", "dev-clean/20-3-0000", "test-other/7-1-0000")
    (tmp_path / above / "SPEAKERS.TXT").write_text("")
    (tmp_path / above / "dev-clean" / "20" / "3" / "._20-3-0000.flac").write_text("of another system")
    found = librispeech(tmp_path)
    assert [file[1:] for file in found] == [
        ("20-3-0000", "20", "3"),
        ("20-3-0001", "20", "3"),
        ("7-1-0000", "7", "1"),
    ]
    assert [file.utterance for file in librispeech(tmp_path, subsets=["test-other"])] == ["7-1-0000"]
    assert [file.utterance for file in librispeech(tmp_path / above / "test-other")] == ["7-1-0000"]
    assert find_audio(tmp_path, speaker="folder") == found
    assert {file.speaker for file in find_audio(tmp_path, speaker="none")} == {""}


def test_what_is_missing_is_named_with_what_is_near(tmp_path: Path) -> None:
    root = libri(tmp_path / "LibriSpeech", "train-clean-100/20-3-0001")
    with pytest.raises(ValueError, match="'LibriSpech': LibriSpeech"):
        librispeech(tmp_path / "LibriSpech" / "train-clean-100")
    with pytest.raises(ValueError, match=r"no subset 'train-clean-10'; the nearest.*train-clean-100"):
        librispeech(root, subsets=["train-clean-10"])
    with pytest.raises(ValueError, match=r"layout.*it holds 20\. Name the folder"):
        librispeech(_lonely(tmp_path))
    with pytest.raises(ValueError, match="is a file"):
        librispeech(save(tmp_path / "a.flac"))


def _lonely(root: Path) -> Path:
    """A folder that holds a speaker's folder without chapters."""
    save(root / "lonely" / "20" / "20-3-0001.flac")
    return root / "lonely"


def test_renamed_folders_and_doubles_are_refused(tmp_path: Path) -> None:
    root = libri(tmp_path, "dev-clean/20-3-0001", "dev-clean/21-3-0001")
    (root / "dev-clean" / "21").rename(root / "dev-clean" / "22")
    with pytest.raises(ValueError, match=r"21-3-0001\.flac lies in the folders of speaker 22, chapter 3"):
        librispeech(root)
    libri(tmp_path / "b", "dev-clean/20-3-0001", "copy/20-3-0001")
    with pytest.raises(ValueError, match="both named 20-3-0001"):
        librispeech(tmp_path / "b")
    assert len(librispeech(tmp_path / "b", subsets=["copy"])) == 1


@pytest.mark.parametrize("extension", [".wav", ".ogg", ".mp3", ".flac"])
def test_the_layout_is_known_whatever_the_extension(tmp_path: Path, extension: str) -> None:
    libri(tmp_path, "dev-clean/20-3-0001", "dev-clean/21-4-0000", extension=extension)
    found = find_audio(tmp_path, speaker="folder")
    assert [file[1:] for file in found] == [("20-3-0001", "20", "3"), ("21-4-0000", "21", "4")]


@pytest.mark.parametrize(
    "stray", ["a.wav", "dev-clean/b.ogg", "dev-clean/20/c.mp3", "dev-clean/20/3/old/20-3-0001.flac"]
)
def test_audio_outside_the_layout_is_not_passed_over(tmp_path: Path, stray: str) -> None:
    libri(tmp_path, "dev-clean/20-3-0001", "dev-other/21-3-0001")
    (tmp_path / "twice").symlink_to(tmp_path / "dev-other" / "21")  # is seen already
    assert len(librispeech(tmp_path)) == 2
    save(tmp_path / stray)
    for find in (lambda: librispeech(tmp_path), lambda: find_audio(tmp_path, speaker="none")):
        with pytest.raises(ValueError, match=rf"1 audio files .*layout: {tmp_path / stray}; move"):
            find()
    assert len(librispeech(tmp_path, subsets=["dev-other"])) == 1


def test_the_real_layout(shared_data: Callable[[str], Path]) -> None:
    found = librispeech(shared_data("LibriSpeech"))
    assert len(found) == 368
    assert len({file.speaker for file in librispeech(shared_data("LibriSpeech"), subsets=["test-other"])}) == 10
    file = next(file for file in found if file.utterance == "1089-134686-0000")
    assert np.array_equal(read_audio(file.path), soundfile.read(file.path, dtype="int16")[0])


def test_torchaudio_takes_what_the_download_passes() -> None:
    parameters = inspect.signature(torchaudio.datasets.LIBRISPEECH).parameters
    assert list(parameters)[:2] == ["root", "url"]
    assert "download" in parameters
    assert parameters["folder_in_archive"].default == "LibriSpeech"


def test_a_subset_that_does_not_exist_is_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train-clean-100"):
        download_librispeech(tmp_path, "train-clean-10")


@pytest.mark.parametrize(("held", "complete"), [(1, False), (2702, False), (2703, True)])
def test_a_download_that_was_interrupted_is_refused(tmp_path: Path, held: int, complete: bool) -> None:
    folder = tmp_path / "LibriSpeech" / "dev-clean"
    (folder / "1" / "2").mkdir(parents=True)  # torchaudio fetches nothing where it is there
    for i in range(held):
        (folder / "1" / "2" / f"1-2-{i:04}.flac").touch()
    if complete:
        assert download_librispeech(tmp_path, "dev-clean") == folder
        return
    with pytest.raises(ValueError, match=rf"{folder} holds {held} of the 2703 .*delete {folder} and run"):
        download_librispeech(tmp_path, "dev-clean")


def test_all_of_librispeech_has_so_many_utterances() -> None:
    train = sum(count for name, count in sources.UTTERANCES.items() if name.startswith("train"))
    assert (train, sum(sources.UTTERANCES.values())) == (281_241, 292_367)


# --- any folder


def test_any_folder(tmp_path: Path) -> None:
    for name in ("b/x/one.WAV", "b/two.ogg", "a/three.mp3", "four.flac", "a/.five.wav", ".cache/six.wav"):
        save(tmp_path / name, format=None if name != "b/x/one.WAV" else "WAV")
    (tmp_path / "a" / "notes.txt").write_text("")
    found = audio_folder(tmp_path, speaker="folder")
    assert [tuple(file[1:]) for file in found] == [
        ("three", "a", "a"),
        ("two", "b", "b"),
        ("one", "b", "b/x"),
        ("four", "", ""),
    ]
    assert {file.speaker for file in audio_folder(tmp_path, speaker="none")} == {""}
    assert find_audio(tmp_path, speaker="folder") == found


def test_stems_that_collide_become_paths(tmp_path: Path) -> None:
    for name in ("a/1.wav", "b/1.wav", "b/2.wav"):
        save(tmp_path / name)
    assert [file.utterance for file in audio_folder(tmp_path, speaker="none")] == ["a/1", "b/1", "b/2"]
    save(tmp_path / "b" / "2.flac")
    with pytest.raises(ValueError, match=r"2\.flac and .*2\.wav are both named b/2"):
        audio_folder(tmp_path, speaker="none")


def test_links_are_followed_once(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.wav")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "z").symlink_to(tmp_path / "a")
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere")
    assert [file.utterance for file in audio_folder(tmp_path, speaker="none")] == ["1", "gone"]


def test_no_audio(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no audio"):
        audio_folder(tmp_path, speaker="none")
