"""Features extracted once: against the encoder one by one, in memory as in files; MFCC against librosa."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
from torch import Tensor, nn

from stec.audio import features as module
from stec.audio.features import extract, extract_mfcc, extract_windows, mfcc

HOP = 20
LENGTHS = (400, 1000, 390, 2400, 15, 777, 400)  # the fifth is too short for a frame
NAMES = tuple("abcdefg")


class Encoder(nn.Module):
    """Strided convolutions with padding and a GRU, as CPC's but small; dropout tells training from evaluation."""

    def __init__(self, padding: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.convolution = nn.Conv1d(1, 7, 2 * HOP, HOP, padding=padding)
        self.drop = nn.Dropout(0.5)
        self.gru = nn.GRU(7, 5, batch_first=True)
        for parameter in self.parameters():
            parameter.data.normal_(0, 0.5, generator=generator)
        self.padding = padding
        self.batches: list[tuple[int, ...]] = []

    def frames(self, n: int) -> int:
        return max(0, (n + 2 * self.padding - 2 * HOP) // HOP + 1)

    def latents(self, waveforms: Tensor) -> Tensor:
        return self.drop(self.convolution(waveforms[:, None]).relu()).transpose(1, 2)

    def context(self, latents: Tensor) -> Tensor:
        self.batches.append(tuple(latents.shape))
        output: Tensor = self.gru(latents)[0]
        return output

    def forward(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.latents(waveforms)
        return self.context(latents), latents


def _waveform(index: int) -> Tensor:
    return torch.randn(LENGTHS[index], generator=torch.Generator().manual_seed(index)) / 3


def _one_by_one(encoder: Encoder, waveforms: list[Tensor]) -> dict[str, Tensor]:
    """What the encoder gives for each of these on its own, joined."""
    encoder.eval()
    with torch.no_grad():
        outputs = [encoder(waveform[None]) for waveform in waveforms]
    encoder.train()
    return {"context": torch.cat([c[0] for c, _ in outputs]), "latents": torch.cat([z[0] for _, z in outputs])}


@pytest.fixture(params=["memory", "file"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "new" if request.param == "file" else None


@pytest.mark.parametrize("held", [1, 60, 10**6])
def test_utterances_are_as_the_encoder_gives_them_alone(
    folder: Path | None, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HELD", held)
    monkeypatch.setattr(module, "_BATCH", 3)
    encoder = Encoder().train()
    encoder.gru.eval()  # a part that was frozen before stays frozen after
    done: list[tuple[int, int]] = []
    result = extract(
        encoder, _waveform, NAMES, device="cpu", folder=folder, progress=lambda i, of: done.append((i, of))
    )
    assert (encoder.training, encoder.drop.training, encoder.gru.training) == (True, True, False)
    assert done == [(i + 1, 7) for i in range(7)]
    expected = _one_by_one(encoder, [_waveform(i) for i in range(7) if i != 4])
    counts = [encoder.frames(n) for n in LENGTHS]
    assert counts[4] == 0
    for layer, values in expected.items():
        found = result[layer]
        assert torch.allclose(found.values, values, atol=1e-5)
        assert (found.utterances, len(found)) == (NAMES, 7)
        assert found.lengths.tolist() == counts
        assert found.starts.tolist() == [sum(counts[:i]) for i in range(7)]
        assert torch.equal(found.of(3), found.values[sum(counts[:3]) : sum(counts[:4])])
        assert len(found.of(4)) == 0
        assert not found.values.requires_grad
    if folder is not None:
        assert sorted(path.name for path in folder.iterdir()) == ["context.bin", "latents.bin"]


def test_context_is_computed_for_batches_of_like_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH", 3)
    encoder = Encoder()
    extract(encoder, _waveform, NAMES, device="cpu")
    counts = sorted(encoder.frames(n) for n in LENGTHS if n > 20)
    assert encoder.batches == [(3, counts[2], 7), (3, counts[5], 7)]


def test_windows_are_as_the_encoder_gives_them_alone(folder: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH", 4)
    encoder = Encoder(padding=10)  # 2 HOP wide with HOP / 2 on each side: n / HOP frames
    result = extract_windows(encoder, _waveform, NAMES, device="cpu", window=400, folder=folder)
    parts = [[window for window in _waveform(i).split(400) if encoder.frames(len(window))] for i in range(7)]
    expected = _one_by_one(encoder, [window for windows in parts for window in windows])
    for layer, values in expected.items():
        assert torch.allclose(result[layer].values, values, atol=1e-5)
        assert result[layer].lengths.tolist() == [sum(encoder.frames(len(w)) for w in windows) for windows in parts]
    assert result["latents"].lengths.tolist()[:4] == [20, 50, 19, 120]
    whole = extract(encoder, _waveform, NAMES, device="cpu")
    assert torch.allclose(whole["context"].of(0), result["context"].of(0), atol=1e-5)  # one window: the same
    assert not torch.allclose(whole["context"].of(3)[20:], result["context"].of(3)[20:], atol=1e-2)


def test_windows_that_leave_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match="400 samples gives 19 frames where 20 pass"):
        extract_windows(Encoder(padding=0), _waveform, NAMES, device="cpu", window=400)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types(folder: Path | None, dtype: torch.dtype) -> None:
    wide = extract(Encoder(), _waveform, NAMES, device="cpu")
    narrow = extract(Encoder(), _waveform, NAMES, device="cpu", dtype=dtype, folder=folder)
    for layer in wide:
        assert narrow[layer].values.dtype == dtype
        assert torch.equal(narrow[layer].values, wide[layer].values.to(dtype))


def test_only_the_layers_that_are_asked_for() -> None:
    encoder = Encoder()
    assert list(extract(encoder, _waveform, NAMES, device="cpu", layers=("latents",))) == ["latents"]
    assert list(extract_windows(Encoder(10), _waveform, NAMES, device="cpu", layers=("latents",), window=400)) == [
        "latents"
    ]
    assert encoder.batches == []
    assert list(extract(encoder, _waveform, NAMES, device="cpu", layers=("context",))) == ["context"]


def test_a_new_extraction_leaves_features_of_the_old_one_alone(tmp_path: Path) -> None:
    encoder = Encoder()
    old = extract(encoder, _waveform, NAMES, device="cpu", folder=tmp_path)["latents"]
    before = old.values.clone()
    encoder.convolution.weight.data.mul_(3)
    new = extract(encoder, _waveform, NAMES[:1], device="cpu", folder=tmp_path)["latents"]
    assert torch.equal(old.values, before)
    assert not torch.allclose(new.of(0), old.of(0))


def test_an_extraction_that_fails_leaves_no_file(tmp_path: Path) -> None:
    def broken(index: int) -> Tensor:
        if index == 2:
            raise OSError("gone")
        return _waveform(index)

    encoder = Encoder(padding=10)
    with pytest.raises(OSError, match="gone"):
        extract_windows(encoder, broken, NAMES, device="cpu", window=400, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert encoder.drop.training


def _with_nan(index: int) -> Tensor:
    return torch.full((400,), torch.nan) if index == 1 else _waveform(index)


def _loud(index: int) -> Tensor:
    return _waveform(index) * 1e6


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("waveforms", "names", "options", "words"),
    [
        (_with_nan, NAMES, {}, "utterance b: latents hold NaN"),
        (_loud, NAMES, {"dtype": torch.float16}, "utterance a: latents hold NaN or infinity in torch.float16"),
        (_waveform, (), {}, "no utterances"),
        (_waveform, ("a", "b", "a"), {}, "utterance a is named more than once"),
        (_waveform, NAMES, {"layers": ("logits",)}, "no layer 'logits'"),
        (lambda _: torch.zeros(10), NAMES, {}, "all 7 utterances are too short"),
    ],
)
def test_refused(waveforms: Callable[[int], Tensor], names: tuple[str, ...], options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        extract(Encoder(), waveforms, names, device="cpu", **{"layers": ("latents",), **options})
    with pytest.raises(ValueError, match=words):
        extract_windows(Encoder(10), waveforms, names, device="cpu", window=400, **{"layers": ("latents",), **options})


# --- MFCC


def _speech(n: int = 16_000) -> Tensor:
    """Harmonics that rise, in noise."""
    time = torch.arange(n) / 16_000
    harmonics = [torch.sin(2 * math.pi * k * (120 * time + 40 * time**2)) / k for k in range(1, 20)]
    return 0.1 * torch.stack(harmonics).sum(0) + 0.01 * torch.randn(n, generator=torch.Generator().manual_seed(0))


def _librosa(waveform: Tensor) -> np.ndarray:
    """Kaldi's static MFCC from librosa's and scipy's parts, frame by frame in float64: (t, 13)."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform.double().numpy() * 2**15, 400)[::160]
    frames = frames - frames.mean(axis=1, keepdims=True)
    frames = frames - 0.97 * np.concatenate((frames[:, :1], frames[:, :-1]), axis=1)
    frames = frames * scipy.signal.get_window("hann", 400, fftbins=False) ** 0.85
    power = np.abs(np.fft.rfft(frames, 512)) ** 2
    # Triangles that are linear in mel, where librosa's are linear in Hz: the mel scale itself is librosa's.
    mel = librosa.hz_to_mel(np.arange(257) * 16_000 / 512, htk=True)
    edges = np.linspace(librosa.hz_to_mel(20.0, htk=True), librosa.hz_to_mel(8000.0, htk=True), 25)
    width = edges[1] - edges[0]
    bank = np.maximum(0, 1 - np.abs(mel[None] - edges[1:-1, None]) / width)
    cepstra = scipy.fft.dct(np.log(power @ bank.T), type=2, norm="ortho")[:, :13]
    lifter = 1 + 11 * np.sin(np.pi * np.arange(13) / 22)
    return cepstra * lifter


def test_mfcc_is_kaldis_definition_in_float64() -> None:
    ours = mfcc(_speech())
    expected = torch.from_numpy(_librosa(_speech()))
    assert ours.shape == (98, 39)
    assert float((ours[:, :13] - expected).abs().max()) < 0.02  # of values of about 100


def test_deltas_are_regressions_over_five_frames() -> None:
    values = mfcc(_speech())
    for first, then in ((0, 13), (13, 26)):
        static, delta = values[:, first : first + 13].double(), values[:, then : then + 13].double()
        expected = (static[3:-1] - static[1:-3] + 2 * (static[4:] - static[:-4])) / 10
        assert torch.allclose(delta[2:-2], expected, atol=1e-3)


def test_mfcc_of_librosa_goes_along() -> None:
    """librosa's own function, with the settings that it shares: windows of 25 ms every 10 ms, 23 mel bands."""
    waveform = _speech()
    emphasised = librosa.effects.preemphasis(waveform.numpy() * 2**15, coef=0.97)
    theirs = librosa.feature.mfcc(
        y=emphasised, sr=16_000, n_mfcc=13, n_mels=23, n_fft=400, hop_length=160, center=False, fmin=20, htk=True
    ).T
    ours = mfcc(waveform)[:, :13].numpy()
    assert theirs.shape == ours.shape
    for coefficient in range(13):
        assert np.corrcoef(ours[:, coefficient], theirs[:, coefficient])[0, 1] > 0.8, coefficient


@pytest.mark.parametrize("n", [0, 399, 400, 559, 560, 16_000, 20_479])
def test_number_of_mfcc_frames_is_that_of_the_labels(n: int) -> None:
    assert mfcc(_speech(n)).shape == (max(0, (n - 400) // 160 + 1), 39)


def test_mfcc_frames_are_centred_where_they_say() -> None:
    waveform = torch.zeros(4000)
    for frame in (0, 3, 22):
        centre = int(module.MFCC_CENTRE) + module.MFCC_HOP * frame
        click = waveform.clone()
        click[centre] = 0.5
        energy = mfcc(click)[:, 0]
        assert int(energy.argmax()) == frame
        # Equally far from its neighbours: as loud in the one before as in the one after.
        if 0 < frame < 22:
            assert float(energy[frame - 1]) == pytest.approx(float(energy[frame + 1]), rel=0.01)


def test_mfcc_of_a_corpus(folder: Path | None) -> None:
    lengths = (1000, 300, 16_000)
    result = extract_mfcc(lambda i: _speech(lengths[i]), ("a", "b", "c"), folder=folder)
    assert result.lengths.tolist() == [4, 0, 98]
    assert torch.equal(result.of(2), mfcc(_speech()))
    assert torch.equal(result.of(0), mfcc(_speech(1000)))


@pytest.fixture(scope="module")
def spoken(shared_data: Callable[[str], Path]) -> Tensor:
    path = min(shared_data("LibriSpeech").rglob("*.flac"))
    return torch.from_numpy(soundfile.read(path, dtype="float32")[0])


@pytest.mark.shared
def test_mfcc_of_real_speech(spoken: Tensor) -> None:
    difference = mfcc(spoken)[:, :13] - torch.from_numpy(_librosa(spoken))
    assert float(difference.abs().max()) < 0.05
