"""Windows with the phone of every frame, for the supervised baseline."""

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from stec.audio.alignment import Alignment
from stec.audio.views import SpeechPairs
from stec.audio.windows import WindowLoader, Windows
from stec.core.actions import ViewPair


class Labelled(NamedTuple):
    """A batch of windows, and the label of each frame, -1 where there is none."""

    windows: Windows
    labels: Int64[Tensor, "b t"]


class LabelledWindows(Iterable[Labelled], Sized):
    """The batches of a loader, with the label whose centre is nearest to each frame's.

    `labels` by utterance, one every 160 samples and centred as `alignment` says; `frames` is how many frames the
    encoder makes of a window.
    """

    def __init__(
        self, loader: WindowLoader, labels: Mapping[str, np.ndarray], *, frames: int, alignment: Alignment
    ) -> None:
        corpus = loader.corpus
        for i, name in enumerate(corpus.utterances):
            alignment.check(int(corpus.lengths[i]), len(labels[name]), name)
        self.loader = loader
        self.alignment = alignment
        self._labels = [torch.as_tensor(labels[name], dtype=torch.int64) for name in corpus.utterances]
        self._times = alignment.frame_hop * torch.arange(frames) + alignment.frame_centre

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Labelled]:
        for index, windows in self.loader.indexed():
            rows = [self._row(i, start) for i, start in zip(index.utterance.tolist(), index.start.tolist())]
            yield Labelled(windows, self.loader.place(torch.stack(rows)))

    def _row(self, utterance: int, start: int) -> Int64[Tensor, " t"]:
        labels = self._labels[utterance]
        nearest = ((start + self._times - self.alignment.label_centre) / self.alignment.label_hop + 0.5).floor().long()
        inside = (nearest >= 0) & (nearest < len(labels))
        return torch.where(inside, labels[nearest.clamp(0, len(labels) - 1)], -1)


MOST_CLASSES = 10_000


def count_classes(labels: Mapping[str, np.ndarray], utterances: Iterable[str]) -> int:
    """One more than the largest id. ValueError where that is no number of classes that a linear layer could have."""
    largest, name = max((int(labels[name].max()), name) for name in utterances)
    if largest >= MOST_CLASSES:
        raise ValueError(
            f"a label of {name} is {largest}, and phones are numbered from 0 without gaps, to {MOST_CLASSES - 1} at "
            "most; correct the label file"
        )
    return largest + 1


class LabelledPairs(SpeechPairs):
    """As SpeechPairs, with the phones of the frames (b, t) as labels."""

    def __call__(self, batch: Labelled, generator: torch.Generator) -> ViewPair:  # type: ignore[override]
        return super().__call__(batch.windows, generator)._replace(label=batch.labels)
