"""Decoding of audio files: samples at 16 kHz, mono, int16, whatever the file has; what is broken is refused.

Files are decoded by soundfile, since torchaudio.load needs torchcodec from version 2.9 on.
"""

import re
from pathlib import Path

import numpy as np
import soundfile
import soxr

RATE = 16_000  # samples a second, of every waveform in stec.audio
BLOCK = 1 << 18  # frames decoded at a time, so that an hour of 48 kHz stereo never lies in memory as floats
LONGEST = 12  # hours of one file, 1.4 GB of samples: FLAC writes silence in a thousandth of that
UNKNOWN = 1 << 32  # frames; a header that claims more is a lie, or of a stream that never learnt its length
LOWEST, HIGHEST = 1000, 1_000_000  # Hz; at 1 Hz a small file would become a large one
CURE = "replace it with a whole copy, or leave broken files out (--skip-broken)"


def read_audio(path: Path) -> np.ndarray:
    """The samples of an audio file, (n,) int16 at 16 kHz: channels averaged, other rates resampled (soxr, VHQ).

    16-bit mono at 16 kHz comes as it is stored. Values beyond full scale are clipped. Raises ValueError where the file
    is missing, empty, truncated, corrupt or holds values that are no numbers, and where its name is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:  # soundfile could not open it, nor could most programs print its name
        raise ValueError(f"the name {str(path)!r} is not UTF-8; rename it, or leave it out (--skip-broken)") from error
    if not path.is_file():
        raise ValueError(f"{path} does not exist; prepare from a folder that holds it")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is an empty file; {CURE}")
    try:
        with soundfile.SoundFile(path) as file:
            if file.frames > UNKNOWN:
                raise ValueError(f"{path} does not say how long it is; encode it again, or {CURE}")
            if not LOWEST <= file.samplerate <= HIGHEST:
                raise ValueError(
                    f"{path} is sampled at {file.samplerate} Hz; give {LOWEST} to {HIGHEST:,} Hz, or {CURE}"
                )
            if file.frames > LONGEST * 3600 * file.samplerate:
                raise ValueError(f"{path} is longer than {LONGEST} hours; cut it, or {CURE}")
            plain = (file.samplerate, file.channels, file.subtype) == (RATE, 1, "PCM_16")
            samples = _stored(file) if plain else _converted(file)
            if file.tell() < file.frames or _torn(file, path):
                raise ValueError(f"{path} is truncated or corrupt: it ends before its header says; {CURE}")
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path} is truncated or corrupt ({error.error_string.rstrip('.')}); {CURE}") from error
    if not len(samples):
        raise ValueError(f"{path} holds no sample; {CURE}")
    return samples


def _stored(file: soundfile.SoundFile) -> np.ndarray:
    """The rest of an open file as int16, block by block: memory follows what is there, not what the header says."""
    parts = []
    while len(block := file.read(BLOCK, dtype="int16")):
        parts.append(block)
    return np.concatenate(parts) if parts else np.zeros(0, np.int16)


def _converted(file: soundfile.SoundFile) -> np.ndarray:
    """The rest of an open file, block by block: mono, 16 kHz, int16."""
    stream = soxr.ResampleStream(file.samplerate, RATE, 1, dtype="float32", quality="VHQ")
    parts = []
    last = False
    size = max(1, BLOCK // file.channels)
    while not last:
        block = file.read(size, dtype="float32", always_2d=True)
        last = len(block) < size
        if not np.isfinite(block).all():
            raise ValueError(f"{file.name} holds values that are not finite; {CURE}")
        mono = block.mean(1)
        if file.samplerate != RATE:
            mono = stream.resample_chunk(mono, last=last)
        # Clipped as floats: a cast of 1.5 * 32768 would wrap around to a negative value.
        parts.append(np.rint(mono * 32768).clip(-32768, 32767).astype(np.int16))
    return np.concatenate(parts)


def _torn(file: soundfile.SoundFile, path: Path) -> bool:
    """Whether a file ends too early, where libsndfile itself reads on as if its end were right: WAV and OGG."""
    log = file.extra_info
    if file.format == "OGG":
        return "Corrupted bitstream" in log or not _ogg_has_end(path)
    said = re.search(r"data : (\d+) \(should be (\d+)\)", log)
    # Programs that write into a pipe leave the largest numbers there, which promise nothing.
    return said is not None and int(said[2]) < int(said[1]) < 0x7FFF_0000


def _ogg_has_end(path: Path) -> bool:
    """Whether the last page of an Ogg stream is whole and says that it is the last (RFC 3533, section 6)."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 17)))  # a page has at most 65,307 bytes
        tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < 27:
        return False
    table = page[27 : 27 + page[26]]
    return bool(page[5] & 4) and len(table) == page[26] and len(page) >= 27 + page[26] + sum(table)
