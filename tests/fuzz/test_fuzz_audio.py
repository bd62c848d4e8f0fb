"""Audio files: headers that lie, streams that end, and rates and channels that would fill the memory."""

import struct
from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile
from mutations import BINARY, Target, address_space, check, mutated, refusing

from stec.audio.decoding import RATE, read_audio

KINDS = (
    ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("WAV", "IMA_ADPCM"), ("WAVEX", "PCM_16"),
    ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"),
    ("AIFF", "PCM_16"),     ("W64", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16"),
)  # fmt: skip
_MADE: dict[tuple[str, str, int, int], bytes] = {}


def encoded(kind: str, subtype: str, rate: int, channels: int) -> bytes:
    """A twentieth of a second of a tone."""
    key = (kind, subtype, rate, channels)
    if key not in _MADE:
        file = BytesIO()
        times = np.arange(rate // 20) / rate
        tone = np.repeat(0.5 * np.sin(2 * np.pi * 440 * times)[:, None], channels, 1)
        soundfile.write(file, tone, rate, format=kind, subtype=subtype)
        _MADE[key] = file.getvalue()
    return _MADE[key]


def sound(random: Random) -> bytes:
    """A short file in one of the formats that libsndfile knows, broken near its beginning more often than elsewhere."""
    kind, subtype = random.choice(KINDS)
    data = encoded(kind, subtype, random.choice((8000, 16_000, 48_000)), random.choice((1, 2)))
    head = random.choice((44, 128, len(data)))
    return mutated(data[:head], random, BINARY) + data[head:]


def read_sound(data: bytes, folder: Path) -> None:
    path = folder / "a.wav"
    path.write_bytes(data)
    with refusing(path):
        samples = read_audio(path)
        assert samples.dtype == np.int16
        assert len(samples) > 0


TARGETS = [Target("audio", sound, read_sound)]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_broken_audio_is_decoded_or_refused_with_its_name(target: Target, tmp_path: Path) -> None:
    check(target, tmp_path, examples=100)


def wav(*, rate: int, channels: int, frames: int, promised: int | None = None) -> bytes:
    """8-bit silence; `promised` bytes of it in the header."""
    data = bytes([128]) * (frames * channels)
    size = len(data) if promised is None else promised
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * channels & 0xFFFFFFFF, channels & 0xFFFF, 8)
    chunks = b"fmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", min(36 + size, 0xFFFFFFFF)) + b"WAVE" + chunks


def flac(frames: int) -> bytes:
    """A whole file of a few samples whose header promises `frames` of them."""
    data = bytearray(encoded("FLAC", "PCM_16", RATE, 1))
    low = struct.unpack(">Q", data[18:26])[0] & ~((1 << 36) - 1)
    data[18:26] = struct.pack(">Q", low | frames)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (flac(10**9), "longer than"),
        (flac((1 << 32) - 1), "longer than"),
        (flac((1 << 36) - 1), "how long it is|longer than"),
        (flac(10**8), "ends before its header says|truncated or corrupt"),
        (
            wav(rate=RATE, channels=1, frames=100, promised=0x7FFF0000 - 1),
            "ends before its header says|truncated or corrupt",
        ),
        (wav(rate=1, channels=1, frames=100_000), "1 Hz"),
        (wav(rate=2_000_000_000, channels=1, frames=1000), "Hz"),
    ],
)
def test_what_a_header_promises_takes_no_memory(data: bytes, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    with address_space(256 << 20), pytest.raises(ValueError, match=complaint) as caught:
        read_audio(path)
    assert str(path) in str(caught.value)


def test_a_thousand_channels_take_no_more_memory_than_one(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(rate=8000, channels=1024, frames=8000))
    with address_space(64 << 20):
        assert len(read_audio(path)) == pytest.approx(16_000, abs=2)
