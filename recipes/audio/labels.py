"""Make phone labels of an aligner's intervals: python -m recipes.audio.labels SOURCE --corpus CACHE --out FILE.

  python -m recipes.audio.labels alignments --corpus cache/mine --out labels.txt --collapse
  python -m recipes.audio.labels phones.ctm --corpus cache/mine --out labels.txt

SOURCE is a folder with a TextGrid for each utterance, named like it, or a CTM file. A TextGrid lies in the folders that
its audio lies in, as aligners write it; where its bare name tells the utterance, it may lie at any depth. Written are
labels in the CPC text format, one every 10 ms, and beside them phones.txt, the names of the phones in order of their
ids. recipes.audio.phones takes both.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import tyro

from recipes.terminal import command, say
from stec.audio.corpus import Corpus
from stec.audio.cpc_labels import write_cpc_labels
from stec.audio.labels import Intervals, read_ctm, read_textgrid
from stec.audio.phones import SILENCE, SILENCES, Inventory, frame_labels

HOP, CENTRE, WINDOW = 160, 200, 400  # samples: Kaldi's frames, which the published labels of CPC are
PHONES = "phones.txt"
BEYOND = 0.1  # seconds that an alignment may last past its audio, for rounded times


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which alignments of which speech, and where to."""

    source: tyro.conf.Positional[Path]  # a folder of TextGrids, or a CTM file
    corpus: Path  # the cache that recipes.audio.prepare wrote
    out: Path  # the file of labels; phones.txt is written beside it
    tier: str = "phones"  # of the TextGrids; MAUS calls it MAU
    collapse: bool = False  # without stress and place in the word: AE1_B is AE


def read_alignments(source: Path, corpus: Corpus, *, tier: str) -> tuple[dict[str, Intervals], list[str]]:
    """The intervals of utterances of the corpus, in its order, and the names of all other alignments."""
    found: Mapping[str, Intervals | Path]
    if source.is_dir():
        found = _textgrids(source, corpus.utterances)
    elif source.is_file():
        found = read_ctm(source)
    else:
        raise ValueError(f"{source} is neither a folder of TextGrids nor a CTM file; name what the aligner wrote")
    known = set(corpus.utterances)
    others = [name for name in found if name not in known]
    alignments = {}
    for name in corpus.utterances:
        if (one := found.get(name)) is not None:
            alignments[name] = read_textgrid(one, tier=tier) if isinstance(one, Path) else one
    return alignments, others


def _textgrids(folder: Path, utterances: Sequence[str]) -> dict[str, Path]:
    """The TextGrids of a folder by utterance, those of no utterance by their path in the folder.

    An utterance and a TextGrid have one path below their folders; or one of them lies in no folder, and their last
    names are the same. ValueError where a TextGrid is of several utterances, or an utterance has several.
    """
    paths = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() == ".textgrid" and not p.name.startswith(".")]
    if not paths:
        raise ValueError(f"{folder} holds no TextGrid; name the folder that the aligner wrote, or a CTM file")
    known = set(utterances)
    by_last: dict[str, list[str]] = {}
    for utterance in utterances:
        by_last.setdefault(PurePosixPath(utterance).name, []).append(utterance)
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    exact = known.intersection(names)
    found: dict[str, Path] = {}
    for path, name in zip(paths, names):
        if name not in known:
            bare = by_last.get(name, []) if name == path.stem else [path.stem] if path.stem in known else []
            of = bare if set(bare) - exact else []
            if len(of) > 1:
                raise ValueError(f"{path} may be of {of[0]} or of {of[1]}; lay TextGrids in the folders of their audio")
            name = of[0] if of else name
        if name in found:
            raise ValueError(f"{found[name]} and {path} are both of {name}; remove one")
        found[name] = path
    return found


def label(alignments: Mapping[str, Intervals], corpus: Corpus, inventory: Inventory) -> dict[str, np.ndarray]:
    """Ids of all frames of each utterance that is long enough for one, -1 in no interval."""
    labels = {}
    for name, intervals in alignments.items():
        samples = int(corpus.lengths[corpus.index(name)])
        if len(intervals) and intervals.ends[-1] > samples / corpus.rate + BEYOND:
            raise ValueError(
                f"the alignment of {name} ends at {intervals.ends[-1]:g} s, its audio at {samples / corpus.rate:g} s; "
                "it is of other audio: align again, or remove it"
            )
        if samples >= WINDOW:
            count = (samples - WINDOW) // HOP + 1
            labels[name] = frame_labels(intervals, count, hop=HOP, centre=CENTRE, rate=corpus.rate, inventory=inventory)
    return labels


def collect(alignments: Mapping[str, Intervals], *, collapse: bool) -> Inventory:
    """The phones of these alignments, and silence, which is id 0, whether or not one names it."""
    silent = Intervals(np.zeros(1), np.zeros(1), (SILENCE,))
    inventory = Inventory.collect([*alignments.values(), silent], collapse=collapse, silences=SILENCES)
    if wrong := [name for name in inventory.names if len(name.split()) != 1]:
        raise ValueError(
            f"{wrong[0]!r} cannot be the name of a phone, with its space; name the tier of phones (--tier)"
        )
    return inventory


def summary(labels: Mapping[str, np.ndarray], corpus: Corpus, inventory: Inventory, others: list[str]) -> list[str]:
    """What was written and what is missing, a line each."""
    frames = sum(len(ids) for ids in labels.values())
    bare = sum(int((ids < 0).sum()) for ids in labels.values())
    lines = [f"{len(labels)} utterances, {frames} labels of {len(inventory)} phones"]
    if bare:
        lines.append(f"{bare} labels ({100 * bare / frames:.1f} %) lie in no interval: silence")
    if without := [name for name in corpus.utterances if name not in labels]:
        lines.append(f"{len(without)} utterances of the corpus have no labels, such as {without[0]}")
    if others:
        lines.append(f"{len(others)} alignments are of no utterance of the corpus, such as {others[0]}")
    return lines


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    arguments = tyro.cli(Arguments, args=argv, prog="python -m recipes.audio.labels", description=__doc__)
    if arguments.out.name == PHONES:
        raise ValueError(f"{PHONES} holds the names of the phones; give --out another name than {PHONES}")
    corpus = Corpus.open(arguments.corpus)
    alignments, others = read_alignments(arguments.source, corpus, tier=arguments.tier)
    if not alignments:
        raise ValueError(
            f"{arguments.source} aligns no utterance of {arguments.corpus}, whose names are like "
            f"{corpus.utterances[0]!r}, not {others[0]!r}; name TextGrids, or the lines of the CTM, like utterances"
        )
    inventory = collect(alignments, collapse=arguments.collapse)
    labels = label(alignments, corpus, inventory)
    if not labels:
        raise ValueError(f"{arguments.source} aligns utterances of less than {WINDOW} samples alone; none has a label")
    write_cpc_labels(arguments.out, {name: ids.clip(min=0) for name, ids in labels.items()})
    names = arguments.out.with_name(PHONES)
    try:
        names.write_text("".join(f"{name}\n" for name in inventory.names), encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{names} cannot be written ({error.strerror}); make room, or name another folder") from error
    first, *rest = summary(labels, corpus, inventory, others)
    for line in (f"{arguments.out} and {names}: {first}", *rest):
        say(line)


if __name__ == "__main__":
    command(main)
