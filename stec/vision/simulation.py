"""The actions that a law of views brings about, geometry and colour, with no image at hand: for bins and for their std.

`stec.vision.affine` has the same for the geometry alone, from the law of the crops.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from stec.core.actions import Bins, EfferenceCopy
from stec.vision import affine
from stec.vision.colour import WithColour, colour_of
from stec.vision.views import Augmentation


def actions_of_law(
    law: Augmentation,
    copy: EfferenceCopy,
    n: int,
    *,
    image_size: tuple[int, int],
    generator: torch.Generator,
    then: Augmentation | None = None,
) -> Float[Tensor, "n d"]:
    """The actions of n pairs of views of (H, W) images under a law; the geometry's are those of `simulate_actions`.

    With `then` the second view has that law: among small crops and large views (`multi_crop`) the actions are others
    than between two large views, so they fill the bins of those unequally, and chance is not log K.

    >>> from stec.vision.affine import AugSelfCopy
    >>> from stec.vision.views import SIMCLR_STL
    >>> copy, generator = WithColour(AugSelfCopy()), torch.Generator().manual_seed(0)
    >>> actions = actions_of_law(SIMCLR_STL, copy, 100_000, image_size=(96, 96), generator=generator)
    >>> actions.std(dim=0)[4:].round(decimals=2)  # width of the range x sqrt(p_jitter / 6)
    tensor([0.5800, 0.5800, 0.5800, 0.1500])
    """
    laws = (law, then or law)
    first, second = (each.draw_crops(n, image_size, generator=generator).matrix(torch.float64) for each in laws)
    geometry = copy.geometry if isinstance(copy, WithColour) else copy
    actions = geometry(first, second).float()
    if not isinstance(copy, WithColour):
        return actions
    return torch.cat((actions, _colour_differences(laws, n, image_size, generator)), dim=1)


def bins_of_law(law: Augmentation, copy: EfferenceCopy, bins: int, *, image_size: tuple[int, int]) -> Bins:
    """Bins that hold equal shares of 100,000 simulated actions; always the same edges for the same law.

    The geometry's are those of `quantile_bins`. For colour every pair counts in both orders, so that its edges are
    symmetric; the share of pairs in which neither view has jitter, (1 - p_jitter)^2, lies at 0, in the bin above it.
    ValueError where the law has no jitter but the copy tells its colours, and as `quantile_bins`.
    """
    geometry = copy.geometry if isinstance(copy, WithColour) else copy
    found = affine.quantile_bins(
        geometry, bins, image_size=image_size, scale=law.scale, ratio=law.ratio, p_flip=law.p_flip
    )
    if not isinstance(copy, WithColour):
        return found
    if not law.strength * law.p_jitter > 0:
        raise ValueError(
            f"strength is {law.strength} and p_jitter {law.p_jitter}: no colour ever changes, so its actions have no "
            "bins; raise both, or label pairs with the geometry alone"
        )
    difference = _colour_differences((law, law), 50_000, image_size, torch.Generator().manual_seed(1))
    colours = Bins.quantile(torch.cat((difference, -difference)), bins)
    return Bins(torch.cat((found.edges, colours.edges)))


def _colour_differences(
    laws: tuple[Augmentation, Augmentation], n: int, image_size: tuple[int, int], generator: torch.Generator
) -> Float[Tensor, "n 4"]:
    first, second = (colour_of(law.draw_photometric(n, image_size[0], generator=generator)) for law in laws)
    return (first - second).float()
