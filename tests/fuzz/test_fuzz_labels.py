"""Lists and alignments of speech: labels of CPC, TextGrid, CTM, splits, inventories."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from mutations import TEXT, Target, check, mutated, refusing

from stec.audio.cpc_labels import LARGEST_ID, read_cpc_labels
from stec.audio.labels import read_ctm, read_textgrid
from stec.audio.phones import SILENCES, Inventory
from stec.audio.splits import read_split

PHONES = ("sil", "AE1", "AH0", "B", "", "spn", 'say ""', "ʃ")


def cpc(random: Random) -> bytes:
    """Lines of an utterance and its ids."""
    lines = [
        f"84-1-{i} " + " ".join(str(random.randrange(41)) for _ in range(random.randrange(1, 6))) for i in range(3)
    ]
    return mutated("\n".join(lines).encode(), random, TEXT)


def textgrid(random: Random) -> bytes:
    """Two tiers in the long or the short format, in UTF-8 or UTF-16."""
    long = random.random() < 0.5
    parts = ['File type = "ooTextFile"\nObject class = "TextGrid"\n\n' if long else '"ooTextFile"\n"TextGrid"\n']
    tiers = random.choice((1, 2, 2))
    parts.append(
        f"xmin = 0\nxmax = 1.5\ntiers? <exists>\nsize = {tiers}\nitem []:\n" if long else f"0\n1.5\n<exists>\n{tiers}\n"
    )
    for tier in range(tiers):
        points = random.random() < 0.2
        count = random.randrange(4)
        name = ("phones", "words")[tier]
        kind = "TextTier" if points else "IntervalTier"
        parts.append(f'class = "{kind}"\nname = "{name}"\nxmin = 0\nxmax = 1.5\nsize = {count}\n' if long
                     else f'"{kind}"\n"{name}"\n0\n1.5\n{count}\n')  # fmt: skip
        for i in range(count):
            times = [f"{0.1 * i:.3f}"] if points else [f"{0.1 * i:.3f}", f"{0.1 * i + 0.1:.3f}"]
            parts.append(f"intervals [{i + 1}]:\n" if long else "")
            parts.append("\n".join([*times, f'"{random.choice(PHONES)}"\n']))
    text = "".join(parts)
    return mutated(text.encode(random.choice(("utf-8", "utf-8", "utf-8", "utf-16"))), random, TEXT)


def ctm(random: Random) -> bytes:
    """Lines of utterance, channel, start, duration and phone."""
    lines = [f"84-1-{i % 2} 1 {0.1 * i:.2f} 0.10 {random.choice(PHONES[:4])}" for i in range(random.randrange(1, 6))]
    return mutated("\n".join([";; a comment", *lines, ""]).encode(), random, TEXT)


def names(random: Random) -> bytes:
    """A name a line."""
    return mutated("\n".join(f"84-1-{i}" for i in range(random.randrange(1, 5))).encode(), random, TEXT)


def reader(name: str, read: Callable[[Path], Any], sound: Callable[[Any], bool]) -> Callable[[bytes, Path], None]:
    """Reads the input as a file; what is accepted must be `sound`."""

    def one(data: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(data)
        with refusing(path):
            assert sound(read(path))

    return one


def _ordered(intervals: Any) -> bool:
    return bool((intervals.starts >= 0).all() and (intervals.ends >= intervals.starts).all())


def _ids(labels: dict[str, Any]) -> bool:
    return all(len(ids) and 0 <= ids.min() <= ids.max() <= LARGEST_ID for ids in labels.values())


def _inventory(path: Path) -> Inventory:
    return Inventory.read(path, collapse=True, silences=SILENCES)


TARGETS = [
    Target("CPC labels", cpc, reader("labels.txt", read_cpc_labels, _ids), guided=True),
    Target(
        "TextGrid", textgrid, reader("a.TextGrid", lambda p: read_textgrid(p, tier="phones"), _ordered), guided=True
    ),
    Target("CTM", ctm, reader("a.ctm", read_ctm, lambda found: all(map(_ordered, found.values()))), guided=True),
    Target("split", names, reader("split.txt", read_split, lambda found: len(found) > 0), guided=True),
    Target("inventory", names, reader("phones.txt", _inventory, lambda found: len(found) > 0), guided=True),
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_broken_lists_are_read_or_refused_with_their_name(target: Target, tmp_path: Path) -> None:
    check(target, tmp_path, examples=100)
