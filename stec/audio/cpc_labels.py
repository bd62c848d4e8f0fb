"""Phones as ids at a fixed rate: the text format of the CPC task's labels (Oord et al. 2018)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stec.audio.labels import LONGEST_NAME
from stec.core.files import whole

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
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as file:
            for utterance, ids in labels.items():
                file.write(f"{utterance} {' '.join(map(str, ids.tolist()))}\n".encode())
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}); make room, or name another file. Nothing was changed"
        ) from error
