"""Phone ids: their text format, names, geometry of frames and labels; pinned on genuine labels and audio."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stec.audio.labels import Intervals
from stec.audio.alignment import CONVENTIONS, Alignment
from stec.audio.cpc_labels import read_cpc_labels, write_cpc_labels
from stec.audio.phones import SILENCES, Inventory, frame_labels

GENUINE = "converted_aligned_phones.subset6.txt"
WITH_AUDIO = {"2911-12359-0007": 508, "4051-11218-0044": 1119}
CPC_AUDIO, GIM = (3, 2, 1, 1, 1), (2, 2, 2, 2, 1)


def frames(samples: int, paddings: tuple[int, ...]) -> int:
    """How many frames strided convolutions 10/5, 8/4, 4/2, 4/2, 4/2 make."""
    for kernel, stride, padding in zip((10, 8, 4, 4, 4), (5, 4, 2, 2, 2), paddings):
        samples = (samples + 2 * padding - kernel) // stride + 1
    return samples


def centre(paddings: tuple[int, ...]) -> float:
    """Where the receptive field of frame 0 is centred, sample n lying from n to n + 1."""
    first, last, step = 0.0, 1.0, 1
    for kernel, stride, padding in zip((10, 8, 4, 4, 4), (5, 4, 2, 2, 2), paddings):
        first, last, step = first - padding * step, last + (kernel - 1 - padding) * step, step * stride
    return (first + last) / 2


def waveform(root: Path, utterance: str) -> np.ndarray:
    speaker, chapter, _ = utterance.split("-")
    samples, rate = soundfile.read(root / "train-clean-100" / speaker / chapter / f"{utterance}.flac")
    assert rate == 16_000
    return samples


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- the text format


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


# --- geometry


def test_centres_and_offsets() -> None:
    assert centre(CPC_AUDIO) == 79.5
    assert centre(GIM) == 20.5
    assert Alignment() == Alignment.nearest(frame_centre=79.5)
    assert (Alignment().frame_hop, Alignment().label_hop, Alignment().label_centre) == (160, 160, 200)
    assert Alignment.nearest(frame_centre=79.5).offset == 1
    assert Alignment.nearest(frame_centre=79.5).residual == -39.5  # 2.5 ms
    assert Alignment.nearest(frame_centre=20.5).offset == 1
    assert Alignment.nearest(frame_centre=20.5).residual == 19.5  # 1.2 ms


@given(first=st.floats(-1000, 1000), label=st.floats(0, 1000), hop=st.integers(1, 400))
def test_no_offset_is_nearer(first: float, label: float, hop: int) -> None:
    best = Alignment.nearest(frame_hop=hop, frame_centre=first, label_hop=hop, label_centre=label)
    assert abs(best.residual) <= hop / 2 + 1e-9


@given(n_frames=st.integers(0, 12), n_labels=st.integers(0, 12), offset=st.integers(-4, 4))
def test_pairs(n_frames: int, n_labels: int, offset: int) -> None:
    alignment = Alignment(offset=offset)
    expected = [(i + offset, i) for i in range(n_labels) if 0 <= i + offset < n_frames]
    chosen, labels = alignment.pair(n_frames, n_labels)
    assert list(zip(chosen.tolist(), labels.tolist())) == expected
    ids = np.arange(n_labels) * 10
    ids.flags.writeable = False  # as from a memory map
    by_frame = dict(expected)
    found = alignment.frame_labels(ids, n_frames)
    assert found.tolist() == [10 * by_frame[j] if j in by_frame else -1 for j in range(n_frames)]
    assert found.dtype == torch.int64
    assert torch.equal(alignment.frame_labels(torch.from_numpy(ids.copy()), n_frames), found)


@given(n_frames=st.integers(0, 12), n_labels=st.integers(0, 12))
def test_the_convention_of_greedy_infomax(n_frames: int, n_labels: int) -> None:
    chosen, labels = CONVENTIONS["gim"].pair(n_frames, n_labels)
    outputs = list(range(n_frames))
    kept = outputs[-n_labels:] if n_labels else []
    assert chosen.tolist() == kept
    assert labels.tolist() == list(range(n_labels))[n_labels - len(kept) :]


def test_conventions_of_peers() -> None:
    assert CONVENTIONS["nearest"] == Alignment()
    for name in ("cpc_audio", "s3prl"):  # label = sample // 160
        chosen, labels = CONVENTIONS[name].pair(509, 508)
        assert torch.equal(chosen, labels)
        assert len(chosen) == 508
    with pytest.raises(ValueError, match="give an offset"):
        _ = CONVENTIONS["gim"].residual
    # How many leading frames Greedy InfoMax drops, with its own paddings, at all lengths modulo 160
    dropped = [frames(n, GIM) - ((n - 400) // 160 + 1) for n in range(32_000, 32_160)]
    assert {count: dropped.count(count) for count in set(dropped)} == {2: 121, 3: 39}


def test_every_label_has_a_frame() -> None:
    for samples in range(32_000, 32_160):
        n_labels = (samples - 400) // 160 + 1
        assert len(Alignment().pair(frames(samples, CPC_AUDIO), n_labels)[0]) == n_labels


def test_refuses_hops_that_differ() -> None:
    with pytest.raises(ValueError, match=r"frames lie 320 samples apart, labels 160; .*frame_labels"):
        Alignment(frame_hop=320)


def test_counts_that_fit() -> None:
    samples = 81_520  # Kaldi: 508, centred windows: 510
    for count in range(507, 511):
        Alignment().check(samples, count, "u")
    for count in (506, 511, 0):
        with pytest.raises(ValueError, match=f"u has {count} labels and 81520 samples, which take 507 to 510"):
            Alignment().check(samples, count, "u")
    Alignment().check(300, 1, "short")


def test_counts_that_do_not_fit_have_a_cause() -> None:
    with pytest.raises(ValueError, match="321 samples apart: labels of another rate; make them one every 160"):
        Alignment().check(160_000, 499, "u")
    with pytest.raises(ValueError, match="80 samples apart: labels of another rate"):
        Alignment().check(160_000, 1998, "u")
    for count in (700, 400):  # one label every 229 and every 400 samples
        with pytest.raises(ValueError, match="labels are of other audio"):
            Alignment().check(160_000, count, "u")


# --- genuine labels


def test_all_genuine_lines(shared_data: Callable[[str], Path]) -> None:
    labels = read_cpc_labels(shared_data("cpc-labels") / GENUINE, classes=41)
    assert sorted(len(ids) for ids in labels.values()) == [330, 508, 756, 1119, 1523, 1645]
    assert max(int(ids.max()) for ids in labels.values()) == 40
    assert all(ids[0] == 0 for ids in labels.values())


def test_genuine_labels_are_kaldi_frames(shared_data: Callable[[str], Path]) -> None:
    labels = read_cpc_labels(shared_data("cpc-labels") / GENUINE)
    for utterance, count in WITH_AUDIO.items():
        samples = len(waveform(shared_data("LibriSpeech"), utterance))
        assert len(labels[utterance]) == count == (samples - 400) // 160 + 1
        Alignment().check(samples, count, utterance)


def explained(audio: np.ndarray, ids: np.ndarray, centres: np.ndarray) -> float:
    """The share of the variance of log energies in 16 bands, in 25 ms around `centres`, that the phones explain."""
    windows = audio[centres[:, None] + np.arange(-200, 200)] * np.hanning(400)
    power = np.abs(np.fft.rfft(windows, 512)[:, :240]) ** 2
    bands = np.log(power.reshape(len(ids), 16, 15).sum(-1) + 1e-6)
    bands -= bands.mean(0)
    between = sum((bands[ids == phone].sum(0) ** 2 / (ids == phone).sum() for phone in np.unique(ids)), np.zeros(16))
    return float((between / (bands**2).sum(0)).mean())


def test_labels_tell_most_about_the_sound_at_their_centres(shared_data: Callable[[str], Path]) -> None:
    labels = read_cpc_labels(shared_data("cpc-labels") / GENUINE)
    shifts = np.arange(-480, 481, 40)
    for utterance in WITH_AUDIO:
        audio = waveform(shared_data("LibriSpeech"), utterance)
        inner = np.arange(5, len(labels[utterance]) - 5)
        centres = Alignment().label_hop * inner + int(Alignment().label_centre)
        found = [explained(audio, labels[utterance][inner], centres + shift) for shift in shifts]
        # Within 6 ms, so by less than a label. The labels of silence have lower energy, too.
        assert abs(shifts[np.argmax(found)]) <= 100
        energy = np.log((audio[centres[:, None] + np.arange(-200, 200)] ** 2).mean(1) + 1e-8)
        silent = labels[utterance][inner] == 0
        assert energy[~silent].mean() - energy[silent].mean() > 2  # nats
