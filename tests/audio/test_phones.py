"""Names of phones and their ids, and the ids that intervals make."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stec.audio.labels import Intervals
from stec.audio.phones import SILENCES, Inventory, frame_labels


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- names of phones


def test_ids_of_names(tmp_path: Path) -> None:
    inventory = Inventory.read(
        write(tmp_path / "phones", "SIL\nAE\nspn\nT\n"), collapse=True, silences=("", "sil", "sp")
    )
    assert inventory.ids(["T", "AE1", "AE0_B", "AE", "sp", " ", "SIL_S", "spn"]).tolist() == [3, 1, 1, 1, 0, 0, 0, 2]
    assert inventory.ids([]).dtype == np.int64


def test_without_collapse_stress_counts() -> None:
    inventory = Inventory(names=("AE1", "AE2"))
    assert inventory.ids(["AE2", "AE1"]).tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"'AE0' is none of the 2 phones; the nearest is 'AE[12]'"):
        inventory.ids(["AE1", "AE0"])


def test_collects_silence_first() -> None:
    words = [
        Intervals(np.array([0.0, 1.0]), np.array([1.0, 2.0]), ("T", "AE1")),
        Intervals(np.array([0.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0]), ("", "spn", "AE2")),
    ]
    assert Inventory.collect(words).names == ("sil", "AE1", "AE2", "T", "spn")
    assert Inventory.collect(words, collapse=True, silences=SILENCES).names == ("sil", "AE", "T")


def test_the_arpabet_collapses_to_41() -> None:
    vowels = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
    consonants = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH"
    names = [f"{vowel}{stress}" for vowel, stress in itertools.product(vowels.split(), "012")]
    names += [*consonants.split(), "", "sil", "sp", "spn"]
    times = np.arange(len(names) + 1.0)
    intervals = Intervals(times[:-1], times[1:], tuple(names))
    silences = tuple(name for name in SILENCES if name != "spn")
    assert len(Inventory.collect([intervals], collapse=True, silences=silences)) == 41


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("AE1\nT\nAE2\n", "'AE1', 'AE2' mean one phone, AE"),
        ("sil\nT\nsp\n", "'sil', 'sp' mean one phone, sil"),
        ("sil 0\nT 1\n", "line 1: 'sil 0' is no name"),
        ("T\n\nAE\n", "line 2: '' is no name"),
        ("", "line 1: '' is no name"),
        (b"\xff", "line 1: no UTF-8 text"),
    ],
)
def test_refuses_inventories(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = write(tmp_path / "phones", content)
    with pytest.raises(ValueError, match=message) as error:
        Inventory.read(path, collapse=True, silences=SILENCES)
    assert str(path) in str(error.value)


def test_refuses_an_inventory_without_names() -> None:
    with pytest.raises(ValueError, match="without names"):
        Inventory(names=())


# --- from intervals to ids


@given(
    edges=st.lists(st.integers(0, 60), min_size=2, max_size=12, unique=True).map(sorted),
    dropped=st.sets(st.integers(0, 10)),
    n=st.integers(0, 8),
    hop=st.integers(1, 12),
    first=st.integers(0, 30),
)
def test_each_frame_has_the_interval_that_holds_its_centre(
    edges: list[int], dropped: set[int], n: int, hop: int, first: int
) -> None:
    spans = [(a, b) for i, (a, b) in enumerate(itertools.pairwise(edges)) if i not in dropped]
    names = tuple("XYZ"[a % 3] for a, _ in spans)
    starts, ends = (np.array([span[i] for span in spans], dtype=np.float64) for i in (0, 1))
    found = frame_labels(
        Intervals(starts, ends, names), n, hop=hop, centre=first, rate=1, inventory=Inventory(names=("X", "Y", "Z"))
    )
    for i in range(n):
        holders = [a % 3 for a, b in spans if a <= first + hop * i < b]
        assert [found[i]] == (holders or [-1])
    assert found.shape == (n,)
    assert found.dtype == np.int64


def test_an_interval_of_no_length_holds_nothing() -> None:
    intervals = Intervals(np.array([0.0, 1.0, 1.0]), np.array([1.0, 1.0, 3.0]), ("X", "Y", "Z"))
    inventory = Inventory(names=("X", "Y", "Z"))
    assert frame_labels(intervals, 3, hop=1, centre=0, rate=1, inventory=inventory).tolist() == [0, 2, 2]
