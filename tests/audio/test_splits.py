"""Splits: what is read and refused, overlaps, what pretraining has seen, what has both audio and labels."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stec.audio.splits import SplitCheck, check_splits, few, overlap_with, read_split, select

NAMES = st.lists(st.sampled_from([f"{speaker}-{n}" for speaker in "abc" for n in range(4)]), unique=True)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_reads_in_order(tmp_path: Path) -> None:
    assert read_split(write(tmp_path / "split", b"b-1\r\n\n  a-2  \nc-3")) == ("b-1", "a-2", "c-3")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\n\na\n", "line 4: a stands in line 1 already"),
        (b"a\nb 1 2 3\n", "line 2: 'b 1 2 3' is no utterance"),
        (b"a\n\x00\x01\n", "line 2: .* is no utterance"),
        (b"a\n\xff\n", "line 2: no UTF-8 text"),
        (b" \n\n", "is empty"),
    ],
)
def test_refuses(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path / "split", content)
    with pytest.raises(ValueError, match=message) as error:
        read_split(path)
    assert str(path) in str(error.value)


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_split(tmp_path / "missing")


@given(content=st.binary(max_size=40) | st.text("ab \n\r", max_size=20).map(str.encode))
def test_any_bytes_give_a_split_or_a_value_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = write(tmp_path_factory.getbasetemp() / "fuzzed", content)
    try:
        names = read_split(path)
    except ValueError as error:
        message = str(error)
    else:
        assert len(set(names)) == len(names) > 0
        return
    assert str(path) in message


@given(train=NAMES, test=NAMES)
def test_splits_that_overlap(train: list[str], test: list[str]) -> None:
    shared = [name for name in train if name in test]
    if not shared:
        check_splits(train, test)
        return
    with pytest.raises(ValueError, match=f"^{len(shared)} utterances .* test split: {shared[0]}"):
        check_splits(train, test)


@given(pretrained=NAMES, split=NAMES)
def test_what_pretraining_has_seen(pretrained: list[str], split: list[str]) -> None:
    speakers = {name: name[0].upper() for name in [*pretrained, *split]}
    expected = SplitCheck(
        utterances=len(split),
        seen_utterances=sum(name in pretrained for name in split),
        speakers=len({name[0] for name in split}),
        seen_speakers=len({name[0] for name in split} & {name[0] for name in pretrained}),
    )
    assert overlap_with(pretrained, split) == expected
    assert overlap_with(pretrained, split, speakers=speakers) == expected


def test_speakers_as_given() -> None:
    one = dict.fromkeys(["a-0", "b-0"], "same")
    assert overlap_with(["a-0"], ["b-0"], speakers=one) == SplitCheck(1, 0, 1, 1)
    with pytest.raises(ValueError, match="1 utterances have no speaker: c-0"):
        overlap_with(["a-0"], ["c-0"], speakers=one)


@given(split=NAMES, corpus=NAMES, labels=NAMES)
def test_selects_what_has_both(split: list[str], corpus: list[str], labels: list[str]) -> None:
    expected = [name for name in split if name in corpus and name in labels]
    if not expected:
        with pytest.raises(ValueError, match=f"of {len(split)} utterances of the split none has both"):
            select(split, corpus=corpus, labels=labels)
        return
    selection = select(split, corpus=corpus, labels=labels)
    assert list(selection.names) == expected
    assert set(selection.without_audio) == set(split) - set(corpus)
    assert set(selection.without_labels) == set(split) - set(labels)


def test_says_what_is_left_out() -> None:
    text = str(select(["a", *"bcdef"], corpus=["a"], labels={"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}))
    assert text == "1 utterances; 5 without audio, such as b, c, d and 2 more; 1 without labels, such as f"
    assert str(select(["a"], corpus=["a", "b"], labels=["a"])) == "1 utterances"


def test_labels_are_spoken_of_where_they_are_asked_for() -> None:
    selection = select(["a", "b", "c"], corpus=["a"])
    assert selection.names == ("a",)
    assert str(selection) == "1 utterances; 2 without audio, such as b, c"
    with pytest.raises(ValueError, match="of 2 utterances of the split none is among the 1 of the corpus") as error:
        select(["b", "c"], corpus=["a"])
    assert "labels" not in str(error.value)
    with pytest.raises(ValueError, match=r"'a' in the split is 'x/a\.wav' in the corpus"):
        select(["a"], corpus=["x/a.wav"])


def test_names_that_differ_in_form() -> None:
    split = ["84-121550-0000"]
    with pytest.raises(ValueError, match="'84-121550-0000' in the split is '84/121550/84-121550-0000' in the corpus"):
        select(split, corpus=["84/121550/84-121550-0000"], labels=split)
    with pytest.raises(ValueError, match=r"is '84-121550-0000.FLAC' in the labels"):
        select(split, corpus=split, labels=["84-121550-0000.FLAC"])
    with pytest.raises(ValueError, match="give the split of this corpus") as error:
        select(split, corpus=["85-1-0"], labels=split)
    assert "form" not in str(error.value)


def test_few() -> None:
    assert few(["a", "b", "c"]) == "a, b, c"
    assert few(list("abcde")) == "a, b, c and 2 more"


def test_genuine_splits(shared_data: Callable[[str], Path]) -> None:
    train, test = (read_split(shared_data("cpc-labels") / f"{name}_split.txt") for name in ("train", "test"))
    assert (len(train), len(test)) == (22_830, 5_708)
    check_splits(train, test)
    assert overlap_with(train, test) == SplitCheck(utterances=5_708, seen_utterances=0, speakers=251, seen_speakers=251)
