"""What the released code's label cannot tell from the pixels: an argument by mirror worlds, and its numbers.

Mirror an image, mirror the position of each crop and toggle each flip: every view keeps its pixels, so every pair of
views keeps its action, and so does the label `exact`. The label `official` takes another t_x. Where mirrored scenes
are as likely as the scenes themselves, the pixels cannot say which of the two labels is meant.
"""

import dataclasses
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stec.core.actions import chance_level
from stec.vision.affine import Affine, CropFlip, exact_action, official_action, official_bins
from stec.vision.views import SIMCLR_CIFAR, Augmentation

IMAGE_SIZE = (32, 32)  # the law of the crops, as for CIFAR
CELLS = 16  # along each axis of the lookup table: enough cells, and enough pairs in each


def mirror_world(draw: CropFlip) -> CropFlip:
    """The draw that makes the same views of the mirrored images: positions mirrored, flips toggled.

    >>> crop = [torch.tensor([value]) for value in (4, 2, 8, 10)]
    >>> mirror_world(CropFlip(*crop, torch.tensor([False]), (32, 32)))[1:5:3]
    (tensor([20]), tensor([True]))
    """
    return draw._replace(left=draw.image_size[1] - draw.left - draw.width, flip=~draw.flip)


def draw_pairs_of(law: Augmentation, n: int, image_size: tuple[int, int], seed: int) -> tuple[CropFlip, CropFlip]:
    """n pairs of crops and flips of images of (H, W) pixels."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (law.draw_crops(n, image_size, generator=generator) for _ in range(2))
    return first, second


def official_label(to_x: CropFlip, to_x_prime: CropFlip) -> Float[Tensor, "b 6"]:
    """The released code's label of each pair: l00, l01, t_x, l10, l11, t_y (y up)."""
    return official_action(to_x.matrix(torch.float64), to_x_prime.matrix(torch.float64)).flatten(1)


def exact_label(to_x: CropFlip, to_x_prime: CropFlip) -> Float[Tensor, "b 4"]:
    """The egocentric action of each pair: scale_x, scale_y, shift_x, shift_y (y down)."""
    action = exact_action(to_x.matrix(torch.float64), to_x_prime.matrix(torch.float64))
    return Affine().flatten(action)


def lookup_nll(scale: Float[Tensor, " n"], shift: Float[Tensor, " n"], bins: Int[Tensor, " n"], k: int) -> float:
    """Nats that a table of CELLS x CELLS cells of the exact action's scale and shift along one axis leaves open.

    The table is counted on the first half of the pairs, with a tenth of a pair added to each entry, and scored on the
    second half. So it says what a reader of the exact action can reach, not what it cannot pass.
    """
    half = len(bins) // 2
    cell = torch.zeros_like(bins)
    for values in (scale, shift):
        fractions = torch.arange(1, CELLS, dtype=values.dtype) / CELLS
        cell = cell * CELLS + torch.bucketize(values.contiguous(), torch.quantile(values[:half], fractions))
    counts = torch.full((CELLS**2, k), 0.1, dtype=torch.float64)
    counts.index_put_((cell[:half], bins[:half]), torch.ones(half, dtype=torch.float64), accumulate=True)
    log_q = (counts / counts.sum(dim=1, keepdim=True)).log()
    return -float(log_q[cell[half:], bins[half:]].mean())


@dataclasses.dataclass(frozen=True)
class Shift:
    """One shift of the released label beside the exact one, over simulated pairs; NLLs in nats."""

    correlation: float  # with the exact shift, both with y up
    changed: float  # share of pairs whose bin the mirror world changes
    chance: float  # entropy of the bin
    lookup: float  # left open by a table of the exact action (`lookup_nll`)

    @property
    def floor(self) -> float:
        """No reader of the pixels gets below this, where mirrored scenes are equally likely: changed * ln 2.

        Of the two worlds that made a pair each is then as likely as the other, and where their bins differ that is one
        bit: H(bin | pixels) >= H(bin | which two worlds) = changed * ln 2.
        """
        return self.changed * math.log(2)

    @property
    def ceiling(self) -> float:
        """The accuracy that goes with it: one of two guesses is right where the bin changes."""
        return 1 - self.changed / 2


@dataclasses.dataclass(frozen=True)
class Ambiguity:
    """The numbers behind the picture."""

    t_x: Shift
    t_y: Shift
    exact_moves: float  # the largest change of any component of the exact action in the mirror world
    still: float  # mean |t_x| of the released label where both views are the same
    still_outside: float  # share of such pairs outside the two central bins
    apart: float  # share of pairs whose views do not overlap, so that no label can be read off them
    official: Float[Tensor, "n 2"]  # t_x, t_y (y up)
    exact: Float[Tensor, "n 2"]  # as above


def measure(pairs: int, *, seed: int = 0) -> Ambiguity:
    """Simulate pairs of views under the law for CIFAR and compare both labels in the world and in its mirror."""
    to_x, to_x_prime = draw_pairs_of(SIMCLR_CIFAR, pairs, IMAGE_SIZE, seed)
    mirrored = mirror_world(to_x), mirror_world(to_x_prime)
    bins = official_bins()
    official, exact = official_label(to_x, to_x_prime).double(), exact_label(to_x, to_x_prime)
    found = bins(official)
    changed = (found != bins(official_label(*mirrored))).double().mean(dim=0)
    chance = chance_level(found, bins.bins)
    exact_shift = exact[:, 2:] * exact.new_tensor([1.0, -1.0])  # y up

    def shift(axis: int) -> Shift:
        column = (2, 5)[axis]
        both = torch.stack((official[:, column], exact_shift[:, axis]))
        return Shift(
            correlation=float(torch.corrcoef(both)[0, 1]),
            changed=float(changed[column]),
            chance=float(chance.nll[column]),
            lookup=lookup_nll(exact[:, axis], exact[:, 2 + axis], found[:, column], bins.bins),
        )

    same = official_label(to_x, to_x)
    at = bins(same)[:, 2]
    return Ambiguity(
        t_x=shift(0),
        t_y=shift(1),
        exact_moves=float((exact - exact_label(*mirrored)).abs().max()),
        still=float(same[:, 2].abs().mean()),
        still_outside=float(((at < 2) | (at > 3)).double().mean()),
        apart=float((exact[:, 2:].abs() > 1 + exact[:, :2].abs() - 1e-9).any(dim=1).double().mean()),
        official=official[:, [2, 5]],
        exact=exact_shift,
    )
