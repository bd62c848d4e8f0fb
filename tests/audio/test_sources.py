"""Which files a folder of speech holds, and how each kind is decoded, against closed forms."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torchaudio
from hypothesis import given
from hypothesis import strategies as st

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


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


# --- decoding


@pytest.mark.parametrize("extension", ["flac", "wav"])
def test_sixteen_bits_at_sixteen_kilohertz_come_as_stored(tmp_path: Path, extension: str) -> None:
    extremes = np.array([-32768, 32767, 0, 1, -1], dtype=np.int16)
    samples = np.concatenate([NOISE, extremes])
    found = read_audio(save(tmp_path / f"a.{extension}", samples))
    assert found.dtype == np.int16
    assert np.array_equal(found, samples)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = NOISE, NOISE[::-1]
    found = read_audio(save(tmp_path / "a.wav", np.stack([left, right], 1)))
    assert np.array_equal(found, np.rint((left.astype(float) + right) / 2))  # half to even


def test_twenty_four_bits_are_rounded(tmp_path: Path) -> None:
    fine = np.array([0.4, 0.6, -0.4, -0.6, 1000.25, -1000.75, 32767.9]) / 32768
    found = read_audio(save(tmp_path / "a.flac", fine, subtype="PCM_24"))
    assert found.tolist() == [0, 1, 0, -1, 1000, -1001, 32767]


def test_floats_beyond_full_scale_are_clipped_and_do_not_wrap(tmp_path: Path) -> None:
    values = np.array([0.0, 0.5, 1.0, 1.5, 40.0, -1.0, -2.0])
    found = read_audio(save(tmp_path / "a.wav", values, subtype="FLOAT"))
    assert found.tolist() == [0, 16384, 32767, 32767, 32767, -32768, -32768]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    path = save(tmp_path / "a.wav", np.array([0.0, value]), subtype="FLOAT")
    with pytest.raises(ValueError, match=r"a\.wav holds values that are not finite"):
        read_audio(path)


@pytest.mark.parametrize(
    ("name", "rate", "options"),
    [
        ("a.wav", 8_000, {}),
        ("a.flac", 44_100, {}),
        ("a.wav", 48_000, {"subtype": "PCM_24"}),
        ("a.ogg", 22_050, {"subtype": "VORBIS"}),
        ("a.ogg", 16_000, {"subtype": "OPUS"}),
        ("a.mp3", 44_100, {}),
    ],
)
def test_a_tone_keeps_its_length_and_shape_at_any_rate_in_any_format(
    tmp_path: Path, name: str, rate: int, options: dict[str, Any]
) -> None:
    found = read_audio(save(tmp_path / name, np.stack([tone(1, rate), tone(1, rate)], 1), rate, **options))
    assert abs(len(found) - RATE) <= 1
    middle = slice(2000, 14_000)
    wanted = 32768 * tone(1, RATE)
    lossy = name.endswith(("ogg", "mp3"))
    error = np.abs(found[middle] - wanted[middle]).max()
    assert error < (1200 if lossy else 4)


def test_blocks_join_without_a_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.wav", np.stack([NOISE, NOISE], 1), 22_050)
    whole = read_audio(path)
    for block in (500, 999, 5000):  # also a length that the last block fits exactly
        monkeypatch.setattr(sources, "BLOCK", block)
        assert np.array_equal(read_audio(path), whole)


# --- broken files


@given(cut=st.integers(0, 10_000))
def test_a_truncated_flac_is_refused_wherever_it_was_cut(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = save(tmp_path_factory.mktemp("cut") / "a.flac")
    data = path.read_bytes()
    path.write_bytes(data[: cut % len(data)])
    with pytest.raises(ValueError, match=r"a\.flac is .*; replace it"):
        read_audio(path)


@pytest.mark.parametrize("name", ["a.wav", "a.ogg", "a.mp3"])
@pytest.mark.parametrize("part", [0.5, 0.95])
def test_other_truncated_files_are_refused(tmp_path: Path, name: str, part: float) -> None:
    path = save(tmp_path / name, np.tile(NOISE, 8))
    read_audio(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(ValueError, match="truncated or corrupt"):
        read_audio(path)


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.mp3"])
@pytest.mark.parametrize("place", [0.4, 0.5])  # in Ogg they show in libsndfile's log and in the length
def test_a_hole_in_a_file_is_refused(tmp_path: Path, name: str, place: float) -> None:
    path = save(tmp_path / name, np.tile(NOISE, 8))
    data = bytearray(path.read_bytes())
    start = int(place * len(data))
    data[start : start + 800] = bytes(800)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="truncated or corrupt"):
        read_audio(path)


def test_an_ogg_that_lacks_its_last_page_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ogg", np.tile(NOISE, 8))
    data = path.read_bytes()
    path.write_bytes(data[: data.rfind(b"OggS")])
    with pytest.raises(ValueError, match="truncated or corrupt"):
        read_audio(path)


def test_a_wav_from_a_pipe_promises_no_length(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav")
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert np.array_equal(read_audio(path), NOISE)


def test_an_ogg_with_something_behind_it_is_whole(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ogg")
    whole = read_audio(path)
    path.write_bytes(path.read_bytes() + b"TAG" * 50)
    assert np.array_equal(read_audio(path), whole)


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "an empty file"), (b"no sound at all " * 20, "truncated or corrupt"), (None, "does not exist")],
)
def test_what_is_no_audio_is_refused(tmp_path: Path, data: bytes | None, words: str) -> None:
    if data is not None:
        (tmp_path / "a.flac").write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.flac.*{words}"):
        read_audio(tmp_path / "a.flac")


def test_no_samples_and_no_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no sample"):
        read_audio(save(tmp_path / "a.wav", NOISE[:0]))
    path = save(tmp_path / "b.flac")
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # STREAMINFO's number of samples, 36 bits: 0 says that it is not known
    data[22:26] = bytes(4)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="does not say how long"):
        read_audio(path)


def test_a_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.flac")
    path.write_bytes(save(tmp_path / "a.flac").read_bytes())
    with pytest.raises(ValueError, match=r"caf\\udce9\.flac'.* not UTF-8; rename"):
        read_audio(path)


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
