"""Views without a background (ReLICv2, Tomasev et al. 2022): where a saliency mask is low, the image turns grey."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stec.core.devices import to_device

GREY = 0.5  # of the background; chosen, the paper says only that it is one grey


# How much each pixel belongs to the object, in [0, 1], of images in [0, 1] on the same device, with randomness from the
# generator alone: a network, or anything else. This project brings none.
Saliency = Callable[[Float[Tensor, "b 3 h w"], torch.Generator], Float[Tensor, "b 1 h w"]]


class Masked(NamedTuple):
    """Images whose background has gone, and which views are cut from them."""

    images: Float[Tensor, "m 3 h w"]  # in the units of the batch: up to 255 where that is uint8
    source: Int[Tensor, " n"]  # of each view, on the host: a row of `images`, or -1 where the image stays whole

    def put(self, taken: Tensor, views: Int[Tensor, " k"]) -> Tensor:
        """The images `taken` for these views (host indices), with the masked ones in place."""
        source = self.source[views]
        here = (source >= 0).nonzero()[:, 0]
        if not len(here):
            return taken
        places, rows = to_device(torch.stack((here, source[here])), taken.device)
        return taken.float().index_copy_(0, places, self.images.index_select(0, rows))


def mask_background(
    images: Tensor, chosen: Bool[Tensor, " n"], saliency: Saliency, *, generator: torch.Generator
) -> Masked | None:
    """image * mask + grey * (1 - mask) of those of b images from which any of the `chosen` views is cut; None if none.

    View i is of image i mod b; `chosen` lies on the host. `saliency` sees every such image once. ValueError where its
    mask has another shape than (m, 1, h, w), or on the CPU leaves [0, 1].
    """
    b = len(images)
    needed = chosen.view(-1, b).any(dim=0)
    if not bool(needed.any()):
        return None
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    rows = to_device(needed.nonzero()[:, 0], images.device)
    picked = images.index_select(0, rows).float() / scale
    mask = saliency(picked, generator)
    if mask.shape != (len(picked), 1, *images.shape[2:]):
        raise ValueError(
            f"the saliency mask of images {tuple(picked.shape)} has shape {tuple(mask.shape)}; need one channel of the "
            "images' size, (b, 1, h, w)"
        )
    if mask.device.type == "cpu" and not bool(((mask >= 0) & (mask <= 1)).all()):  # no wait on a CPU
        raise ValueError(f"the saliency mask spans {float(mask.amin()):g} to {float(mask.amax()):g}; need [0, 1]")
    replaced = torch.lerp(torch.full_like(picked, GREY), picked, mask.to(picked.dtype)).mul_(scale)
    position = (needed.long().cumsum(0) - 1).repeat(len(chosen) // b)
    return Masked(replaced, position.where(chosen, -1))
