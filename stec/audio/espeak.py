"""espeak-ng through ctypes: text to samples, with the place of every phone.

The library and its voices come with the wheel `espeakng-loader`. It is one C library with one global state for each
process, and part of that state (the flutter of the pitch, the phase of the glottal wave) outlives even its own
`espeak_Terminate`: what it says depends on what it said before. So `speak` loads the library anew for each text, which
costs 2 ms, holds a lock meanwhile, and is a function of its arguments. Several processes may speak at once.
"""

import _ctypes
import ctypes
import importlib
import os
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int16, Int64

SILENCE = "sil"
# 39 phones of CMUdict (the classes of Lee and Hon 1989 but for ZH, which they join with SH), after silence, id 0.
_NAMES = "sil AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"
PHONES: tuple[str, ...] = tuple(_NAMES.split(" "))
# espeak's mnemonics without stress marks. It has finer classes than CMUdict. Reduced vowels go to AH or IH, as in
# Lee and Hon's folding of TIMIT (ax, ix); flaps, dental and glottal stops to T; syllabic consonants to the consonant
# (el, en); a vowel with an r-colour or an offglide, which is one phone in espeak, to its vowel, as the greater part.
_PHONE_OF: dict[str, str] = {
    **dict.fromkeys(("_", "_:", "_!", "_|", "_::"), SILENCE),
    **dict.fromkeys(("0", "A:", "A@"), "AA"),
    **dict.fromkeys(("a", "aa"), "AE"),
    **dict.fromkeys(("V", "@", "@2", "@5", "a#", "3"), "AH"),
    **dict.fromkeys(("O:", "O", "O2", "O@", "o@"), "AO"),
    "aU": "AW",
    **dict.fromkeys(("aI", "aI2", "aI3", "aI@"), "AY"),
    **dict.fromkeys(("E", "e@"), "EH"),
    **dict.fromkeys(("3:", "IR", "VR"), "ER"),
    "eI": "EY",
    **dict.fromkeys(("I", "I2", "I#", "i@3"), "IH"),
    **dict.fromkeys(("i", "i:", "i@"), "IY"),
    "oU": "OW",
    "OI": "OY",
    **dict.fromkeys(("U", "U@"), "UH"),
    "u:": "UW",
    **{name: name.upper() for name in "bdfgklmnprsvwz"},
    **dict.fromkeys(("t", "t2", "t#", "?"), "T"),
    **{"tS": "CH", "dZ": "JH", "D": "DH", "T": "TH", "S": "SH", "Z": "ZH", "N": "NG", "h": "HH"},
    **{"x": "K", "w#": "W", "r-": "R", "@L": "L", "n-": "N"},
    **dict.fromkeys(("j", ";"), "Y"),  # ";" is the glide from a high front vowel to the next vowel: "the owl"
}
# Where an accent makes another phone of it: the end of butter in the USA, bath and pure in received pronunciation.
_PHONE_IN: dict[str, dict[str, str]] = {"en-US": {"3": "ER"}, "en-GB-x-rp": {"aa": "AA", "U@": "AO"}}
ACCENTS: tuple[str, ...] = ("en-US", "en", "en-US-nyc", "en-GB-x-rp", "en-GB-scotland")  # files of espeak-ng-data/lang
_STOPS = frozenset({"P", "T", "K", "B", "D", "G", "CH", "JH"})

_SYNCHRONOUS, _PHONEME_EVENTS, _DO_NOT_EXIT, _UTF8, _END_PAUSE, _PHONEME = 2, 0x0001, 0x8000, 1, 0x1000, 7
_RATE, _VOLUME, _PITCH, _RANGE, _WORD_GAP = 1, 2, 3, 4, 7
_LONGEST_PATH = 150  # bytes; the library keeps the folder of its data in 160 and fails beyond
# Ctrl-A 1 H: an echo of 1/256. Some variants have one of 1/17, which would sound in the closures of stops.
_NO_ECHO = "\x011H "
_lock = threading.Lock()


class _Name(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h, API revision 12. `sample`, "internal use", is exact; `audio_position` is in ms."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Name),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Spoken(NamedTuple):
    """What espeak said: samples at `rate` Hz, and phones that begin at `starts` and end where the next one begins."""

    samples: Int16[np.ndarray, " n"]
    rate: int
    starts: Int64[np.ndarray, " phones"]
    phones: tuple[str, ...]


def speak(
    text: str, *, accent: str, variant: str, words_per_minute: int = 175, pitch: int = 50, pitch_range: int = 50
) -> Spoken:
    """`text` in English as said by a voice: a function of the arguments alone, whatever was said before.

    `accent` is one of `ACCENTS`, `variant` a file of espeak-ng-data/voices/!v such as "f1"; 80 to 450 words a minute;
    pitch and its range from 0 to 99, relative to the variant's. Raises ValueError for an unknown voice, where the
    library is missing or cannot read its data, and for a phone that has no class in `PHONES`.
    """
    with _lock:
        samples, rate, events = _speak(
            text, accent, variant, {_RATE: words_per_minute, _VOLUME: 100, _PITCH: pitch, _RANGE: pitch_range}
        )
    names = [_phone(mnemonic, accent=accent, text=text) for _, mnemonic in events]
    starts, phones = _with_closures(samples, rate, [start for start, _ in events], names)
    return Spoken(samples, rate, starts, phones)


def version() -> str:
    """The version of the installed espeak-ng, such as 1.52.0; ValueError as `speak`."""
    with _lock:
        library, _ = _open()
        try:
            library.espeak_Info.restype = ctypes.c_char_p
            return bytes(library.espeak_Info(ctypes.byref(ctypes.c_char_p()))).decode()
        finally:
            _close(library)


def _speak(
    text: str, accent: str, variant: str, parameters: dict[int, int]
) -> tuple[Int16[np.ndarray, " n"], int, list[tuple[int, str]]]:
    library, rate = _open()
    try:
        _set_voice(library, accent, variant)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # it is seeded by the clock
        for parameter, value in (parameters | {_WORD_GAP: 0}).items():
            if library.espeak_SetParameter(parameter, value, 0):
                raise ValueError(f"espeak-ng refuses the value {value} for its parameter {parameter}")
        blocks: list[np.ndarray] = []
        events: list[tuple[int, str]] = []

        def collect(samples: Any, n: int, event: Any) -> int:
            if samples and n > 0:
                blocks.append(np.ctypeslib.as_array(samples, (n,)).copy())
            i = 0
            while event[i].type:
                if event[i].type == _PHONEME:
                    events.append((event[i].sample, event[i].id.string.decode()))
                i += 1
            return 0

        callback = _Callback(collect)  # held by this name until the library is closed
        library.espeak_SetSynthCallback(callback)
        data = (_NO_ECHO + text).encode()
        if library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, 1, 0, _UTF8 | _END_PAUSE, None, None):
            raise ValueError(f"espeak-ng cannot say {text!r}")
    finally:
        _close(library)
    if not blocks or all(_PHONE_OF.get(mnemonic) == SILENCE for _, mnemonic in events):
        raise ValueError(f"espeak-ng says nothing to {text!r}; give it words")
    return np.concatenate(blocks), rate, events


def _set_voice(library: ctypes.CDLL, accent: str, variant: str) -> None:
    # The library itself passes over a variant that it does not have.
    if accent not in ACCENTS:
        raise ValueError(f"no accent {accent!r}; there are {', '.join(ACCENTS)}")
    if not variant or not (_paths()[1] / "voices" / "!v" / variant).is_file():
        known = sorted(path.name for path in (_paths()[1] / "voices" / "!v").glob("*"))
        raise ValueError(f"espeak-ng has no voice variant {variant!r}; it has {', '.join(known)}")
    if library.espeak_SetVoiceByName(f"gmw/{accent}+{variant}".encode()):
        raise ValueError(f"espeak-ng cannot load the accent {accent!r}; is {_paths()[1]} whole? Install it anew")


@cache
def _paths() -> tuple[Path, Path]:
    """The library and the folder of its data."""
    try:
        loader = importlib.import_module("espeakng_loader")
        library, data = Path(loader.get_library_path()), Path(loader.get_data_path())
    except (ImportError, RuntimeError) as error:
        raise ValueError(f'speech synthesis needs espeak-ng ({error}): pip install -e ".[synthesis]"') from error
    return library, data


@cache
def _link() -> tempfile.TemporaryDirectory[str]:
    """A folder that lives as long as the process, with a link to the data: a short path for a long one."""
    folder = tempfile.TemporaryDirectory(prefix="espeak-")
    os.symlink(_paths()[1], Path(folder.name) / "data")
    return folder


def _open() -> tuple[ctypes.CDLL, int]:
    """The library in its initial state, and its sample rate in Hz."""
    path, data = _paths()
    short = data if len(os.fsencode(data)) <= _LONGEST_PATH else Path(_link().name) / "data"
    if hasattr(os, "RTLD_NOLOAD"):
        try:
            held = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD)
        except OSError:
            pass  # as it should be
        else:
            _ctypes.dlclose(held._handle)
            raise ValueError(f"{path} is in use by another part of this process, whose state it shares; use a process")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise ValueError(
            f'{path} cannot be loaded ({error}); pip install --force-reinstall "espeakng-loader"'
        ) from None
    rate = library.espeak_Initialize(_SYNCHRONOUS, 200, os.fsencode(short), _PHONEME_EVENTS | _DO_NOT_EXIT)
    if rate <= 0:
        _close(library)
        raise ValueError(f"espeak-ng cannot read its data in {data}; pip install --force-reinstall espeakng-loader")
    return library, rate


def _close(library: ctypes.CDLL) -> None:
    library.espeak_Terminate()
    if sys.platform == "win32":
        _ctypes.FreeLibrary(library._handle)
    else:
        _ctypes.dlclose(library._handle)


def _phone(mnemonic: str, *, accent: str, text: str) -> str:
    """The class of an espeak mnemonic, of which stress marks come first."""
    bare = mnemonic.lstrip("',%=")
    phone = _PHONE_IN.get(accent, {}).get(bare) or _PHONE_OF.get(bare)
    if phone is None:
        raise ValueError(f"espeak's phoneme {mnemonic!r} in {text!r} ({accent}) has no class; say it in other words")
    return phone


def _with_closures(
    samples: Int16[np.ndarray, " n"], rate: int, starts: list[int], phones: list[str]
) -> tuple[Int64[np.ndarray, " m"], tuple[str, ...]]:
    """Boundaries as aligners set them: all of [0, n) is covered, and the closure of a stop belongs to the stop.

    espeak reports a phone after the pause before it, so that the closure seems to be of the phone before. The pause is
    found as silence, below 2 % of the root mean square. A stop takes up to 0.1 s of it; of other phones' pauses and of
    what remains, 30 ms or more become silence, and less stays with the phone before.
    """
    hop = rate // 500
    energy = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    quiet = (0.02**2) * energy[-1] / len(samples) * hop
    begins, names = [0], [SILENCE]
    for start, name in zip(starts, phones):
        pause = start
        if name != SILENCE and names[-1] != SILENCE:
            while pause - hop > begins[-1] + hop and energy[pause] - energy[pause - hop] < quiet:
                pause -= hop
        onset = max(pause, start - rate // 10) if name in _STOPS else start
        if onset - pause >= 0.03 * rate:
            begins.append(pause)
            names.append(SILENCE)
        elif name in _STOPS:
            onset = pause
        if onset <= begins[-1]:  # the phone before has no length: espeak reports some late
            begins.pop()
            names.pop()
        if names and names[-1] == name == SILENCE:
            continue
        begins.append(onset)
        names.append(name)
    if begins[-1] >= len(samples):
        begins.pop()
        names.pop()
    return np.array(begins, dtype=np.int64), tuple(names)
