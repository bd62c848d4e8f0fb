"""Inputs that are nearly right, the targets that read them, and what a target may do about it.

A valid file is made first, then broken: cut, flipped, doubled, with a number replaced by one that nobody expects. All
choices are drawn from one `random.Random`: a seeded one makes runs of any length repeatable
(`python tests/fuzz/fuzzing.py`), hypothesis's own lets it shrink what fails (`check`).
"""

import os
import re
import resource
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NUMBERS = (
    b"0", b"-1", b"-0.0", b"1e400", b"-1e400", b"1e-400", b"nan", b"inf", b"Infinity", b"NaN", b"1_0", b"0x10", b"1.5",
    b"9" * 25, b"2147483648", b"9223372036854775808", b"1e308", b"7" * 5000, "٣".encode(), "²".encode(), b"",
)  # fmt: skip
ODD = (
    b"\0",
    b"\x1b[2J",
    b"\r",
    b"\n",
    b"\n\n",
    b" ",
    b"\t",
    b'"',
    b"'",
    b"\\",
    b"|",
    b"[/bold]",
    b"..",
    b"../../etc",
    b"/",
    b"{",
    b"[",
    b"<",
    b">",
    b"&",
    b"]]>",
    b"\xff\xfe",
    b"\xfe\xff",
    b"\xef\xbb\xbf",
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    "\u2028".encode(),
    "\u202e".encode(),
    "\u0085".encode(),
    "e\u0301".encode(),
    "\U0001f9ea".encode(),
    b"a" * 300,
)
WORDS = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 1,
)
LARGEST = 1 << 16  # bytes of an input


def _cut(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _without(data: bytes, random: Random) -> bytes:
    start = random.randrange(len(data) + 1)
    return data[:start] + data[start + random.choice((1, 2, 4, 8, 16, 64)) :]


def _flip(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << random.randrange(8))]) + data[at + 1 :]


def _byte(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data))
    return data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]


def _double(data: bytes, random: Random) -> bytes:
    start = random.randrange(len(data))
    part = data[start : start + random.choice((1, 4, 16, 64, 256))]
    at = random.randrange(len(data) + 1)
    return data[:at] + part * random.choice((1, 1, 1, 2, 50)) + data[at:]


def _number(data: bytes, random: Random) -> bytes:
    found = [match.span() for match in re.finditer(rb"\d+(\.\d+)?", data)]
    if not found:
        return _odd(data, random)
    start, end = random.choice(found)
    return data[:start] + random.choice(NUMBERS) + data[end:]


def _word(data: bytes, random: Random) -> bytes:
    """A length or count of a binary format."""
    size, order = random.choice((1, 2, 4, 8)), random.choice("<>")
    at = random.randrange(len(data))
    value = random.choice(WORDS) & ((1 << 8 * size) - 1)
    return data[:at] + struct.pack(order + {1: "B", 2: "H", 4: "I", 8: "Q"}[size], value) + data[at + size :]


def _odd(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data) + 1)
    return data[:at] + random.choice(ODD) + data[at:]


def _swap(data: bytes, random: Random) -> bytes:
    a, b, c = sorted(random.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


TEXT = (_cut, _without, _flip, _byte, _double, _number, _number, _odd, _odd, _swap)
BINARY = (_cut, _without, _flip, _flip, _byte, _byte, _double, _word, _word, _word, _odd, _swap)


def mutated(data: bytes, random: Random, ways: Sequence[Callable[[bytes, Random], bytes]]) -> bytes:
    """`data` broken in up to four ways; once in about five not at all, for parsers must also accept."""
    for _ in range(random.choice((0, 1, 1, 2, 4))):
        if data:
            data = random.choice(ways)(data, random)[:LARGEST]
    return data


class Target(NamedTuple):
    """A parser: inputs for it, and `read`, which writes one below a folder, reads it, and raises where it may not."""

    name: str
    make: Callable[[Random], bytes]
    read: Callable[[bytes, Path], None]
    guided: bool = False  # in pure Python of ours: atheris sees its branches


@contextmanager
def refusing(path: Path | None) -> Iterator[None]:
    """Lets a ValueError pass that names the file and can be shown to a person; everything else is a finding."""
    try:
        yield
    except ValueError as error:
        said = f"{type(error).__name__}: {error}"
        if path is not None and str(path) not in said:
            raise AssertionError(f"the file is not named: {said[:200]}") from error
        if len(said) > 5000 or not all(c.isprintable() or c == "\n" for c in said):
            raise AssertionError(f"a message of {len(said)} characters for no terminal: {said[:200]!r}") from error


@contextmanager
def address_space(more: int) -> Iterator[None]:
    """At most `more` bytes beyond what the process has; then MemoryError."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def check(target: Target, folder: Path, *, examples: int) -> None:
    """Some inputs, drawn and shrunk by hypothesis: the share of the fuzzing that every run of the tests repeats."""
    torch.set_num_threads(1)

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def reads(random: Random) -> None:
        target.read(target.make(random), folder)

    reads()
