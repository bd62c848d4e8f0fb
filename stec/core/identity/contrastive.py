"""Identity models with negatives: a softmax over candidates (Eq. 4)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stec.core import distributed
from stec.core.actions import ViewPair
from stec.core.losses import nt_xent
from stec.core.objective import Features, InverseModel


class SimCLR(InverseModel):
    """Eq. 4: a softmax over candidates of phi(h, h') / tau, with phi the cosine of the projected features.

    The loss is NT-Xent (Chen et al. 2020), the upper bound of Eq. 5: every view's partner against all other views of
    the batch, of all processes. `projector` maps (2b, f) features to (2b, p); `temperature` is tau.
    """

    def __init__(self, projector: nn.Module, *, temperature: float) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; need a positive value")
        self.projector = projector
        self.temperature = temperature

    def forward(self, online: Features, target: Features | None, pair: ViewPair) -> Float[Tensor, ""]:
        # One pass over both views, so that the projector's BatchNorm sees 2b rows.
        z, z_prime = self.projector(torch.cat((online.x, online.x_prime))).chunk(2)
        if distributed.world_size() == 1:
            return nt_xent(z, z_prime, self.temperature)
        everyone = (distributed.gather(z), distributed.gather(z_prime))
        return nt_xent(z, z_prime, self.temperature, everyone=everyone, first=distributed.rank() * len(z))
