"""Frames of features as heads read them: in which order, in blocks, and how scaled."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

# Rows that are read at once: 32 MiB of float32 at 512 features.
CHUNK = 2**14


def epoch_order(m: int, steps: int, block: int, generator: torch.Generator) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """One epoch over m positions: chunks of them in rising order, and which of a chunk make up each batch.

    Batches differ by at most one in size: a short last one would weigh a few frames as much as a full batch.
    """
    blocks = torch.randperm(math.ceil(m / block), generator=generator)
    order = (blocks[:, None] * block + torch.arange(block)).flatten() if block > 1 else blocks
    order = order[order < m]
    ends = [(i + 1) * m // steps for i in range(steps)]
    together = max(1, CHUNK * steps // m)
    start = 0
    for i in range(0, steps, together):
        stops = ends[i : i + together]
        chunk = order[start : stops[-1]].sort().values
        mixed = torch.randperm(len(chunk), generator=generator)
        yield chunk, list(mixed.tensor_split([stop - start for stop in stops[:-1]]))
        start = stops[-1]


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows of a set, wherever the index lies."""
    return values.index_select(0, index.to(values.device))


@torch.no_grad()
def scaling(
    name: str, values: Tensor, rows: Tensor | None, standardise: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What to subtract from each feature and to multiply the rest by; the features are read once, to be checked too."""
    count, f = 0, values.shape[1]
    mean = torch.zeros(f, dtype=torch.float64, device=device)
    squares = mean.clone()  # sum of squared deviations from the mean
    for part in (values if rows is None else rows).split(CHUNK):
        x = (part if rows is None else take(values, part)).to(device).double()
        centre = x.mean(dim=0)
        if not bool(centre.isfinite().all()):
            bad = int((~x.isfinite().all(dim=1)).sum())
            raise ValueError(f"features {name!r}: {bad} of {len(x)} frames hold NaN or infinity; the encoder diverged")
        # Chan et al. 1979: merging means and squares of parts cancels no digits.
        shift, total = centre - mean, count + len(x)
        squares += (x - centre).square_().sum(dim=0) + shift.square() * (count * len(x) / total)
        mean += shift * (len(x) / total)
        count = total
    if not standardise:
        return torch.zeros(f, device=device), torch.ones(f, device=device)
    std = (squares / count).sqrt()
    varies = std > 1e-6 * mean.abs().clamp(min=1e-6)
    return mean.float(), torch.where(varies, 1 / std, 0.0).float()
