"""The colour part of an action (Lee et al. 2021): how the colour jitter of two views differed.

A copy of the geometry sees two poses, (b, 3, 3) each. With colour a view's pose is longer, (b, 13): the same matrix row
by row, and the four parameters of the jitter that the view underwent. So one draw still gives pixels and action.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from stec.core.actions import EfferenceCopy
from stec.core.devices import to_device
from stec.vision.photometric import Photometric

COLOURS = ("brightness", "contrast", "saturation", "hue")


def colour_of(changes: Photometric) -> Float[Tensor, "b 4"]:
    """The factors of brightness, contrast and saturation and the turn of the hue that views underwent, float64.

    Hue in turns of the colour circle. 1, 1, 1, 0 for a view without jitter, whatever was drawn for it.
    """
    drawn = torch.cat((changes.factors, changes.hue[:, None]), dim=1).double()
    return torch.where(changes.jitter[:, None], drawn, drawn.new_tensor([1.0, 1.0, 1.0, 0.0]))


def coloured(to_view: Float[Tensor, "b 3 3"], changes: Photometric) -> Float[Tensor, "b 13"]:
    """The poses of views with their colours, float64, on the device of the matrices: what `WithColour` reads."""
    return torch.cat((to_view.double().flatten(1), to_device(colour_of(changes), to_view.device)), dim=1)


class WithColour:
    """An efference copy of the geometry, followed by the differences x - x' of the jitter's parameters (AugSelf).

    `WithColour(AugSelfCopy())` is the target of Lee et al. (2021) for cropping and colour, their choice for STL-10.
    Their code divides each colour difference by the width of its range, 2 x strength. Here they stay in the units of
    `colour_of`: a constant for each component, which the std of RegressedActions and quantile bins take out again.
    As with them, pairs count whose views were made grey afterwards, and the order of the jitter's operations is no part
    of the label.

    >>> from stec.vision.affine import AugSelfCopy
    >>> x, x_prime = torch.zeros(2, 1, 13).unbind()
    >>> x[0, 9:], x_prime[0, 9:] = torch.tensor([1.5, 1.0, 1.0, 0.25]), torch.tensor([1.0, 1.0, 1.5, 0.0])
    >>> WithColour(AugSelfCopy())(x, x_prime)[0, 4:]
    tensor([ 0.5000,  0.0000, -0.5000,  0.2500])
    """

    def __init__(self, geometry: EfferenceCopy) -> None:
        self.geometry = geometry

    @property
    def components(self) -> tuple[str, ...]:
        return (*self.geometry.components, *COLOURS)

    def __call__(self, to_x: Float[Tensor, "b 13"], to_x_prime: Float[Tensor, "b 13"]) -> Float[Tensor, "b d"]:
        matrix, matrix_prime = (pose[:, :9].unflatten(1, (3, 3)) for pose in (to_x, to_x_prime))
        return torch.cat((self.geometry(matrix, matrix_prime), to_x[:, 9:] - to_x_prime[:, 9:]), dim=1)


def poses(copy: EfferenceCopy, to_view: Float[Tensor, "b 3 3"], changes: Photometric) -> Tensor:
    """What `copy` reads of each view: its matrix, and with `WithColour` its colours too."""
    return coloured(to_view, changes) if isinstance(copy, WithColour) else to_view
