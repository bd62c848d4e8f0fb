"""More than two views of every image (multi-crop, Caron et al. 2020; ReLICv2, Tomasev et al. 2022), and the actions
among all of them.

A few large views as in a pair, and small crops of few pixels, which cost an encoder little. All large views come from
one batched resampling and all small ones from another; the same draw gives their pixels and every action between two.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from stec.core.actions import EfferenceCopy, MoreViews, ViewPair
from stec.core.devices import to_device
from stec.vision.saliency import Saliency, mask_background
from stec.vision.views import Augmentation, CroppedPair, check_images, label_pair


@torch.no_grad()
def multi_crop(
    images: Tensor,
    label: Int[Tensor, " b"] | None = None,
    *,
    generator: torch.Generator,
    large: Augmentation,
    n_large: int,
    small: Augmentation | None = None,
    n_small: int = 0,
    copy: EfferenceCopy,
    mask: Saliency | None = None,
    p_mask: float = 0.0,
    compile: bool = False,
) -> ViewPair:
    """`n_large` views by the law `large` and `n_small` by the law `small` of every image (b, 3, H, W), on its device.

    Views 0 and 1 are x and x'; the others are in `more`, large before small, with the action and validity of every
    ordered pair of views, also of a view with itself. Only two views in all are those of `two_views` to the last bit,
    and `more` is None. ReLICv2's small crops have a law of their own, `replace(large, size=96, scale=(0.05, 0.14))`.

    With `mask` each large view is, with probability `p_mask`, cut from its image on a grey background
    (`stec.vision.saliency`). Such a view stays valid. The mask is the last to be drawn: it leaves all else as it was.
    ValueError for fewer than two large views, small ones without a law, and as `two_views`.

    >>> from dataclasses import replace
    >>> from stec.vision.views import EXACT, SIMCLR_CIFAR
    >>> small = replace(SIMCLR_CIFAR, size=16, scale=(0.05, 0.14))
    >>> images, generator = torch.zeros(8, 3, 32, 32), torch.Generator().manual_seed(0)
    >>> pair = multi_crop(
    ...     images, generator=generator, large=SIMCLR_CIFAR, n_large=2, small=small, n_small=3, copy=EXACT
    ... )
    >>> [tuple(view.shape) for view in pair.more.views], pair.more.action.shape
    ([(8, 3, 16, 16), (8, 3, 16, 16), (8, 3, 16, 16)], torch.Size([5, 5, 8, 4]))
    """
    _check(n_large, small, n_small, mask, p_mask)
    check_images(images, generator)
    b, image_size = len(images), (images.shape[2], images.shape[3])
    draws = [large.draw(n_large * b, image_size, generator=generator)]
    if small is not None and n_small:
        draws.append(small.draw(n_small * b, image_size, generator=generator))
    masked = None
    if mask is not None:
        chosen = torch.rand(n_large * b, generator=generator) < p_mask
        masked = mask_background(images, chosen, mask, generator=generator)

    views = draws[0].views(images, compile=compile, masked=masked)
    for draw in draws[1:]:
        views += draw.views(images, compile=compile)
    poses = torch.cat([draw.poses(copy) for draw in draws])
    solarised = torch.cat([draw.changes.solarise for draw in draws])
    pair = label_pair(views[0], views[1], poses[: 2 * b], solarised[: 2 * b], label, copy)
    if len(views) == 2:
        return pair
    more = _among_all(views, n_large, poses.unflatten(0, (-1, b)), solarised.view(-1, b), copy)
    return pair._replace(action=more.action[0, 1], valid=more.valid[0, 1], more=more)


def _among_all(views: list[Tensor], n_large: int, poses: Tensor, solarised: Tensor, copy: EfferenceCopy) -> MoreViews:
    """The views after the first two, with actions and validity from each of v views to each, made on the host at once.

    `poses` (v, b, ...), `solarised` (v, b).
    """
    v, b = solarised.shape
    every = (v, v, *poses.shape[1:])
    to_view, to_other = (poses[side].expand(every).flatten(0, 2) for side in ((slice(None), None), (None, slice(None))))
    action = copy(to_view, to_other).float().unflatten(0, (v, v, b))
    valid = ~(solarised[:, None] | solarised[None])
    device = views[0].device
    return MoreViews(tuple(views[2:]), n_large, to_device(action, device), to_device(valid, device))


def _check(n_large: int, small: Augmentation | None, n_small: int, mask: Saliency | None, p_mask: float) -> None:
    if n_large < 2:
        raise ValueError(f"n_large is {n_large}; a pair is two large views, so give at least 2")
    if n_small < 0 or (n_small and small is None):
        raise ValueError(
            f"n_small is {n_small} and their law {small}; give `small`, such as replace(large, size=96, "
            "scale=(0.05, 0.14)), for one small view or more"
        )
    if not 0 <= p_mask <= 1:
        raise ValueError(f"p_mask is {p_mask}; a probability lies in [0, 1]")
    if p_mask and mask is None:
        raise ValueError(f"p_mask is {p_mask} without a mask; give `mask`, which tells objects from backgrounds")


class MultiCrop:
    """Makes the ViewPair of a batch of whole images (images, labels) by `multi_crop`, as `TwoViews` makes pairs.

    ValueError for pairs that workers have cropped: the other views cannot be cut from them.
    """

    def __init__(
        self,
        large: Augmentation,
        copy: EfferenceCopy,
        *,
        n_large: int,
        small: Augmentation | None = None,
        n_small: int = 0,
        mask: Saliency | None = None,
        p_mask: float = 0.0,
        compile: bool = False,
    ) -> None:
        _check(n_large, small, n_small, mask, p_mask)
        self.large = large
        self.copy = copy
        self.n_large = n_large
        self.small = small
        self.n_small = n_small
        self.mask = mask
        self.p_mask = p_mask
        self.compile = compile

    def __call__(
        self, batch: CroppedPair | tuple[Tensor, Int[Tensor, " b"] | None], generator: torch.Generator
    ) -> ViewPair:
        if isinstance(batch, CroppedPair):
            raise ValueError(
                "multi-crop needs images in memory, but workers stream two crops of each: raise the memory budget "
                "(--memory-gb) or resize the images so that they fit, or train on two views"
            )
        images, label = batch
        return multi_crop(
            images,
            label,
            generator=generator,
            large=self.large,
            n_large=self.n_large,
            small=self.small,
            n_small=self.n_small,
            copy=self.copy,
            mask=self.mask,
            p_mask=self.p_mask,
            compile=self.compile,
        )
