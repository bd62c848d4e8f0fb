"""What windows of speech from shards are measured against: FLAC files, WAV files and a prepared corpus's one file."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import soundfile
import torch
from jaxtyping import Int16
from torch import Tensor

from stec.audio.corpus import Corpus
from stec.audio.decoding import RATE
from stec.audio.windows import WindowBatches, WindowLoader

Arm = Callable[[], Iterator[Int16[Tensor, "b n"]]]  # the batches of an epoch
BATCH = 8


def batches_of(corpus: Corpus, window: int) -> WindowBatches:
    """All windows of every utterance, in a random order; of shards, in theirs."""
    return WindowBatches(corpus, batch_size=BATCH, seed=0, window=window, sampling="all", together="uniform")


def from_corpus(corpus: Corpus, window: int) -> Arm:
    """Ours: windows of a prepared corpus, or of the same in shards."""
    loader = WindowLoader(corpus, batches_of(corpus, window))

    def epoch() -> Iterator[Int16[Tensor, "b n"]]:
        for batch in loader:
            yield batch.x

    return epoch


def from_audio(paths: Sequence[Path], corpus: Corpus, window: int) -> Arm:
    """The windows of the corpus, each from its own file, which is opened, read from where it starts, and closed."""
    batches = batches_of(corpus, window)

    def epoch() -> Iterator[Int16[Tensor, "b n"]]:
        for utterance, start, _ in batches:
            rows = [
                torch.from_numpy(soundfile.read(paths[u], start=first, frames=window, dtype="int16")[0])
                for u, first in zip(utterance.tolist(), start.tolist())
            ]
            yield torch.stack(rows)

    return epoch


def write_wav(paths: Sequence[Path], folder: Path) -> list[Path]:
    """The same utterances as WAV files."""
    folder.mkdir()
    written = [folder / f"{i:06d}.wav" for i in range(len(paths))]
    for path, to in zip(paths, written):
        soundfile.write(to, soundfile.read(path, dtype="int16")[0], RATE, subtype="PCM_16")
    return written
