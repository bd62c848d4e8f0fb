"""Phones as an aligner writes them, as intervals of time: TextGrid (Praat's, of MFA and MAUS) and CTM (Kaldi's)."""

import codecs
import dataclasses
import math
import re
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from stec.core.inert import named

OVERLAP = 0.005  # seconds; times are written in steps of 10 ms at worst
LONGEST_NAME = 255  # characters; no file system has longer ones


def shown(text: str) -> str:
    """A word of a file, as it can stand in a message: short, quoted, without control characters.

    >>> print(shown("a\\x1b[2J" + "b" * 99))
    'a\\x1b[2Jbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb...'
    """
    return repr(text if len(text) <= 40 else text[:40] + "...")


@dataclasses.dataclass(frozen=True, eq=False)
class Intervals:
    """Phones of one utterance in order of time, from `starts` to `ends` in seconds; gaps are allowed.

    Raises ValueError for times below 0, intervals that end before they begin, and overlaps.
    """

    starts: Float64[np.ndarray, " n"]
    ends: Float64[np.ndarray, " n"]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.starts) == len(self.ends) == len(self.names):
            raise ValueError(f"{len(self.starts)} starts, {len(self.ends)} ends, {len(self.names)} names; give as many")
        if fault := _fault(self.starts, self.ends):
            raise ValueError(f"interval {fault[0] + 1}, {shown(self.names[fault[0]])}: {fault[1]}")

    def __len__(self) -> int:
        """Number of intervals."""
        return len(self.names)


def _fault(starts: np.ndarray, ends: np.ndarray) -> tuple[int, str] | None:
    """The first interval that cannot be, and why."""
    backward = ~(ends >= starts) | ~np.isfinite(ends) | ~(starts >= 0)
    overlapping = np.zeros(len(starts), dtype=bool)
    overlapping[1:] = starts[1:] < np.maximum(starts[:-1], ends[:-1] - OVERLAP)
    if not (bad := backward | overlapping).any():
        return None
    i = int(bad.argmax())
    if backward[i]:
        return i, f"it lasts from {starts[i]} to {ends[i]} s; begin at 0 or later and end after that"
    return i, f"it begins at {starts[i]} s, before the one ahead of it ends at {ends[i - 1]} s; align again"


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark, its lines ended by newlines.

    Raises ValueError for anything else, with the line.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); name a text file") from error
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: no {'UTF-16' if wide else 'UTF-8'} text; it is torn or no text. Save it as UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


_NUMBER = re.compile(r"[-+]?(\d++\.?\d*+|\.\d++)([eE][-+]?\d++)?", re.ASCII)


def _seconds(word: str) -> float | None:
    """A finite number, or None; unlike `float` it takes neither "nan" nor "1_0"."""
    return float(word) if _NUMBER.fullmatch(word) and math.isfinite(float(word)) else None


class _Values:
    """The values of a Praat text file in order: free-standing numbers, quoted texts, flags.

    All else, such as `xmin =` and `intervals [1]:`, is decoration, so the long and the short format read the same
    (Praat manual, "TextGrid file formats").
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.content = read_text(path)
        self._tokens = re.finditer(r'!.*|"[^"]*(?:""[^"]*)*"|<\w+>|[^\s"]+|"', self.content)
        self.at = 0  # where the last value begins

    def error(self, message: str, at: int | None = None) -> ValueError:
        line = self.content.count("\n", 0, self.at if at is None else at) + 1
        return ValueError(f"{self.path}, line {line}: {message}")

    def _next(self, what: str) -> str:
        for token in self._tokens:
            self.at = token.start()
            word = token[0]
            if word == '"':
                raise self.error("a text has no closing quote; the file is torn, align again")
            if word[0] in '"<' or _NUMBER.fullmatch(word):
                return word
        self.at = len(self.content.rstrip())
        raise self.error(f"the file ends before {what}; it is torn or no TextGrid, align again")

    def number(self, what: str) -> float:
        word = self._next(what)
        if (value := _seconds(word)) is None:
            raise self.error(f"{what} should be a number and is {named([word])}; export the TextGrid again")
        return value

    def count(self, what: str) -> int:
        value = self.number(what)
        if value < 0 or value != int(value):
            raise self.error(f"{what} is {value}; export the TextGrid again")
        return int(value)

    def text(self, what: str) -> str:
        word = self._next(what)
        if word[0] != '"':
            raise self.error(f"{what} should be a quoted text and is {named([word])}; export the TextGrid again")
        return word[1:-1].replace('""', '"')

    def exists(self, what: str) -> bool:
        return self._next(what) == "<exists>"


def read_textgrid(path: str | Path, *, tier: str) -> Intervals:
    """The intervals of one tier of a TextGrid, such as "phones" (Montreal Forced Aligner) or "MAU" (MAUS).

    Reads the long and the short text format (Praat) in UTF-8 or UTF-16. Raises ValueError, with file and line, for
    torn files, what is no TextGrid, a tier that is missing or twice, and intervals that overlap.
    """
    values = _Values(path)
    if not values.text("the type of the file").startswith("ooTextFile") or values.text("its class") != "TextGrid":
        raise values.error("no TextGrid; name a TextGrid that Praat or an aligner wrote as text")
    values.number("the start of the file")
    values.number("the end of the file")
    if not values.exists("the mark that there are tiers"):
        raise values.error("the TextGrid has no tiers; align again")
    names: list[str] = []
    found: Intervals | None = None
    for _ in range(values.count("the number of tiers")):
        kind = values.text("the class of a tier")
        if kind not in ("IntervalTier", "TextTier"):
            raise values.error(f"a tier is {shown(kind)}; there are IntervalTier and TextTier")
        name = values.text("the name of a tier")
        if name == tier and kind == "TextTier":
            raise values.error(f"tier {tier!r} holds points; name a tier of intervals")
        if name == tier and found is not None:
            raise values.error(f"tier {tier!r} is there twice; rename one of the two")
        if kind == "IntervalTier":
            names.append(name)
        intervals = _tier(values, name, points=kind == "TextTier", wanted=name == tier)
        if name == tier:
            found = intervals
    if found is None:
        raise ValueError(
            f"{path} has no tier of intervals {tier!r}; there are: {', '.join(map(shown, names[:20])) or 'none'}"
        )
    return found


def _tier(values: _Values, name: str, *, points: bool, wanted: bool) -> Intervals | None:
    """Read past a tier; its intervals if they are wanted."""
    tier = f"tier {shown(name)}"
    values.number(f"the start of {tier}")
    values.number(f"the end of {tier}")
    starts, ends, texts, places = [], [], [], []
    total = values.count(f"the size of {tier}")
    for i in range(total):
        what = f"{'point' if points else 'interval'} {i + 1} of {total} in {tier}"
        starts.append(values.number(f"the start of {what}"))
        places.append(values.at)
        ends.append(starts[-1] if points else values.number(f"the end of {what}"))
        texts.append(values.text(f"the text of {what}"))
    if not wanted:
        return None
    begin, end = np.array(starts, dtype=np.float64), np.array(ends, dtype=np.float64)
    if fault := _fault(begin, end):
        raise values.error(f"{shown(texts[fault[0]])} in {tier}: {fault[1]}", places[fault[0]])
    return Intervals(begin, end, tuple(texts))


def read_ctm(path: str | Path) -> dict[str, Intervals]:
    """Intervals by utterance, from lines `utterance channel start duration symbol` (NIST; Kaldi's phone CTM).

    Lines may come in any order and go on after the symbol; those that begin with ";;" are comments. Raises
    ValueError, with file and line, for lines torn or of another form and intervals that overlap.
    """
    entries: dict[str, list[tuple[float, float, str, int]]] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        words = line.split()
        if not words or line.lstrip().startswith(";;"):
            continue
        if len(words) < 5:
            raise ValueError(
                f"{path}, line {number}: {len(words)} of 5 fields (utterance channel start duration symbol)"
            )
        start, duration = _seconds(words[2]), _seconds(words[3])
        if start is None or duration is None:
            raise ValueError(
                f"{path}, line {number}: {named([words[2]])} {named([words[3]])} are no start and duration in s"
            )
        entries.setdefault(words[0], []).append((start, start + duration, words[4], number))
    if not entries:
        raise ValueError(f"{path} is empty; name a CTM file of phones")
    return {utterance: _sorted(path, utterance, found) for utterance, found in entries.items()}


def _sorted(path: str | Path, utterance: str, entries: list[tuple[float, float, str, int]]) -> Intervals:
    entries = sorted(entries, key=lambda entry: entry[0])
    starts, ends = np.array([entry[0] for entry in entries]), np.array([entry[1] for entry in entries])
    if fault := _fault(starts, ends):
        raise ValueError(
            f"{path}, line {entries[fault[0]][3]}: {shown(entries[fault[0]][2])} of {named([utterance])}: {fault[1]}"
        )
    return Intervals(starts, ends, tuple(entry[2] for entry in entries))
