"""The geometry of frames and labels, pinned on genuine labels and audio."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from stec.audio.alignment import CONVENTIONS, Alignment
from stec.audio.cpc_labels import read_cpc_labels

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
