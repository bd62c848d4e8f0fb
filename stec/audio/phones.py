"""Phones as ids at a fixed rate: their text format, their names, and which frame of an encoder each belongs to.

`stec.audio.labels` reads the intervals of an aligner, of which `frame_labels` makes such ids.
"""

import contextlib
import dataclasses
import difflib
import functools
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from stec.audio.labels import LONGEST_NAME, Intervals, read_text, shown
from stec.core.inert import named

SILENCE = "sil"  # the name that all names of silence become
# What aligners write for silence. MFA's "spn" is speech that is in no dictionary, or noise: leave it out of
# `Inventory.silences` to keep it as a class, which together with "sil" makes 41 of the 39 phones of ARPABET.
SILENCES = ("", "sil", "sp", "spn", "pau", "<sil>", "<eps>", "<p:>", "#")
LARGEST_ID = 2**31 - 1  # no inventory comes near; numpy clips what does not fit into int64, and this is below that


def read_cpc_labels(path: str | Path, *, classes: int | None = None) -> dict[str, np.ndarray]:
    """Labels (n,) int64 by utterance, from lines `<utterance> <id> <id> ...`, one id every 10 ms (Oord et al. 2018).

    Blank lines are passed over. With `classes`, ids reach to `classes - 1` at most. Raises ValueError, with file and
    line, for what is no such file, an id that is no integer from 0 on, an utterance twice or without labels.
    """
    labels: dict[str, np.ndarray] = {}
    lines: dict[str, int] = {}
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, as some editors write
                if not (words := line.split(maxsplit=1)):
                    continue
                where = f"{path}, line {number}"
                utterance = _utterance(words[0], where)
                if utterance in labels:
                    raise ValueError(f"{where}: {utterance} stands in line {lines[utterance]} already; remove one")
                if len(words) == 1:
                    raise ValueError(f"{where}: {utterance} has no labels; remove the line, or add its labels")
                labels[utterance] = _ids(words[1], classes, where=f"{where}, {utterance}")
                lines[utterance] = number
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); name a file of phone labels") from error
    if not labels:
        raise ValueError(f"{path} is empty; name a file with lines of an utterance and its phone ids")
    return labels


def _utterance(word: bytes, where: str) -> str:
    try:
        utterance = word.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: no UTF-8 text; name a file of phone labels, or save it as UTF-8") from error
    if not utterance.isprintable() or len(utterance) > LONGEST_NAME:
        raise ValueError(f"{where}: no text, but {utterance[:20]!r}; name a file of phone labels")
    return utterance


def _ids(text: bytes, classes: int | None, *, where: str) -> np.ndarray:
    # What is left is looked at before numpy, whose parser stops at the first odd character. Four times as fast as
    # np.array(text.split(), dtype=np.int64).
    if text.translate(None, b"0123456789 \t\r\n\v\f"):
        word = next(word for word in text.split() if not word.isdigit()).decode("utf-8", "replace")
        raise ValueError(f"{where}: {word[:40]!r} is no phone id; ids are integers from 0 on, one every 10 ms")
    ids = np.fromstring(text, dtype=np.int64, sep=" ")
    if (largest := int(ids.max())) > (LARGEST_ID if classes is None else classes - 1):
        known = "of any inventory" if classes is None else f"of {classes} classes, 0 to {classes - 1}"
        position = int(ids.argmax()) + 1
        raise ValueError(f"{where}: label {position} is {largest}, no id {known}; give the inventory of these labels")
    return ids


def write_cpc_labels(path: str | Path, labels: Mapping[str, np.ndarray]) -> None:
    """Write what `read_cpc_labels` reads, whole or not at all.

    Raises ValueError for what it would refuse to read, and where the file cannot be written.
    """
    if not labels:
        raise ValueError(f"{path}: there are no labels to write; give at least one utterance")
    for utterance, ids in labels.items():
        if not utterance or len(utterance.split()) != 1 or not utterance.isprintable():
            raise ValueError(f"{path}: {utterance!r} cannot name an utterance; use one word without spaces")
        if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"{path}: labels of {utterance} are {ids.dtype} {ids.shape}; give integers (n,), n > 0")
        if not 0 <= int(ids.min()) <= int(ids.max()) <= LARGEST_ID:
            raise ValueError(
                f"{path}: labels of {utterance} reach from {ids.min()} to {ids.max()}; ids begin at 0, "
                "so give frames without a phone the id of silence"
            )
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{utterance} {' '.join(map(str, ids.tolist()))}\n" for utterance, ids in labels.items())
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}); make room, or name another file. Nothing was changed"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # it is not there any more, or never was
            part.unlink()


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alignment:
    """Which frame of an encoder belongs to which label: frame = label + offset.

    Frame j is centred on sample `frame_hop * j + frame_centre`, label i on `label_hop * i + label_centre`, counted
    from the beginning of an utterance at 16 kHz. The centre of a frame follows from the encoder's paddings: 79.5 for
    3, 2, 1, 1, 1 (CPC_audio) and 20.5 for 2, 2, 2, 2, 1 (Greedy InfoMax). Kaldi's labels are centred on 200: windows
    of 400 samples, the first of which begins with the utterance. `offset` None: both sequences end together.
    Raises ValueError where the hops differ, since then no offset fits.

    >>> Alignment().frame_labels(np.array([7, 8, 9]), 5)
    tensor([-1,  7,  8,  9, -1])
    """

    frame_hop: int = 160
    frame_centre: float = 79.5
    label_hop: int = 160
    label_centre: float = 200.0
    offset: int | None = 1

    def __post_init__(self) -> None:
        if self.frame_hop < 1 or self.frame_hop != self.label_hop:
            raise ValueError(
                f"frames lie {self.frame_hop} samples apart, labels {self.label_hop}; make labels with the encoder's "
                "hop, from intervals by stec.audio.labels.frame_labels"
            )

    @classmethod
    def nearest(
        cls, *, frame_hop: int = 160, frame_centre: float = 79.5, label_hop: int = 160, label_centre: float = 200.0
    ) -> "Alignment":
        """With the offset that brings the centres of frames and labels closest; of two equally close, the later frame.

        >>> Alignment.nearest(frame_centre=20.5).offset
        1
        """
        offset = math.floor((label_centre - frame_centre) / frame_hop + 0.5)
        return cls(
            frame_hop=frame_hop,
            frame_centre=frame_centre,
            label_hop=label_hop,
            label_centre=label_centre,
            offset=offset,
        )

    @property
    def residual(self) -> float:
        """Samples from the centre of a frame to that of its label; ValueError where the offset depends on lengths.

        >>> Alignment().residual
        -39.5
        """
        if self.offset is None:
            raise ValueError("offset None aligns the ends, so centres differ by utterance; give an offset")
        return self.label_centre - (self.frame_hop * self.offset + self.frame_centre)

    def check(self, samples: int, n_labels: int, utterance: str) -> None:
        """ValueError where `n_labels` are not labels of a waveform of `samples`.

        Accepts one label less than Kaldi makes, (samples - 400) // 160 + 1, up to samples // 160 + 1, which is what
        centred windows give: a difference that an offset can mend.
        """
        hop = self.label_hop
        fewest = max(1, (samples - math.ceil(2 * self.label_centre)) // hop)
        most = samples // hop + 1
        if fewest <= n_labels <= most:
            return
        apart = samples / max(1, n_labels)
        ratio = max(apart / hop, hop / max(apart, 1))
        if n_labels and abs(ratio - round(ratio)) < 0.05 * ratio and round(ratio) > 1:
            cause = f"these lie {apart:.0f} samples apart: labels of another rate; make them one every {hop} samples"
        else:
            cause = "the labels are of other audio, or one of both was cut; pair them anew, or leave the utterance out"
        raise ValueError(
            f"{utterance} has {n_labels} labels and {samples} samples, which take {fewest} to {most} labels, "
            f"one every {hop} samples; {cause}"
        )

    def pair(self, n_frames: int, n_labels: int) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " m"]]:
        """Indices of frames, and of the labels that belong to them; labels without a frame are left out.

        >>> Alignment().pair(4, 3)
        (tensor([1, 2, 3]), tensor([0, 1, 2]))
        """
        offset = n_frames - n_labels if self.offset is None else self.offset
        first = max(0, offset)
        frames = torch.arange(first, max(first, min(n_frames, n_labels + offset)))
        return frames, frames - offset

    def frame_labels(
        self, labels: Int[np.ndarray, " n"] | Int[Tensor, " n"], n_frames: int
    ) -> Int64[Tensor, " n_frames"]:
        """The label of each frame, -1 where it has none."""
        frames, chosen = self.pair(n_frames, len(labels))
        found = torch.full((n_frames,), -1)
        found[frames] = torch.tensor(np.asarray(labels), dtype=torch.int64)[chosen]
        return found


# What the peers do on whole utterances. CPC_audio (facebookresearch) takes label `sample // 160` and cuts the waveform
# to its labels; s3prl's phone_linear drops trailing features; Greedy InfoMax drops leading ones ("Cutting from the
# front gave better results empirically"): with its paddings 2, or 3 for a quarter of all lengths, past the nearest.
CONVENTIONS = {
    "nearest": Alignment(),
    "cpc_audio": Alignment(offset=0),
    "s3prl": Alignment(offset=0),
    "gim": Alignment(frame_centre=20.5, offset=None),
}
