"""From windows of a corpus to pairs of sensations: waveforms, and which of them are of one object."""

from typing import Literal

import torch
from torch import Tensor

from stec.audio.windows import Windows
from stec.core.actions import ViewPair

Object = Literal["utterance", "chapter", "speaker"]


class SpeechPairs:
    """Windows to a ViewPair: waveforms in [-1, 1), the object of each, and the speaker as group and label.

    The object decides which windows are no negatives of each other: the utterance by default; the chapter or the
    speaker on request, which uses labels, or the names of folders. x' is the second window of the same utterance where
    the loader draws one. There is no action but that of staying with the object: `action` has no component.
    """

    def __init__(self, *, object: Object = "utterance") -> None:
        if object not in ("utterance", "chapter", "speaker"):
            raise ValueError(f"object is {object!r}; use 'utterance', 'chapter' or 'speaker'")
        self.object = object

    def __call__(self, windows: Windows, generator: torch.Generator) -> ViewPair:
        """The windows were drawn by the loader: `generator` is not used."""
        ids: Tensor = getattr(windows, self.object)
        b = len(ids)
        return ViewPair(
            _float(windows.x),
            None if windows.x_prime is None else _float(windows.x_prime),
            action=torch.empty((b, 0), device=ids.device),
            valid=torch.ones(b, dtype=torch.bool, device=ids.device),
            label=windows.speaker,
            object=ids,
            group=windows.speaker,
        )


def _float(samples: Tensor) -> Tensor:
    return samples.float().mul_(1 / 32768)  # a power of 2: exact
