"""Losses of a normal identity model: how far the embedding of one view lies from what the other foretells.

Where a_id = 0, the embedding of x' is normal around a prediction from x; its surprise is the squared distance over
2 sigma^2, up to a constant. No term speaks of switched objects, so an embedding that is constant costs nothing: what
keeps it from collapsing is a gradient that is stopped, a momentum encoder, or a regulariser (`decorrelation.py`).
Gradients flow into both arguments; to stop one is the identity model's business.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def byol(prediction: Float[Tensor, "b f"], target: Float[Tensor, "b f"]) -> Float[Tensor, ""]:
    """Mean over rows of 2 - 2 cos(prediction, target), in nats up to the normal's constant (Grill et al. 2020).

    On rows of unit length this is their squared distance: the normal model with sigma^2 = 1/2. It is 0 where every row
    agrees in direction, 4 where every row is opposite. With respect to a prediction p its gradient is
    -(2 / |p|)(unit target - cos unit p): orthogonal to p, and 0 at cos = 1 and -1. Nothing is detached here.

    >>> byol(torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))   # (0 + 2) / 2
    tensor(1.)
    """
    _same_shape(prediction, target)
    with torch.autocast(device_type=prediction.device.type, enabled=False):
        wide = torch.promote_types(prediction.dtype, torch.float32)
        p, z = F.normalize(prediction.to(wide), dim=1), F.normalize(target.to(wide), dim=1)
        # The squared distance, and not 1 - cos: equal rows give exactly 0, near ones lose no digits.
        return (p - z).square().sum(dim=1).mean()


def vicreg_invariance(z: Float[Tensor, "b f"], z_prime: Float[Tensor, "b f"]) -> Float[Tensor, ""]:
    """Mean over rows and dimensions of (z - z')^2, rows as they are, not of unit length (Bardes et al. 2022).

    In nats, up to a constant, of the normal model with sigma^2 = f / 2, where f is the number of dimensions; with
    sigma^2 = 1/2 the squares are summed over dimensions, and that is f times this.

    >>> vicreg_invariance(torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 3.0]]))   # 18 / 6
    tensor(3.)
    """
    _same_shape(z, z_prime)
    with torch.autocast(device_type=z.device.type, enabled=False):
        wide = torch.promote_types(z.dtype, torch.float32)
        return (z.to(wide) - z_prime.to(wide)).square().mean()


def _same_shape(one: Tensor, other: Tensor) -> None:
    """Rows of other widths would be broadcast, and the loss a number without meaning."""
    if one.shape != other.shape or not len(one):
        raise ValueError(
            f"embeddings of shape {tuple(one.shape)} and {tuple(other.shape)} must be partners row by row: a predictor "
            "gives as many features as the projector"
        )
