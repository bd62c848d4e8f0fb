"""Features of a corpus frame by frame, extracted once: from an encoder on utterances or on windows, and MFCC.

Probes read them many times, and the encoder is nearly all of their cost: Greedy InfoMax's protocol, which decodes and
encodes every utterance in every epoch, does for 20 epochs what one extraction does once.
"""

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
import torchaudio
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

MFCC_CENTRE = 200.0  # samples: the middle of Kaldi's first frame of 25 ms, which is that of the CPC labels' too
MFCC_HOP = 160

# Frames whose latents are held at once (128 MiB at 512 channels), so that the context network sees some 50 utterances
# sorted by length, and how many sequences it sees together.
_HELD = 2**16
_BATCH = 32

Frames = dict[str, Tensor]  # (t, f) of each layer for one utterance; empty where it is too short for a frame
Waveforms = Callable[[int], Tensor]
Progress = Callable[[int, int], None]
Layer = Literal["context", "latents"]


@runtime_checkable
class SpeechEncoder(Protocol):
    """What is read of an encoder: convolutions, a causal network over their output, and how many frames they give."""

    def latents(self, waveforms: Tensor, /) -> Tensor: ...  # (b, n) -> (b, t, f_z)

    def context(self, latents: Tensor, /) -> Tensor: ...  # (b, t, f_z) -> (b, t, f_c)

    def frames(self, n: int, /) -> int: ...

    def modules(self) -> Iterator[nn.Module]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class FrameFeatures:
    """Frames of many utterances one after the other; the tensor may lie over a memory-mapped file."""

    values: Float[Tensor, "n f"]
    utterances: tuple[str, ...]
    starts: Int[Tensor, " u"]  # in frames
    lengths: Int[Tensor, " u"]

    def __len__(self) -> int:
        """Number of utterances."""
        return len(self.utterances)

    def of(self, index: int) -> Float[Tensor, "t f"]:
        """The frames of one utterance."""
        start = int(self.starts[index])
        return self.values[start : start + int(self.lengths[index])]

    def rows(self, indices: Iterable[int]) -> Int[Tensor, " m"]:
        """Where the frames of these utterances are among all, such as those of a training split."""
        spans = [torch.arange(int(self.lengths[i])) + self.starts[i] for i in indices]
        return torch.cat(spans) if spans else torch.zeros(0, dtype=torch.long)

    def sums(self, values: Float[Tensor, " n"]) -> Float[Tensor, " u"]:
        """Sums over the frames of each utterance, float64: counts of correct ones from ones and zeros."""
        totals = torch.cat((torch.zeros(1, dtype=torch.float64), values.double().cpu().cumsum(0)))
        return totals[self.starts + self.lengths] - totals[self.starts]


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
        return _collect(frames(), utterances, dtype=dtype, folder=folder, progress=progress)


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
        return _collect(frames(), utterances, dtype=dtype, folder=folder, progress=progress)


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
    return _collect(frames, utterances, dtype=dtype, folder=folder, progress=progress)["mfcc"]


def pooled(features: FrameFeatures, how: Literal["mean", "last", "mean_std"]) -> Float[Tensor, "u _f"]:
    """One float32 row for each utterance: the mean of its frames, the last one, or mean and standard deviation (2 f).

    The last frame is what CPC_audio probes speakers on, the mean what Greedy InfoMax does. Raises ValueError for an
    utterance without frames.
    """
    if empty := [name for name, length in zip(features.utterances, features.lengths.tolist()) if length == 0]:
        raise ValueError(f"utterance {empty[0]} and {len(empty) - 1} more have no frame to pool; leave them out")
    if how not in ("mean", "last", "mean_std"):
        raise ValueError(f"how is {how!r}; use 'mean', 'last' or 'mean_std'")
    rows = []
    for i in range(len(features)):
        frames = features.of(i)
        if how == "last":
            rows.append(frames[-1].float())
        elif how == "mean":
            rows.append(frames.float().mean(dim=0))
        else:
            rows.append(torch.cat(torch.std_mean(frames.float(), dim=0, correction=0)[::-1]))
    return torch.stack(rows)


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


def _collect(
    frames: Iterable[Frames],
    utterances: Sequence[str],
    *,
    dtype: torch.dtype,
    folder: Path | None,
    progress: Progress | None,
) -> dict[str, FrameFeatures]:
    """The frames of all utterances, in their order, in memory or in files."""
    with ExitStack() as stack:
        stores: dict[str, _Store] = {}
        lengths = []
        for done, (name, rows) in enumerate(zip(utterances, frames), start=1):
            for layer, values in rows.items():
                if layer not in stores:
                    stores[layer] = stack.enter_context(_Store(layer, folder))
                stores[layer].append(_narrowed(name, layer, values, dtype))
            lengths.append(len(next(iter(rows.values()), ())))
            if progress is not None:
                progress(done, len(utterances))
        if not any(lengths):
            raise ValueError(f"all {len(utterances)} utterances are too short for a frame; are they at 16 kHz?")
        counts = torch.tensor(lengths)
        starts = counts.cumsum(0) - counts
        return {
            layer: FrameFeatures(store.finish(), tuple(utterances), starts, counts) for layer, store in stores.items()
        }


def _narrowed(name: str, layer: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = values.to(dtype).cpu()
    if not bool(narrow.isfinite().all()):
        raise ValueError(
            f"utterance {name}: {layer} hold NaN or infinity in {dtype}; "
            "check the waveform, probe an earlier checkpoint, or use torch.float32"
        )
    return narrow


class _Store:
    """Rows in a list, or in a file that takes its name when it is complete."""

    def __init__(self, name: str, folder: Path | None) -> None:
        self.rows: list[Tensor] = []
        self.shape, self.dtype = [0, 0], torch.float32
        self.path = None if folder is None else folder / f"{name}.bin"
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            handle, self.partial = tempfile.mkstemp(dir=folder, prefix=f"{name}.", suffix=".partial")
            self.file = os.fdopen(handle, "wb")

    def __enter__(self) -> "_Store":
        return self

    def append(self, rows: Tensor) -> None:
        self.shape, self.dtype = [self.shape[0] + len(rows), rows.shape[1]], rows.dtype
        if self.path is None:
            self.rows.append(rows.clone())  # not a view that keeps a padded batch alive
        elif len(rows):
            self.file.write(rows.contiguous().view(torch.uint8).numpy().data)

    def finish(self) -> Tensor:
        if self.path is None:
            return torch.cat(self.rows)
        self.file.close()
        # Replaced, not written over: features of an earlier extraction may still be mapped from the old file.
        os.replace(self.partial, self.path)
        flat = torch.from_file(str(self.path), shared=False, size=self.shape[0] * self.shape[1], dtype=self.dtype)
        return flat.view(self.shape)

    def __exit__(self, *error: object) -> None:
        if self.path is not None:
            self.file.close()
            Path(self.partial).unlink(missing_ok=True)
