"""Features of a corpus frame by frame, extracted once: from an encoder on utterances or on windows, and MFCC.

Probes read them many times, and the encoder is nearly all of their cost: Greedy InfoMax's protocol, which decodes and
encodes every utterance in every epoch, does for 20 epochs what one extraction does once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
import torchaudio
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from stec.audio.frame_features import FrameFeatures, Frames, Progress, collect

MFCC_CENTRE = 200.0  # samples: the middle of Kaldi's first frame of 25 ms, which is that of the CPC labels' too
MFCC_HOP = 160

# Frames whose latents are held at once (128 MiB at 512 channels), so that the context network sees some 50 utterances
# sorted by length, and how many sequences it sees together.
_HELD = 2**16
_BATCH = 32

Waveforms = Callable[[int], Tensor]
Layer = Literal["context", "latents"]


@runtime_checkable
class SpeechEncoder(Protocol):
    """What is read of an encoder: convolutions, a causal network over their output, and how many frames they give."""

    def latents(self, waveforms: Tensor, /) -> Tensor: ...  # (b, n) -> (b, t, f_z)

    def context(self, latents: Tensor, /) -> Tensor: ...  # (b, t, f_z) -> (b, t, f_c)

    def frames(self, n: int, /) -> int: ...

    def modules(self) -> Iterator[nn.Module]: ...


def extract(
    encoder: SpeechEncoder,
    waveforms: Waveforms,
    utterances: Sequence[str],
    *,
    device: torch.device | str,
    layers: Sequence[Layer] = ("context", "latents"),
    dtype: torch.dtype = torch.float32,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, FrameFeatures]:
    """Features of whole utterances, as `encoder(waveform[None])` gives them one by one, without gradient, on the CPU.

    `waveforms(i)` is the (n,) waveform of `utterances[i]`, at 16 kHz in [-1, 1]. Convolutions see one utterance at a
    time, since padding would change its last frames; the context network is causal and sees batches, padded at the
    end. With `folder` the values lie in a file there, `<layer>.bin`, for corpora that exceed memory. An utterance too
    short for a frame has none. `progress` is called with (utterances done, of how many). Raises ValueError for unknown
    layers, repeated names and features that are not finite in `dtype`.
    """
    _check(layers, utterances)

    def frames() -> Iterator[Frames]:
        group: list[Tensor | None] = []
        held = 0
        for i in range(len(utterances)):
            waveform = waveforms(i).to(device)
            latents = encoder.latents(waveform[None])[0] if encoder.frames(len(waveform)) > 0 else None
            group.append(latents)
            held += 0 if latents is None else len(latents)
            if held >= _HELD or i + 1 == len(utterances):
                yield from _with_context(encoder, group, layers)
                group, held = [], 0

    with _evaluation(encoder):
        return collect(frames(), utterances, dtype=dtype, folder=folder, progress=progress)


def extract_windows(
    encoder: SpeechEncoder,
    waveforms: Waveforms,
    utterances: Sequence[str],
    *,
    device: torch.device | str,
    window: int = 20_480,
    layers: Sequence[Layer] = ("context", "latents"),
    dtype: torch.dtype = torch.float32,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, FrameFeatures]:
    """Features of windows that do not overlap, each encoded on its own, joined in time: as Oord et al. (2018) probe.

    The context begins anew with every window. The tail of an utterance is a shorter window, left out where it gives no
    frame. Everything else is as in `extract`. Raises ValueError for what `extract` refuses, and for a window that gives
    fewer frames than pass in it: joined, they would no longer be evenly spaced in time.
    """
    _check(layers, utterances)
    given, passing = encoder.frames(window), encoder.frames(2 * window) - encoder.frames(window)
    if given != passing or given < 1:
        raise ValueError(
            f"a window of {window} samples gives {given} frames where {passing} pass; "
            "use a multiple of the hop and an encoder with padding, or whole utterances"
        )

    def frames() -> Iterator[Frames]:
        for i in range(len(utterances)):
            waveform = waveforms(i).to(device)
            whole = len(waveform) // window * window
            batches = [*waveform[:whole].view(-1, window).split(_BATCH)] if whole else []
            if encoder.frames(len(waveform) - whole) > 0:
                batches.append(waveform[None, whole:])
            parts: dict[str, list[Tensor]] = {layer: [] for layer in layers}
            for batch in batches:
                latents = encoder.latents(batch)
                outputs = {"latents": latents}
                if "context" in layers:
                    outputs["context"] = encoder.context(latents)
                for layer in layers:
                    parts[layer].append(outputs[layer].flatten(0, 1))
            yield {layer: torch.cat(some) for layer, some in parts.items()} if batches else {}

    with _evaluation(encoder):
        return collect(frames(), utterances, dtype=dtype, folder=folder, progress=progress)


def mfcc(waveform: Float[Tensor, " n"]) -> Float[Tensor, "t 39"]:
    """13 MFCC (with the zeroth, not energy), their deltas and double deltas, in frames of 25 ms every 10 ms at 16 kHz.

    Kaldi's definition (Povey et al. 2011; 23 mel bins, no dither, frames within the signal only), so that frame i is
    centred on sample 160 i + 200: on the frames of the CPC labels exactly. Deltas are regressions over 5 frames.

    >>> mfcc(torch.zeros(16_000)).shape
    torch.Size([98, 39])
    """
    if len(waveform) < 400:
        return waveform.new_zeros(0, 39)
    # Kaldi's floors are meant for samples at the scale of int16.
    static = torchaudio.compliance.kaldi.mfcc(
        waveform[None].float() * 2**15, num_ceps=13, num_mel_bins=23, sample_frequency=16_000.0, dither=0.0
    )
    delta = torchaudio.functional.compute_deltas(static.T).T
    return torch.cat((static, delta, torchaudio.functional.compute_deltas(delta.T).T), dim=1)


def extract_mfcc(
    waveforms: Waveforms,
    utterances: Sequence[str],
    *,
    dtype: torch.dtype = torch.float32,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> FrameFeatures:
    """`mfcc` of whole utterances; waveforms, folder, progress and errors as in `extract`."""
    _check((), utterances)
    frames = ({"mfcc": mfcc(waveforms(i))} for i in range(len(utterances)))
    return collect(frames, utterances, dtype=dtype, folder=folder, progress=progress)["mfcc"]


@contextmanager
def _evaluation(encoder: SpeechEncoder) -> Iterator[None]:
    """Without gradient and in evaluation mode; every module's own mode comes back."""
    modes = {module: module.training for module in encoder.modules()}
    for module in modes:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _check(layers: Sequence[str], utterances: Sequence[str]) -> None:
    if unknown := set(layers) - {"context", "latents"}:
        raise ValueError(f"there is no layer {unknown.pop()!r}; use 'context', 'latents' or both")
    if not utterances:
        raise ValueError("there are no utterances to extract features from")
    if len(set(utterances)) < len(utterances):
        twice = next(name for i, name in enumerate(utterances) if name in utterances[:i])
        raise ValueError(f"utterance {twice} is named more than once; name each once")


def _with_context(encoder: SpeechEncoder, group: list[Tensor | None], layers: Sequence[str]) -> Iterator[Frames]:
    """The frames of each utterance of a group, with the context of those of like length computed together."""
    context: dict[int, Tensor] = {}
    if "context" in layers:
        present = {i: latents for i, latents in enumerate(group) if latents is not None}
        order = sorted(present, key=lambda i: len(present[i]))
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            output = encoder.context(pad_sequence([present[i] for i in batch], batch_first=True))
            context |= {i: rows[: len(present[i])] for i, rows in zip(batch, output)}
    for i, latents in enumerate(group):
        both = {} if latents is None else {"latents": latents, "context": context.get(i, latents)}
        yield {layer: both[layer] for layer in layers if layer in both}
