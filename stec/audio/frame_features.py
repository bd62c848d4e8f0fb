"""Features of many utterances frame by frame: in memory, or in files that are mapped."""

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

Frames = dict[str, Tensor]  # (t, f) of each layer for one utterance; empty where it is too short for a frame
Progress = Callable[[int, int], None]


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


def collect(
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
