"""Lists of utterances: a split from a file, whether splits overlap, what pretraining has seen, what can be used."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

from stec.audio.labels import LONGEST_NAME, read_text


def read_split(path: str | Path) -> tuple[str, ...]:
    """The utterances of a split, one a line, in their order.

    Raises ValueError, with file and line, for an utterance twice, lines of several words and an empty file.
    """
    lines: dict[str, int] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) > 1 or not words[0].isprintable() or len(words[0]) > LONGEST_NAME:
            raise ValueError(f"{path}, line {number}: {line[:40]!r} is no utterance; name a file with one a line")
        if words[0] in lines:
            raise ValueError(f"{path}, line {number}: {words[0]} stands in line {lines[words[0]]} already; remove one")
        lines[words[0]] = number
    if not lines:
        raise ValueError(f"{path} is empty; name a file with one utterance a line")
    return tuple(lines)


def check_splits(train: Sequence[str], test: Sequence[str]) -> None:
    """ValueError where an utterance is in both."""
    tested = set(test)
    if shared := [name for name in train if name in tested]:
        raise ValueError(
            f"{len(shared)} utterances are in the training and in the test split: {few(shared)}; "
            "take them out of one, or give two different files"
        )


@dataclasses.dataclass(frozen=True)
class SplitCheck:
    """How much of a split pretraining has seen."""

    utterances: int
    seen_utterances: int
    speakers: int
    seen_speakers: int

    def __str__(self) -> str:
        return (
            f"{self.seen_utterances:,} of {self.utterances:,} utterances "
            f"and {self.seen_speakers:,} of {self.speakers:,} speakers"
        )


def overlap_with(
    pretrained: Sequence[str], split: Sequence[str], *, speakers: Mapping[str, str] | None = None
) -> SplitCheck:
    """How many utterances and speakers of `split` are among those of pretraining.

    The speaker is what stands before the first dash of an utterance, as in LibriSpeech, or what `speakers` says.
    Raises ValueError for an utterance without a speaker in `speakers`.

    >>> print(overlap_with(["84-1-0", "84-1-1"], ["84-1-1", "84-1-2", "99-1-0"]))
    1 of 3 utterances and 1 of 2 speakers
    """

    def speakers_of(names: Sequence[str]) -> set[str]:
        if speakers is None:
            return {name.partition("-")[0] for name in names}
        if unknown := [name for name in names if name not in speakers]:
            raise ValueError(f"{len(unknown)} utterances have no speaker: {few(unknown)}; name the speaker of each")
        return {speakers[name] for name in names}

    tested = speakers_of(split)
    return SplitCheck(
        utterances=len(set(split)),
        seen_utterances=len(set(split) & set(pretrained)),
        speakers=len(tested),
        seen_speakers=len(tested & speakers_of(pretrained)),
    )


@dataclasses.dataclass(frozen=True)
class Selection:
    """The utterances of a split that have all that was asked for, and what others lack, in the order of the split."""

    names: tuple[str, ...]
    without_audio: tuple[str, ...]
    without_labels: tuple[str, ...]

    def __str__(self) -> str:
        lacks = [
            f"; {len(names):,} without {what}, such as {few(names)}"
            for what, names in (("audio", self.without_audio), ("labels", self.without_labels))
            if names
        ]
        return f"{len(self.names):,} utterances" + "".join(lacks)


def select(split: Sequence[str], *, corpus: Collection[str], labels: Collection[str] | None = None) -> Selection:
    """The utterances of `split` that are in `corpus` and, where labels are asked for, in `labels`.

    Raises ValueError where none remains, and says so where the names are the same but for folders and endings.

    >>> print(select(["a", "b", "c"], corpus=["a", "c"], labels={"a": 0, "b": 1}))
    1 utterances; 1 without audio, such as b; 1 without labels, such as c
    """
    with_audio, with_labels = set(corpus), set(split if labels is None else labels)
    selection = Selection(
        names=tuple(name for name in split if name in with_audio and name in with_labels),
        without_audio=tuple(name for name in split if name not in with_audio),
        without_labels=tuple(name for name in split if name not in with_labels),
    )
    if selection.names:
        return selection
    hints = [
        hint
        for what, names, complete in (
            ("corpus", corpus, selection.without_audio),
            ("labels", labels or (), selection.without_labels),
        )
        if complete and (hint := _other_form(split, names, what))
    ]
    if labels is None:
        raise ValueError(
            f"of {len(split):,} utterances of the split none is among the {len(with_audio):,} of the corpus; "
            + ("; ".join(hints) or f"give the split of this corpus; this one names {few(split)}")
        )
    raise ValueError(
        f"of {len(split):,} utterances of the split none has both audio and labels: {len(selection.without_audio):,} "
        f"are not among the {len(with_audio):,} of the corpus, {len(selection.without_labels):,} not among the "
        f"{len(with_labels):,} with labels; "
        + ("; ".join(hints) or f"give the split of this corpus and these labels, which names {few(split)}")
    )


def _other_form(split: Sequence[str], names: Collection[str], what: str) -> str | None:
    """A sentence where the split and `names` spell the same utterances in two ways."""
    spelt = {_bare(name): name for name in names}
    for name in split:
        if (other := spelt.get(_bare(name), name)) != name:
            return f"names differ in form: {name!r} in the split is {other!r} in the {what}; write them alike"
    return None


def _bare(name: str) -> str:
    """An utterance without folders, ending and case."""
    last = PurePosixPath(name.replace("\\", "/")).name
    stem, dot, ending = last.rpartition(".")
    return (stem if dot and ending.lower() in ("flac", "wav", "ogg", "mp3") else last).casefold().replace("_", "-")


def few(names: Sequence[str]) -> str:
    """The first names of many, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
