"""Names of phones: which spellings mean the same one, their ids, and the ids that an aligner's intervals make.

`stec.audio.labels` reads the intervals.
"""

import dataclasses
import difflib
import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from stec.audio.labels import Intervals, read_text, shown
from stec.core.inert import named

SILENCE = "sil"  # the name that all names of silence become
# What aligners write for silence. MFA's "spn" is speech that is in no dictionary, or noise: leave it out of
# `Inventory.silences` to keep it as a class, which together with "sil" makes 41 of the 39 phones of ARPABET.
SILENCES = ("", "sil", "sp", "spn", "pau", "<sil>", "<eps>", "<p:>", "#")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inventory:
    """Names of phones in the order of their ids, and which spellings mean the same phone.

    `silences` are names of silence, in any case; `collapse` drops stress and Kaldi's place in the word (AE1 and AE1_B
    become AE). Raises ValueError for no name, and for names that mean the same phone.

    >>> Inventory(names=("sil", "AE"), collapse=True, silences=SILENCES).ids(["", "AE1", "sp"])
    array([0, 1, 0])
    """

    names: tuple[str, ...]
    collapse: bool = False
    silences: tuple[str, ...] = ("", SILENCE)

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("an inventory without names; give one for each phone id")
        if len(self._numbers) < len(self.names):
            meant = [self.canonical(name) for name in self.names]
            twice = next(name for name in meant if meant.count(name) > 1)
            same = [name for name in self.names if self.canonical(name) == twice]
            raise ValueError(
                f"{', '.join(map(shown, same[:9]))} mean one phone, {named([twice])}; name it once, or do not collapse"
            )

    @classmethod
    def read(cls, path: str | Path, *, collapse: bool = False, silences: Sequence[str] = ("", SILENCE)) -> "Inventory":
        """From a text file, one name a line in the order of ids. ValueError for empty lines and lines of two words."""
        lines = read_text(path).rstrip().split("\n")
        for number, line in enumerate(lines, start=1):
            if len(line.split()) != 1:
                raise ValueError(f"{path}, line {number}: {line[:40]!r} is no name; write one a line, in order of ids")
        try:
            return cls(names=tuple(line.strip() for line in lines), collapse=collapse, silences=tuple(silences))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def collect(
        cls, intervals: Iterable[Intervals], *, collapse: bool = False, silences: Sequence[str] = ("", SILENCE)
    ) -> "Inventory":
        """The names that occur in `intervals`: silence first, as in the labels of CPC, the others sorted."""
        rules = cls(names=(SILENCE,), collapse=collapse, silences=tuple(silences))
        found = {rules.canonical(name) for name in {name for one in intervals for name in one.names}}
        return dataclasses.replace(rules, names=tuple(sorted(found, key=lambda name: (name != SILENCE, name))))

    def __len__(self) -> int:
        """Number of phones."""
        return len(self.names)

    def canonical(self, name: str) -> str:
        """The one spelling of a phone."""
        name = name.strip()
        if self.collapse:
            name = re.sub(r"_[BIES]$", "", name)
        if name.casefold() in (silence.casefold() for silence in self.silences):
            return SILENCE
        return re.sub(r"^([A-Za-z]{2})[0-2]$", r"\1", name) if self.collapse else name

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {self.canonical(name): i for i, name in enumerate(self.names)}

    def ids(self, names: Sequence[str]) -> Int64[np.ndarray, " n"]:
        """The id of each name; ValueError names what is unknown and the nearest that is known."""
        spelt = {name: self.canonical(name) for name in dict.fromkeys(names)}
        for name, phone in spelt.items():
            if phone not in self._numbers:
                near = difflib.get_close_matches(phone, self._numbers, n=1, cutoff=0.0)[0]
                known = shown(self.names[self._numbers[near]])
                raise ValueError(
                    f"{shown(name)} is none of the {len(self)} phones; the nearest is {known}. "
                    "Add it to the inventory, collapse stress, or name it among the silences"
                )
        return np.array([self._numbers[spelt[name]] for name in names], dtype=np.int64)


def frame_labels(
    intervals: Intervals, n_frames: int, *, hop: float, centre: float, rate: float, inventory: Inventory
) -> Int64[np.ndarray, " n_frames"]:
    """The id of the phone that holds the centre of each label, -1 where none does.

    Label i is centred on sample `hop * i + centre` at `rate` Hz: hop 160, centre 200, rate 16,000 makes labels as
    Kaldi's. An interval holds its start and not its end.

    >>> word = Intervals(np.array([0.0, 0.02]), np.array([0.02, 0.05]), ("sil", "AE"))
    >>> frame_labels(word, 4, hop=160, centre=200, rate=16_000, inventory=Inventory(names=("sil", "AE")))
    array([0, 1, 1, 1])
    """
    if not len(intervals):
        return np.full(n_frames, -1, dtype=np.int64)
    times = (np.arange(n_frames) * hop + centre) / rate
    which = intervals.starts.searchsorted(times, side="right") - 1
    held = (which >= 0) & (times < intervals.ends[which])
    return np.where(held, inventory.ids(intervals.names)[which], -1)
