"""Separable linear resampling with its own weights for every image: crop, resize and flip in one go, and blur.

Every output row is a weighted sum of a few input rows, its *taps*, and so is every output column. On a CPU the sum is
an embedding bag over rows, between two transpositions; elsewhere it is two batched matrix products. One core, 96 px,
microseconds for an image: embedding bag 30, `grid_sample` 50-65 (and 85 for its grid), two matrix products 120-160.
"""

import math
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stec.core.devices import to_device


class Taps(NamedTuple):
    """The input positions that each output position reads along one axis, and their weights."""

    source: Int[Tensor, "b out k"]
    weight: Float[Tensor, "b out k"]
    size_in: int

    def rows(self, part: slice) -> "Taps":
        """The taps of some images."""
        return Taps(self.source[part], self.weight[part], self.size_in)

    def dense(self) -> Float[Tensor, "b out in"]:
        """The same as one matrix for each image."""
        b, out, _ = self.source.shape
        return self.weight.new_zeros(b, out, self.size_in).scatter_add_(2, self.source, self.weight)


def crop_taps(
    start: Int[Tensor, " b"],
    length: Int[Tensor, " b"],
    *,
    flip: Bool[Tensor, " b"] | None,
    size_in: int,
    size_out: int,
    device: torch.device,
) -> Taps:
    """Taps that cut [start, start + length) pixels out of `size_in` and resize them to `size_out`, mirrored on `flip`.

    Bilinear: a triangle of half-width max(length / size_out, 1) input pixels, which reads inside the crop only. So an
    enlarged crop is interpolated between neighbours and repeats its border pixel, and a shrunk crop is averaged
    (torchvision's `antialias=True`). `start` and `length` come from the host, `size_out` is at least 1.
    """
    if start.device.type != "cpu" or length.device.type != "cpu":
        raise ValueError(f"crops lie on {length.device}; draw them on the CPU, so that their sizes need no device sync")
    k = math.ceil(2.0 * max(float(length.max()) / size_out, 1.0)) if len(length) else 2
    mirrored = torch.zeros_like(start) if flip is None else flip.to(start)
    start, length, mirrored = to_device(torch.stack((start, length, mirrored)), device).unbind(0)
    scale = length.float()[:, None] / size_out
    half_width = scale.clamp(min=1.0)
    centre = (torch.arange(size_out, device=device) + 0.5) * scale  # b out, in pixels from the crop's start
    if flip is not None:
        centre = torch.where(mirrored[:, None] != 0, centre.flip(1), centre)
    first = (centre - 0.5 - half_width).floor() + 1.0
    position = first[..., None] + torch.arange(k, device=device)  # b out k
    weight = 1.0 - (position + 0.5 - centre[..., None]).abs() / half_width[..., None]
    inside = (position >= 0) & (position < length[:, None, None])
    weight = weight.clamp_(min=0.0).mul_(inside)
    weight = weight / weight.sum(dim=2, keepdim=True)
    source = position.long() + start[:, None, None]
    return Taps(source.clamp_(0, size_in - 1), weight, size_in)


def blur_taps(sigma: Float[Tensor, " b"], kernel_size: int, *, size: int) -> Taps:
    """Taps of a Gaussian of `sigma` pixels cut to `kernel_size` (odd) pixels; the border pixel is a mirror."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size}; need an odd number of pixels")
    reach = kernel_size // 2
    if reach >= size:
        raise ValueError(f"kernel_size {kernel_size} needs images of more than {reach} pixels; these have {size}")
    offset = torch.arange(-reach, reach + 1, device=sigma.device)
    weight = torch.softmax(-0.5 * (offset / sigma[:, None]).square(), dim=1)
    position = (torch.arange(size, device=sigma.device)[:, None] + offset).abs()
    source = (size - 1) - ((size - 1) - position).abs()
    return Taps(source.expand(len(sigma), -1, -1), weight[:, None].expand(-1, size, -1), size)


def resample(images: Tensor, rows: Taps, columns: Taps) -> Float[Tensor, "b c h w"]:
    """Images (b, c, in, in) of any dtype, resampled along both axes; the values' scale lies in the weights.

    >>> cpu, zero, two = torch.device("cpu"), torch.tensor([0]), torch.tensor([2])
    >>> taps = crop_taps(zero, two, flip=None, size_in=2, size_out=4, device=cpu)
    >>> resample(torch.tensor([[[[0.0, 4.0], [0.0, 4.0]]]]), taps, taps)[0, 0, 0]
    tensor([0., 1., 3., 4.])
    """
    if images.device.type != "cpu":
        has = torch.amp.autocast_mode.is_autocast_available(images.device.type)  # meta has not
        with torch.autocast(images.device.type, enabled=False) if has else nullcontext():  # bf16 would round pixels
            across = images.float().flatten(1, 2) @ columns.dense().mT  # one matrix for all rows of all channels
            return rows.dense()[:, None] @ across.unflatten(1, (images.shape[1], -1))
    turned = images.mT.to(torch.float32, memory_format=torch.contiguous_format).contiguous()
    return _combine(_combine(turned, columns).mT.contiguous(), rows)


def _combine(images: Tensor, taps: Taps) -> Tensor:
    """Weighted sums of whole rows: (b, c, in, m) -> (b, c, out, m)."""
    b, c, n, m = images.shape
    k = taps.source.shape[2]
    base = torch.arange(0, b * c * n, n).view(b, c, 1, 1)
    index = (taps.source[:, None] + base).view(-1, k)
    weight = taps.weight[:, None].expand(-1, c, -1, -1).reshape(-1, k)
    summed = F.embedding_bag(index, images.view(-1, m), mode="sum", per_sample_weights=weight)
    return summed.view(b, c, -1, m)
