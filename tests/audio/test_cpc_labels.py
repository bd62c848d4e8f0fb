"""The text format of phone labels: what is read, written and refused, pinned on genuine labels."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stec.audio.cpc_labels import read_cpc_labels, write_cpc_labels


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_reads_what_stands_there(tmp_path: Path) -> None:
    labels = read_cpc_labels(
        write(tmp_path / "labels", b"\xef\xbb\xbfa-1 0 12 007\r\n\n \nb\t5 \t 40 \r\nc 2147483647")
    )
    assert list(labels) == ["a-1", "b", "c"]
    assert [ids.tolist() for ids in labels.values()] == [[0, 12, 7], [5, 40], [2**31 - 1]]
    assert all(ids.dtype == np.int64 for ids in labels.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a 1 2\nb 1 x 2\n", "line 2, b: 'x' is no phone id"),
        ("a 1 -2\n", "line 1, a: '-2' is no phone id"),
        ("a 1 2.0\n", "line 1, a: '2.0' is no phone id"),
        ("a 1 ²\n", "line 1, a: '²' is no phone id"),
        ("a 1 99999999999999999999\n", "label 2 is 9223372036854775807, no id of any inventory"),
        ("a 1\nb 2\n\na 3\n", "line 4: a stands in line 1 already"),
        ("a 1\nb\n", "line 2: b has no labels"),
        ("\n \n", "is empty"),
        (b"a 1\n\xff\xfea 1\n", "line 2: no UTF-8 text"),
        ("a 1 2".encode("utf-16"), "line 1: no UTF-8 text"),
        (b"\x00\x01\x02 1\n", "line 1: no text"),
    ],
)
def test_refuses(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_cpc_labels(write(tmp_path / "labels", content))


def test_refuses_ids_beyond_the_inventory(tmp_path: Path) -> None:
    path = write(tmp_path / "labels", "a 1 40\nb 3 41 2\n")
    assert len(read_cpc_labels(path, classes=42)) == 2
    with pytest.raises(ValueError, match="line 2, b: label 2 is 41, no id of 41 classes, 0 to 40"):
        read_cpc_labels(path, classes=41)


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(ValueError, match=r"cannot be read.*name a file of phone labels"):
            read_cpc_labels(path)


@given(content=st.binary(max_size=80) | st.text("ab 019-\n\r\t\v\f\x1c²x", max_size=80).map(str.encode))
def test_any_bytes_give_labels_or_a_value_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = write(tmp_path_factory.getbasetemp() / "fuzzed", content)
    try:
        labels = read_cpc_labels(path)
    except ValueError as error:
        message = str(error)
    else:
        # Against the plain way
        lines = [line.decode().split() for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
        plain = {words[0]: [int(word) for word in words[1:]] for words in lines if words}
        assert {name: ids.tolist() for name, ids in labels.items()} == plain
        return
    assert str(path) in message  # ours, and no UnicodeDecodeError


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1),
        arrays(np.int64, st.integers(1, 5), elements=st.integers(0, 2**31 - 1)),
        min_size=1,
        max_size=4,
    )
)
def test_reads_what_it_wrote(tmp_path_factory: pytest.TempPathFactory, labels: dict[str, np.ndarray]) -> None:
    path = tmp_path_factory.getbasetemp() / "written"
    write_cpc_labels(path, labels)
    back = read_cpc_labels(path)
    assert {name: ids.tolist() for name, ids in back.items()} == {name: ids.tolist() for name, ids in labels.items()}
    assert list(back) == list(labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "no labels to write"),
        ({"a b": np.array([1])}, "'a b' cannot name"),
        ({"": np.array([1])}, "'' cannot name"),
        ({"a": np.array([], dtype=np.int64)}, "labels of a are int64"),
        ({"a": np.array([1.0])}, "labels of a are float64"),
        ({"a": np.array([[1]])}, r"labels of a are int64 \(1, 1\)"),
        ({"b": np.array([1]), "a": np.array([3, -1])}, "labels of a reach from -1 to 3"),
    ],
)
def test_writes_nothing_that_it_would_not_read(tmp_path: Path, labels: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_cpc_labels(tmp_path / "labels", labels)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    path = write(tmp_path / "labels", "old 1\n")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"labels cannot be written \(No space left"):
        write_cpc_labels(path, {"new": np.array([2])})
    assert path.read_text() == "old 1\n"
    assert list(tmp_path.iterdir()) == [path]


def test_refuses_to_write_below_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "labels", "old 1\n") / "below"
    with pytest.raises(ValueError, match="below cannot be written"):
        write_cpc_labels(path, {"new": np.array([2])})


def test_all_genuine_lines(shared_data: Callable[[str], Path]) -> None:
    labels = read_cpc_labels(shared_data("cpc-labels") / "converted_aligned_phones.subset6.txt", classes=41)
    assert sorted(len(ids) for ids in labels.values()) == [330, 508, 756, 1119, 1523, 1645]
    assert max(int(ids.max()) for ids in labels.values()) == 40
    assert all(ids[0] == 0 for ids in labels.values())
