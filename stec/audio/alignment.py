"""Which frame of an encoder belongs to which phone label, and what the peers take."""

import dataclasses
import math

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alignment:
    """Which frame of an encoder belongs to which label: frame = label + offset.

    Frame j is centred on sample `frame_hop * j + frame_centre`, label i on `label_hop * i + label_centre`, counted
    from the beginning of an utterance at 16 kHz. The centre of a frame follows from the encoder's paddings: 79.5 for
    3, 2, 1, 1, 1 (CPC_audio) and 20.5 for 2, 2, 2, 2, 1 (Greedy InfoMax). Kaldi's labels are centred on 200: windows
    of 400 samples, the first of which begins with the utterance. `offset` None: both sequences end together.
    Raises ValueError where the hops differ, since then no offset fits.

    >>> Alignment().frame_labels(np.array([7, 8, 9]), 5)
    tensor([-1,  7,  8,  9, -1])
    """

    frame_hop: int = 160
    frame_centre: float = 79.5
    label_hop: int = 160
    label_centre: float = 200.0
    offset: int | None = 1

    def __post_init__(self) -> None:
        if self.frame_hop < 1 or self.frame_hop != self.label_hop:
            raise ValueError(
                f"frames lie {self.frame_hop} samples apart, labels {self.label_hop}; make labels with the encoder's "
                "hop, from intervals by stec.audio.phones.frame_labels"
            )

    @classmethod
    def nearest(
        cls, *, frame_hop: int = 160, frame_centre: float = 79.5, label_hop: int = 160, label_centre: float = 200.0
    ) -> "Alignment":
        """With the offset that brings the centres of frames and labels closest; of two equally close, the later frame.

        >>> Alignment.nearest(frame_centre=20.5).offset
        1
        """
        offset = math.floor((label_centre - frame_centre) / frame_hop + 0.5)
        return cls(
            frame_hop=frame_hop,
            frame_centre=frame_centre,
            label_hop=label_hop,
            label_centre=label_centre,
            offset=offset,
        )

    @property
    def residual(self) -> float:
        """Samples from the centre of a frame to that of its label; ValueError where the offset depends on lengths.

        >>> Alignment().residual
        -39.5
        """
        if self.offset is None:
            raise ValueError("offset None aligns the ends, so centres differ by utterance; give an offset")
        return self.label_centre - (self.frame_hop * self.offset + self.frame_centre)

    def check(self, samples: int, n_labels: int, utterance: str) -> None:
        """ValueError where `n_labels` are not labels of a waveform of `samples`.

        Accepts one label less than Kaldi makes, (samples - 400) // 160 + 1, up to samples // 160 + 1, which is what
        centred windows give: a difference that an offset can mend.
        """
        hop = self.label_hop
        fewest = max(1, (samples - math.ceil(2 * self.label_centre)) // hop)
        most = samples // hop + 1
        if fewest <= n_labels <= most:
            return
        apart = samples / max(1, n_labels)
        ratio = max(apart / hop, hop / max(apart, 1))
        if n_labels and abs(ratio - round(ratio)) < 0.05 * ratio and round(ratio) > 1:
            cause = f"these lie {apart:.0f} samples apart: labels of another rate; make them one every {hop} samples"
        else:
            cause = "the labels are of other audio, or one of both was cut; pair them anew, or leave the utterance out"
        raise ValueError(
            f"{utterance} has {n_labels} labels and {samples} samples, which take {fewest} to {most} labels, "
            f"one every {hop} samples; {cause}"
        )

    def pair(self, n_frames: int, n_labels: int) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " m"]]:
        """Indices of frames, and of the labels that belong to them; labels without a frame are left out.

        >>> Alignment().pair(4, 3)
        (tensor([1, 2, 3]), tensor([0, 1, 2]))
        """
        offset = n_frames - n_labels if self.offset is None else self.offset
        first = max(0, offset)
        frames = torch.arange(first, max(first, min(n_frames, n_labels + offset)))
        return frames, frames - offset

    def frame_labels(
        self, labels: Int[np.ndarray, " n"] | Int[Tensor, " n"], n_frames: int
    ) -> Int64[Tensor, " n_frames"]:
        """The label of each frame, -1 where it has none."""
        frames, chosen = self.pair(n_frames, len(labels))
        found = torch.full((n_frames,), -1)
        found[frames] = torch.tensor(np.asarray(labels), dtype=torch.int64)[chosen]
        return found


# What the peers do on whole utterances. CPC_audio (facebookresearch) takes label `sample // 160` and cuts the waveform
# to its labels; s3prl's phone_linear drops trailing features; Greedy InfoMax drops leading ones ("Cutting from the
# front gave better results empirically"): with its paddings 2, or 3 for a quarter of all lengths, past the nearest.
CONVENTIONS = {
    "nearest": Alignment(),
    "cpc_audio": Alignment(offset=0),
    "s3prl": Alignment(offset=0),
    "gim": Alignment(frame_centre=20.5, offset=None),
}
