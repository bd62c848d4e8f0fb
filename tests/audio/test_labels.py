"""TextGrid and CTM: both formats and encodings of Praat, what aligners write, torn files, any bytes."""

import codecs
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stec.audio.labels import Intervals, read_ctm, read_text, read_textgrid

# As the Montreal Forced Aligner and Praat write it: silence is the empty text.
LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.25
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1.25
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = ""
        intervals [2]:
            xmin = 0.5
            xmax = 1.25
            text = "say ""at"" 7
<exists>"
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 1.25
        points: size = 1
        points [1]:
            number = -0.25
            mark = "click"
    item [3]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 1.25
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = ""
        intervals [2]:
            xmin = 0.5
            xmax = 1.0e0
            text = "AE1"
        intervals [3]:
            xmin = 1
            xmax = 1.25
            text = "T\u00e9"
"""

# As MAUS writes it with the short format, here with a comment.
SHORT = """File type = "ooTextFile"
"TextGrid"

0
0.75 ! s, 12 of "them
<exists>
1
"IntervalTier"
"MAU"
0
0.75
2
0
0.5
"<p:>"
0.5
0.75
"{"
"""

CTM = """;; utterance channel start duration symbol
84-1-0 1 0.00 0.25 SIL
84-1-1 1 0.50 0.25 AE1_B 0.97
84-1-0 1 0.25 0.50 T_E

84-1-1 1 0.00 0.50 SIL
"""


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def listed(intervals: Intervals) -> list[tuple[float, float, str]]:
    return list(zip(intervals.starts.tolist(), intervals.ends.tolist(), intervals.names))


# --- TextGrid

ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "utf-8": str.encode,
    "utf-8 with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "utf-16 le": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "utf-16 be": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
}


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_long_format(tmp_path: Path, encoding: str, newline: str) -> None:
    path = write(tmp_path / "a.TextGrid", ENCODINGS[encoding](LONG.replace("\n", newline)))
    phones = read_textgrid(path, tier="phones")
    assert listed(phones) == [(0, 0.5, ""), (0.5, 1, "AE1"), (1, 1.25, "Té")]
    assert len(phones) == 3
    assert listed(read_textgrid(path, tier="words"))[1] == (0.5, 1.25, 'say "at" 7\n<exists>')


def test_short_format(tmp_path: Path) -> None:
    path = write(tmp_path / "a.TextGrid", SHORT)
    assert listed(read_textgrid(path, tier="MAU")) == [(0, 0.5, "<p:>"), (0.5, 0.75, "{")]


def test_short_and_long_are_the_same_values(tmp_path: Path) -> None:
    bare = [line.split("=")[-1].split("?")[-1] for line in LONG.split("\n") if "item" not in line and "s [" not in line]
    path = write(tmp_path / "a.TextGrid", "\n".join(bare))
    assert listed(read_textgrid(path, tier="phones")) == [(0, 0.5, ""), (0.5, 1, "AE1"), (1, 1.25, "Té")]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("TextGrid", "Pitch 1", "line 2: no TextGrid"),
        ("ooTextFile", "text", "line 1: no TextGrid"),
        ("<exists>\nsize", "<absent>\nsize", "line 6: the TextGrid has no tiers"),
        ("IntervalTier", "Tier", "line 10: a tier is 'Tier'"),
        ('"words"', '"phones"', "line 35: tier 'phones' is there twice"),
        ('"words"', "words", "line 12: the name of a tier should be a quoted text and is 0"),
        ("size = 3\nitem", "size = 2.5\nitem", "line 7: the number of tiers is 2.5"),
        ("size = 3\nitem", "size = -1\nitem", "line 7: the number of tiers is -1"),
        ("intervals: size = 3", "intervals: size = 4", "line 50: the file ends before the start of interval 4 of 4"),
        ("xmax = 1.0e0", 'xmax = ""', "line 45: the end of interval 2 of 3 in tier 'phones' should be a number"),
        ("xmax = 1.0e0", "xmax = 1e999", "line 45: the end of .* should be a number and is 1e999"),
        ("xmax = 1.0e0", "xmax = 0.25", "line 44: 'AE1' in tier 'phones': it lasts from 0.5 to 0.25 s"),
        ("xmax = 1.0e0", "xmax = 1.1", "line 48: .*: it begins at 1.0 s, before the one ahead of it ends at 1.1 s"),
        ('"AE1"', '"AE1', "line 50: a text has no closing quote"),
    ],
)
def test_refuses_textgrids(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in LONG
    path = write(tmp_path / "a.TextGrid", LONG.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as error:
        read_textgrid(path, tier="phones")
    assert str(path) in str(error.value)


def test_refuses_missing_tiers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.TextGrid", LONG)
    with pytest.raises(ValueError, match="no tier of intervals 'MAU'; there are: 'words', 'phones'"):
        read_textgrid(path, tier="MAU")
    with pytest.raises(ValueError, match="line 26: tier 'clicks' holds points"):
        read_textgrid(path, tier="clicks")


@pytest.mark.parametrize(("text", "tier"), [(LONG, "words"), (SHORT, "MAU")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16 le"])
def test_a_file_torn_anywhere_is_refused(tmp_path: Path, text: str, tier: str, encoding: str) -> None:
    path = tmp_path / "a.TextGrid"
    data = ENCODINGS[encoding](text)
    whole = len(ENCODINGS[encoding](text.rstrip()))
    for length in range(0, whole, 3):
        with pytest.raises(ValueError, match=r"a\.TextGrid, line \d+: "):
            read_textgrid(write(path, data[:length]), tier=tier)
    read_textgrid(write(path, data[:whole]), tier=tier)


def test_refuses_what_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(ValueError, match="cannot be read"):
            read_textgrid(path, tier="phones")
        with pytest.raises(ValueError, match="cannot be read"):
            read_ctm(path)
    assert read_text(write(tmp_path / "marked", codecs.BOM_UTF8 + b"a\r\nb")) == "a\nb"
    with pytest.raises(ValueError, match="line 2: no UTF-8 text"):
        read_text(write(tmp_path / "latin", b"a\n\xe9t\xe9"))
    with pytest.raises(ValueError, match="line 1: no UTF-16 text"):
        read_text(write(tmp_path / "half", "a".encode("utf-16") + b"\0"))


def spliced(text: str) -> st.SearchStrategy[bytes]:
    """Valid text with a stretch of it replaced."""
    pieces = st.sampled_from(
        ['"', "", "0", "-1", "1e400", "nan", "<exists>", "!", " ", "\n", "9" * 400, "\0", "٣", "; "]
    )
    place = st.integers(0, len(text))
    return st.tuples(place, st.integers(0, 30), pieces).map(
        lambda c: (text[: c[0]] + c[2] + text[c[0] + c[1] :]).encode()
    )


@given(content=st.binary(max_size=60) | spliced(LONG) | spliced(SHORT))
def test_any_bytes_give_intervals_or_a_value_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = write(tmp_path_factory.getbasetemp() / "fuzzed", content)
    for tier in ("phones", "MAU"):
        try:
            found = read_textgrid(path, tier=tier)
        except ValueError as error:
            message = str(error)
        else:
            assert (found.ends >= found.starts).all()
            continue
        assert str(path) in message


def test_long_rubbish_takes_no_time(tmp_path: Path) -> None:
    # Quadratic backtracking over either of these would take minutes.
    for rubbish in ("1" * 300_000 + "x", '"' + '""' * 300_000, "<" * 300_000):
        with pytest.raises(ValueError, match="line 1"):
            read_textgrid(write(tmp_path / "a.TextGrid", rubbish), tier="phones")


# --- CTM


def test_ctm(tmp_path: Path) -> None:
    found = read_ctm(write(tmp_path / "a.ctm", CTM))
    assert {utterance: listed(intervals) for utterance, intervals in found.items()} == {
        "84-1-0": [(0, 0.25, "SIL"), (0.25, 0.75, "T_E")],
        "84-1-1": [(0, 0.5, "SIL"), (0.5, 0.75, "AE1_B")],
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a 1 0 0.5 X\na 1 0.5 0.2", "line 2: 4 of 5 fields"),
        ("a 1 zero 0.5 X", "line 1: zero 0.5 are no start"),
        ("a 1 0 nan X", "line 1: 0 nan are no start"),
        ("a 1 0 1_0 X", "line 1: 0 1_0 are no start"),
        ("\na 1 -0.5 0.5 X", "line 2: 'X' of a: it lasts from -0.5 to 0.0 s"),
        ("a 1 0 -0.5 X", "line 1: 'X' of a: it lasts from 0.0 to -0.5 s"),
        ("a 1 0 1e308 X\na 1 1e308 1e308 Y", "line 2: 'Y' of a: it lasts from 1e.308 to inf s"),
        ("a 1 0.5 0.5 Y\nb 1 0 1 Z\na 1 0 0.6 X", "line 1: 'Y' of a: it begins at 0.5 s, before .* ends at 0.6 s"),
        (";; a 1 0 1 X\n\n", "is empty"),
        (b"a 1 0 1 \xff", "line 1: no UTF-8"),
    ],
)
def test_refuses_ctm(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = write(tmp_path / "a.ctm", content)
    with pytest.raises(ValueError, match=message) as error:
        read_ctm(path)
    assert str(path) in str(error.value)


def test_times_rounded_to_10_ms_may_overlap(tmp_path: Path) -> None:
    found = read_ctm(write(tmp_path / "a.ctm", "a 1 0.10 0.20 X\na 1 0.296 0.1 Y"))
    assert found["a"].names == ("X", "Y")


@given(content=st.binary(max_size=60) | spliced(CTM))
def test_any_bytes_give_utterances_or_a_value_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = write(tmp_path_factory.getbasetemp() / "fuzzed", content)
    try:
        found = read_ctm(path)
    except ValueError as error:
        message = str(error)
    else:
        assert all(len(intervals) for intervals in found.values())
        return
    assert str(path) in message


# --- intervals


@pytest.mark.unchecked
def test_refuses_intervals_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="1 starts, 2 ends, 1 names"):
        Intervals(np.zeros(1), np.zeros(2), ("a",))
    with pytest.raises(ValueError, match=r"interval 2, 'b': it lasts from 1\.0 to nan"):
        Intervals(np.array([0.0, 1.0]), np.array([1.0, np.nan]), ("a", "b"))
    # Each step back is within the tolerance for rounding, but the order is wrong.
    with pytest.raises(ValueError, match="interval 2, 'b': it begins"):
        Intervals(np.array([0.5, 0.497]), np.array([0.5, 0.6]), ("a", "b"))
