"""Crop and flip as affine actions: one draw with two faces (pixels and matrix), and the labels made from matrices.

A crop's matrix theta maps view coordinates to image coordinates, both normalised to [-1, 1] over the outer edges of
the pixels (torch's `affine_grid` with align_corners=False), y down:

    theta = [[s w / W, 0, (2 left + w) / W - 1], [0, h / H, (2 top + h) / H - 1], [0, 0, 1]],   s = -1 where flipped.

The egocentric action of a pair is E = inverse(theta_x) @ theta_x'. It maps coordinates of x' to coordinates of x, so
x' can be made from x through E alone, and a change of the image's frame leaves E as it is.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stec.core.actions import Bins, EfferenceCopy
from stec.vision.resample import crop_taps, resample


def crop_matrix(
    top: Tensor,
    left: Tensor,
    height: Tensor,
    width: Tensor,
    flip: Bool[Tensor, " b"],
    image_size: tuple[int, int] | tuple[Tensor, Tensor],
) -> Float[Tensor, "b 3 3"]:
    """theta (b, 3, 3) of crops in pixels, mirrored left-right after the crop where `flip`; image_size is (H, W).

    float32, or float64 where the crops are float64. Theory: the matrix that `torch.nn.functional.affine_grid` takes.

    >>> half, no = torch.tensor([16]), torch.tensor([False])
    >>> crop_matrix(half, half, half, half, no, (32, 32))[0, 0]
    tensor([0.5000, 0.0000, 0.5000])
    """
    dtype = torch.float64 if top.dtype == torch.float64 else torch.float32
    top, left, height, width = (value.to(dtype) for value in (top, left, height, width))
    image_height, image_width = image_size
    theta = top.new_zeros(len(top), 3, 3)
    theta[:, 0, 0] = torch.where(flip, -width, width) / image_width
    theta[:, 1, 1] = height / image_height
    theta[:, 0, 2] = (2 * left + width) / image_width - 1
    theta[:, 1, 2] = (2 * top + height) / image_height - 1
    theta[:, 2, 2] = 1
    return theta


def _parts(matrix: Float[Tensor, "b 3 3"]) -> tuple[Float[Tensor, "b 2"], Float[Tensor, "b 2"]]:
    """Scales and shifts, (b, 2) each in the order x, y, of axis-aligned maps."""
    return matrix[:, :2, :2].diagonal(dim1=1, dim2=2), matrix[:, :2, 2]


def _matrix(scale: Float[Tensor, "b 2"], shift: Float[Tensor, "b 2"]) -> Float[Tensor, "b 3 3"]:
    matrix = scale.new_zeros(len(scale), 3, 3)
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 2, 2] = scale[:, 0], scale[:, 1], 1
    matrix[:, :2, 2] = shift
    return matrix


def exact_action(to_x: Float[Tensor, "b 3 3"], to_x_prime: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b 3 3"]:
    """E = inverse(to_x) @ to_x_prime for axis-aligned maps, in closed form: scale s'/s, shift (t' - t)/s.

    >>> whole, half = torch.eye(3)[None], torch.diag(torch.tensor([0.5, 0.5, 1.0]))[None]
    >>> exact_action(half, whole)[0, 0]
    tensor([2., 0., 0.])
    """
    (scale, shift), (scale_prime, shift_prime) = _parts(to_x), _parts(to_x_prime)
    return _matrix(scale_prime / scale, (shift_prime - shift) / scale)


def official_action(to_x: Float[Tensor, "b 3 3"], to_x_prime: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b 2 3"]:
    """The label that the authors' released code gives this pair: to_x_prime @ pseudo(to_x), y up, float32.

    pseudo() has the inverse scale but the shift -t instead of -t/s, and the order of the product is that for maps from
    image to view, while these go from view to image. So the scales are E's, and the shifts t' - s' t are neither E's
    nor those of any change of frame: two of its components cannot be read off the pixels in full (docs/concept.md).

    >>> crop = [torch.tensor([value]) for value in (10, 20, 100, 120)]
    >>> theta = crop_matrix(*crop, torch.tensor([False]), (512, 512))
    >>> official_action(theta, theta)[0, :, 2]
    tensor([-0.5264,  0.6161])
    """
    (scale, shift), (scale_prime, shift_prime) = _as_released(to_x), _as_released(to_x_prime)
    # 1/s as that code divides, other scale by determinant: the last bit decides ties such as s'/s = 2/3
    inverse_scale = scale.flip(1) / scale.prod(dim=1, keepdim=True)
    return _matrix(scale_prime * inverse_scale, shift_prime + scale_prime * -shift)[:, :2]


def _as_released(matrix: Float[Tensor, "b 3 3"]) -> tuple[Float[Tensor, "b 2"], Float[Tensor, "b 2"]]:
    """Scales and y-up shifts with that code's rounding: it adds the offset of the crop to the float32 scale.

    Only a float64 matrix tells the two roundings apart. They decide the bin of a shift of 0, a tie (1 pair in 500).
    """
    scale, shift = _parts(matrix)
    rounded = scale.float()
    shift = (shift + (rounded.abs().to(scale.dtype) - scale.abs())).float()
    return rounded, torch.stack((shift[:, 0], -shift[:, 1]), dim=1)


class Affine:
    """The group of axis-aligned affine maps, (b, 3, 3): an ActionSpace with four components.

    `Egocentric(Affine())` is the label `exact`; `Allocentric(Affine())` the difference of the matrices (Fig. 3A).
    """

    @property
    def components(self) -> tuple[str, ...]:
        """`scale_x` is negative where exactly one view is mirrored; shifts in units of half of x's width and height."""
        return ("scale_x", "scale_y", "shift_x", "shift_y")

    def compose(self, first: Float[Tensor, "b 3 3"], then: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b 3 3"]:
        """first @ then: `then` is seen from where `first` led, so E_ac = compose(E_ab, E_bc)."""
        (scale, shift), (scale_then, shift_then) = _parts(first), _parts(then)
        # product before sum, never fused: the action between views of equal centre keeps a shift of exactly 0
        return _matrix(scale * scale_then, scale * shift_then + shift)

    def inverse(self, action: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b 3 3"]:
        """The true inverse: scale 1/s, shift -t/s."""
        scale, shift = _parts(action)
        reciprocal = scale.reciprocal()
        return _matrix(reciprocal, -shift * reciprocal)

    def flatten(self, action: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b 4"]:
        """(b, 4): scale_x, scale_y, shift_x, shift_y."""
        return torch.cat(_parts(action), dim=1)


class OfficialCopy:
    """The released code's efference copy: `official_action` flattened row by row (the label `official`)."""

    @property
    def components(self) -> tuple[str, ...]:
        """Names by row and column of the (2, 3) matrix; l01 and l10 are always 0, y points up."""
        return ("l00", "l01", "t_x", "l10", "l11", "t_y")

    def __call__(self, to_x: Tensor, to_x_prime: Tensor) -> Float[Tensor, "b 6"]:
        return official_action(to_x, to_x_prime).flatten(1)


def official_bins(bins: int = 6) -> Bins:
    """The released code's bins: [-2, 2] for the linear columns, [-0.5, 0.5] for the translation, ties to even."""
    high = torch.tensor([2.0, 2.0, 0.5, 2.0, 2.0, 0.5])
    return Bins.uniform(-high, high, bins, rounding="half_even")


class AugSelfCopy:
    """Lee et al. (2021): differences x - x' of crop centre and size, over the image's size (allocentric, Fig. 3A).

    Where x is flipped the horizontal offset is mirrored, that is *both* centres are mirrored by the mask of x; the
    mask of x' is not used. This is how their code defines the target. It may look like a slip, but it gives the offset
    in the frame of x, which stays as it is when both crops move, or the image is mirrored. Each centre mirrored by its
    own mask would give 1 - c - c' where one view is flipped: their places in the image, which no pair of views tells.
    Colour is `stec.vision.colour.WithColour`; their flip target is left out.
    """

    @property
    def components(self) -> tuple[str, ...]:
        return ("centre_y", "centre_x", "height", "width")

    def __call__(self, to_x: Tensor, to_x_prime: Tensor) -> Float[Tensor, "b 4"]:
        (scale, shift), (scale_prime, shift_prime) = _parts(to_x), _parts(to_x_prime)
        # a centre c of the image's size lies at 2 c - 1 in normalised coordinates
        centre_x, centre_y = ((shift - shift_prime) / 2).unbind(dim=1)
        width, height = (scale.abs() - scale_prime.abs()).unbind(dim=1)
        return torch.stack((centre_y, centre_x * scale[:, 0].sign(), height, width), dim=1)


class CropFlip(NamedTuple):
    """One draw of crop and flip for each image, on the host, with two faces: `matrix()` and `apply(images, size)`."""

    top: Int[Tensor, " b"]  # pixels
    left: Int[Tensor, " b"]
    height: Int[Tensor, " b"]
    width: Int[Tensor, " b"]
    flip: Bool[Tensor, " b"]  # mirrored left-right after the crop
    image_size: tuple[int, int]  # (H, W) pixels

    @classmethod
    def draw(
        cls,
        n: int,
        image_size: tuple[int, int],
        *,
        scale: tuple[float, float],
        ratio: tuple[float, float],
        p_flip: float,
        generator: torch.Generator,
    ) -> "CropFlip":
        """n draws of torchvision's RandomResizedCrop law, at once, and of a flip.

        Area uniform in `scale` (of the image's), aspect ratio w/h log-uniform in `ratio`, rounded to pixels; the first
        of ten tries that fits, placed uniformly; the central crop of the nearest allowed ratio where none fits.
        """
        full_height, full_width = image_size
        uniform = torch.rand(4, 10, n, generator=generator, dtype=torch.float64)
        area = full_height * full_width * (scale[0] + (scale[1] - scale[0]) * uniform[0])
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = (low + (high - low) * uniform[1]).exp()
        width, height = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
        fits = (width > 0) & (width <= full_width) & (height > 0) & (height <= full_height)
        first = fits.int().argmax(dim=0, keepdim=True)  # 0 where none fits
        width, height, fits = (value.gather(0, first)[0] for value in (width, height, fits))
        top = (uniform[2, 0] * (full_height - height + 1)).long()
        left = (uniform[3, 0] * (full_width - width + 1)).long()
        if not bool(fits.all()):
            crop_height, crop_width = _central_crop(image_size, ratio)
            width, height = width.where(fits, crop_width), height.where(fits, crop_height)
            top = top.where(fits, (full_height - crop_height) // 2)
            left = left.where(fits, (full_width - crop_width) // 2)
        flip = torch.rand(n, generator=generator) < p_flip
        return cls(top, left, height, width, flip, image_size)

    def matrix(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "b 3 3"]:
        """theta of each draw, view to image."""
        top, left, height, width = (value.double() for value in self[:4])
        return crop_matrix(top, left, height, width, self.flip, self.image_size).to(dtype)

    def apply(self, images: Tensor, size: int | tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """The views, float32 in [0, 1], of uint8 or float images (b, c, H, W): cut, resized to `size`, flipped.

        Equals torchvision's `resized_crop(..., antialias=True)` and then `hflip` of the float images; where the crop is
        enlarged, antialias changes nothing.
        """
        if images.ndim != 4 or tuple(images.shape[2:]) != tuple(self.image_size) or len(images) != len(self.top):
            raise ValueError(
                f"images have shape {tuple(images.shape)}; this draw is for {len(self.top)} images of {self.image_size}"
            )
        size_y, size_x = (size, size) if isinstance(size, int) else size
        (full_y, full_x), device = self.image_size, images.device
        rows = crop_taps(self.top, self.height, flip=None, size_in=full_y, size_out=size_y, device=device)
        columns = crop_taps(self.left, self.width, flip=self.flip, size_in=full_x, size_out=size_x, device=device)
        if images.dtype == torch.uint8:
            rows = rows._replace(weight=rows.weight / 255.0)
        return resample(images, rows, columns)


def _central_crop(image_size: tuple[int, int], ratio: tuple[float, float]) -> tuple[int, int]:
    """(height, width) of the largest central crop with an allowed aspect ratio."""
    height, width = image_size
    if width / height < min(ratio):
        return round(width / min(ratio)), width
    if width / height > max(ratio):
        return height, round(height * max(ratio))
    return height, width


def simulate_actions(
    copy: EfferenceCopy,
    n: int,
    *,
    image_size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    p_flip: float,
    generator: torch.Generator,
) -> Float[Tensor, "n d"]:
    """The actions of n pairs of views drawn from this law, no image needed."""
    draws = (
        CropFlip.draw(n, image_size, scale=scale, ratio=ratio, p_flip=p_flip, generator=generator) for _ in range(2)
    )
    to_x, to_x_prime = (draw.matrix(torch.float64) for draw in draws)
    return copy(to_x, to_x_prime).float()


def quantile_bins(
    copy: EfferenceCopy,
    bins: int,
    *,
    image_size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    p_flip: float,
) -> Bins:
    """Bins that hold equal shares of 100,000 simulated actions: every component's chance level is log K nats.

    Always the same edges for the same law. Where a flip is as likely as none, every pair counts beside the pair with x
    mirrored, so that the edges of `scale_x` and `shift_x` are symmetric and no mirrored pair shares a bin with a
    plain one (K even). ValueError for a copy with constant components (`OfficialCopy`: use `official_bins`).
    """
    generator = torch.Generator().manual_seed(0)
    antithetic = p_flip == 0.5
    n = 50_000 if antithetic else 100_000
    first, second = (
        CropFlip.draw(n, image_size, scale=scale, ratio=ratio, p_flip=p_flip, generator=generator) for _ in range(2)
    )
    to_x_prime = second.matrix(torch.float64)
    actions = copy(first.matrix(torch.float64), to_x_prime)
    if antithetic:
        mirrored = first._replace(flip=~first.flip)
        actions = torch.cat((actions, copy(mirrored.matrix(torch.float64), to_x_prime)))
    return Bins.quantile(actions.float(), bins)
