"""How each kind of audio file is decoded, against closed forms, and which are refused."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from stec.audio import decoding
from stec.audio.decoding import RATE, read_audio

NOISE = np.random.default_rng(0).integers(-20_000, 20_000, 5000, dtype=np.int16)


def save(path: Path, samples: np.ndarray = NOISE, rate: int = RATE, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


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
        monkeypatch.setattr(decoding, "BLOCK", block)
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
