"""Photometric changes of a batch, with parameters of its own for every image: colour jitter, grey, blur, solarise.

Each function equals torchvision's at the same parameters on float images in [0, 1]. All random numbers of a batch are
drawn on the host: a GPU makes the same views as a CPU, and how many images each change meets is known without asking
the device. On a CPU, pointwise work goes in place through chunks that fit the cache.

Selecting by a mask (`torch.where`) costs a CPU ten times what a sum costs, so the colour mathematics has no branches.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stec.core.devices import to_device
from stec.vision.resample import blur_taps, resample

CHUNK = 1 << 19  # floats worked on at a time on a CPU: 2 MB, and as much again in intermediate results
LUMA = (0.2989, 0.587, 0.114)  # weights of red, green and blue in grey, as torchvision has them
# What takes the hue of red, green and blue to 1/2 of the circle; 2 turns more keep the sum with any shift positive.
TO_HALF = (2 + 1 / 2, 2 + 1 / 2 - 1 / 3, 2 + 1 / 2 - 2 / 3)

Images = Float[Tensor, "b 3 h w"]
PerImage = Float[Tensor, " b"]


def adjust_brightness(images: Images, factor: PerImage) -> Images:
    """Images times their factor, clamped to [0, 1]."""
    zero = torch.zeros_like(factor)
    return _blend(images.clone(), _columns(factor, zero, zero))


def adjust_contrast(images: Images, factor: PerImage) -> Images:
    """Each image blended with the mean of its grey version: factor 0 gives that grey, 1 the image, more exaggerates."""
    return _blend(images.clone(), _columns(factor, torch.zeros_like(factor), 1 - factor))


def adjust_saturation(images: Images, factor: PerImage) -> Images:
    """Each image blended with its grey version: factor 0 gives grey, 1 the image, more exaggerates.

    >>> adjust_saturation(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1), torch.tensor([0.2])).flatten()
    tensor([0.4391, 0.2391, 0.2391])
    """
    return _blend(images.clone(), _columns(factor, 1 - factor, torch.zeros_like(factor)))


@torch.no_grad()
def adjust_hue(images: Images, shift: PerImage) -> Images:
    """Hue turned by `shift` in [-0.5, 0.5] of the colour circle; value and saturation (of HSV) stay. No gradient."""
    wide = torch.promote_types(images.dtype, torch.float32)
    turned = _turn_hue(images.to(wide, copy=True), _channel_shifts(shift.to(wide)).T[..., None, None])
    return turned.to(images.dtype)


def grayscale(images: Images) -> Images:
    """Three equal channels of grey."""
    return _luma(images).expand_as(images).contiguous()


def gaussian_blur(images: Images, sigma: PerImage, kernel_size: int) -> Images:
    """Gaussian of `sigma` pixels in a square of `kernel_size` (odd) pixels, with reflected borders."""
    taps = blur_taps(sigma, kernel_size, size=images.shape[2])
    if images.shape[2] == images.shape[3]:
        return resample(images, taps, taps)
    return resample(images, taps, blur_taps(sigma, kernel_size, size=images.shape[3]))


def solarise(images: Images, threshold: float) -> Images:
    """Values of at least `threshold` are inverted to 1 - value."""
    if threshold == 0.5:
        return torch.minimum(images, 1.0 - images)  # the same, without a mask
    return torch.where(images >= threshold, 1.0 - images, images)


def _columns(*values: PerImage) -> Float[Tensor, "n b 1 1 1"]:
    return torch.stack(values)[..., None, None, None]


def _luma(images: Images) -> Float[Tensor, "b 1 h w"]:
    red, green, blue = images.unbind(dim=1)
    return red.mul(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])[:, None]


def _blend(images: Images, coefficients: Float[Tensor, "3 b 1 1 1"]) -> Images:
    """In place: clamp(a image + s grey + k mean(grey)), which is brightness, saturation or contrast by its a, s, k."""
    a, s, k = coefficients.unbind(0)
    grey = _luma(images)
    mean = grey.mean(dim=(1, 2, 3), keepdim=True).mul_(k)
    return images.mul_(a).add_(grey.mul_(s).add_(mean)).clamp_(0.0, 1.0)


def _channel_shifts(shift: PerImage) -> Float[Tensor, "3 b"]:
    """The shift of hue counted from each channel's own hue, as `_turn_hue` wants it."""
    return torch.stack([shift + turns for turns in TO_HALF])


def _turn_hue(images: Images, shift: Float[Tensor, "b 3 1 1"]) -> Images:
    """In place, without a round trip through HSV, and without branches. `shift` is of `_channel_shifts`.

    With chroma C = max - min and channels scaled to (value - min) / C in [0, 1], the hue in sixths of the circle,
    counted from red, is 1 + g + b - r towards green and its negative towards blue. The channel whose own hue lies d
    sixths from the new hue is min + C clamp(2 - d, 0, 1).
    """
    red, green, blue = images.unbind(dim=1)
    high, low = images.amax(dim=1), images.amin(dim=1)
    chroma = high - low
    distance = (green + blue).sub_(red).sub_(low).div_(chroma.clamp(min=1e-20)).add_(1.0)  # from red; any value on grey
    # towards green (+) or blue (-); equal green and blue need a sign too, and 1e-30 moves no other difference
    side = (green - blue).add_(1e-30).sign_()
    hue = distance.mul_(side).mul_(1 / 6)  # turns, in [-1/2, 1/2]
    # Each channel's own hue lies at 1/2 of its shifted circle, which frac() wraps to [0, 1).
    away = (hue[:, None] + shift).frac_().sub_(0.5).abs_().clamp_(1 / 6, 1 / 3)
    # min + C (2 - 6 away), with max = min + C reached at 1/6 and min at 1/3
    low = low.add_(chroma, alpha=2.0)
    return torch.sub(low[:, None], away.mul_(chroma[:, None]), alpha=6.0, out=images)


@functools.cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """One compiled form of each pointwise piece for the whole process, for any batch and image size."""
    return torch.compile(function, dynamic=True)


def chunks(n: int, floats: int, device: torch.device) -> Iterator[slice]:
    """Slices of n images of so many floats each: on a CPU as many as work in the cache, elsewhere all at once."""
    if device.type == "cpu":
        _keep_freed_memory()
    step = max(1, CHUNK // floats) if device.type == "cpu" else max(1, n)
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


@functools.cache
def _keep_freed_memory() -> None:
    """Lets the C allocator keep what a chunk frees for the next chunk, rather than hand it back to the system.

    glibc raises its thresholds for this to the largest block (up to 32 MB) that it has seen freed. Without it the pages
    of each intermediate result are fresh ones, and zeroing these takes up to half the time of views of 32 pixels.
    """
    torch.empty(16 << 20, dtype=torch.uint8)


def row_writer(target: Images) -> Callable[[Int[Tensor, " n"], Images], None]:
    """A function that copies images to their rows (host indices) of the target."""
    every = target.unbind(0) if target.device.type == "cpu" else None

    def write(rows: Tensor, values: Tensor) -> None:
        if every is None:
            target.index_copy_(0, to_device(rows, target.device), values)
        else:  # a third of index_copy_'s time
            torch._foreach_copy_([every[row] for row in rows.tolist()], list(values.unbind(0)))

    return write


def _met_by(mask: Bool[Tensor, " b"], device: torch.device) -> Iterator[tuple[slice | Tensor, slice | Tensor]]:
    """Where a host mask is True, for host tensors and for those of the device: neighbours as slices on a CPU, which
    can be changed in place; elsewhere all at once, for there every further call costs more than a copy.
    """
    if device.type != "cpu":
        if bool(mask.any()):
            here = mask.nonzero()[:, 0]
            yield here, to_device(here, device)
        return
    edges = torch.nn.functional.pad(mask.int(), (1, 1)).diff()
    for ends in zip((edges > 0).nonzero()[:, 0].tolist(), (edges < 0).nonzero()[:, 0].tolist()):
        yield slice(*ends), slice(*ends)


class Photometric(NamedTuple):
    """One draw of all photometric changes for each image, on the host; `apply(images)` makes them."""

    jitter: Bool[Tensor, " b"]
    order: Int[Tensor, "b 4"]  # the jitter's operations, first to last: 0 brightness, 1 contrast, 2 saturation, 3 hue
    factors: Float[Tensor, "b 3"]  # of brightness, contrast, saturation
    hue: Float[Tensor, " b"]
    grayscale: Bool[Tensor, " b"]
    blur: Bool[Tensor, " b"]
    sigma: Float[Tensor, " b"]  # pixels
    kernel_size: int  # pixels, odd
    solarise: Bool[Tensor, " b"]
    threshold: float

    @classmethod
    def draw(
        cls,
        n: int,
        *,
        jitter: tuple[float, float, float, float],
        p_jitter: float,
        p_grayscale: float,
        p_blur: float,
        kernel_size: int,
        sigma: tuple[float, float],
        p_solarise: float,
        threshold: float,
        generator: torch.Generator,
    ) -> "Photometric":
        """n draws. `jitter` holds the strengths of brightness, contrast, saturation and hue as in torchvision's
        ColorJitter: factors are uniform in 1 +- strength, not below 0, and hue's shift in +- strength. `sigma` is the
        range of the blur in pixels.
        """
        uniform = torch.rand(9, n, generator=generator)
        order = torch.rand(n, 4, generator=generator).argsort(dim=1)
        low = torch.tensor([max(0.0, 1.0 - strength) for strength in jitter[:3]] + [-jitter[3]])
        high = torch.tensor([1.0 + strength for strength in jitter[:3]] + [jitter[3]])
        amounts = torch.lerp(low[:, None], high[:, None], uniform[:4])
        return cls(
            jitter=uniform[4] < p_jitter,
            order=order,
            factors=amounts[:3].T,
            hue=amounts[3],
            grayscale=uniform[5] < p_grayscale,
            blur=uniform[6] < p_blur,
            sigma=sigma[0] + (sigma[1] - sigma[0]) * uniform[7],
            kernel_size=kernel_size,
            solarise=uniform[8] < p_solarise,
            threshold=threshold,
        )

    def rows(self, part: Tensor | slice) -> "Photometric":
        """The draw of some images."""
        return self._replace(
            jitter=self.jitter[part],
            order=self.order[part],
            factors=self.factors[part],
            hue=self.hue[part],
            grayscale=self.grayscale[part],
            blur=self.blur[part],
            sigma=self.sigma[part],
            solarise=self.solarise[part],
        )

    def hue_place(self) -> Int[Tensor, " b"]:
        """After how many of the other three operations hue comes; 4 for images without jitter."""
        return (self.order == 3).int().argmax(dim=1).where(self.jitter, 4)

    def sorting(self) -> Int[Tensor, " b"]:
        """The order of work: images that meet the same change lie side by side, so that it is made in place."""
        key = self.hue_place()
        for mask in (self.blur, self.solarise, self.grayscale):
            key = 2 * key + mask
        return key.argsort(stable=True)

    @torch.no_grad()
    def apply(self, images: Tensor, *, compile: bool = False) -> Images:
        """The changed images, float32 in [0, 1], of uint8 or float images: jitter, grey, blur, solarise, in this order.

        `compile` fuses the pointwise work; the first call then compiles for half a minute.
        """
        output = torch.empty(images.shape, dtype=torch.float32, device=images.device)
        order = self.sorting()
        draw, rows = self.rows(order), to_device(order, images.device)
        write = row_writer(output)
        for part in chunks(len(images), images[0].numel(), images.device):
            chosen = images.index_select(0, rows[part])
            chosen = chosen.float().div_(255.0) if chosen.dtype == torch.uint8 else chosen.float()
            write(order[part], draw.rows(part).change_(chosen, compile=compile))
        return output

    def change_(self, images: Images, *, compile: bool) -> Images:
        """In place, float images in the order of `sorting`."""
        jittered = int(self.jitter.sum())
        if jittered:
            self.rows(slice(jittered))._jitter_(images[:jittered], compile)
        for _, rows in _met_by(self.grayscale, images.device):
            images[rows] = _luma(images[rows])
        for here, rows in _met_by(self.blur, images.device):
            sigma = to_device(self.sigma[here], images.device)
            images[rows] = gaussian_blur(images[rows], sigma, self.kernel_size)
        for _, rows in _met_by(self.solarise, images.device):
            images[rows] = solarise(images[rows], self.threshold)
        return images

    def _jitter_(self, images: Images, compile: bool) -> None:
        blend, turn_hue = (_compiled(_blend), _compiled(_turn_hue)) if compile else (_blend, _turn_hue)
        n = len(images)
        operation = self.order[self.order != 3].view(n, 3)  # of each of the three blends
        factor = self.factors.gather(1, operation)
        weights = ((1 - factor) * (operation == kind) for kind in (2, 1))  # of grey and of its mean
        blends = torch.stack((factor, *weights), dim=2).permute(1, 2, 0).reshape(9, n)
        values = to_device(torch.cat((blends, _channel_shifts(self.hue))), images.device)[..., None, None]
        blends, shifts = values[:9, ..., None], values[9:].transpose(0, 1)
        ends = [0, *torch.bincount(self.hue_place(), minlength=4).cumsum(0).tolist()]
        for step in range(4):
            here = slice(ends[step], ends[step + 1])
            if here.start < here.stop:
                turn_hue(images[here], shifts[here])
            if step < 3:
                blend(images, blends[3 * step : 3 * step + 3])
