"""Identity models without negatives that keep the embedding from collapsing by its own statistics over the batch.

With several processes these are the statistics of the joined batch. Every process computes them from all rows, with
gradient through the gather, so their mean over processes is the loss of one process on all rows.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stec.core import distributed
from stec.core.actions import ViewPair
from stec.core.losses import barlow_twins, vicreg_invariance, vicreg_regulariser
from stec.core.objective import Features, InverseModel


class VICReg(InverseModel):
    """A normal model of the embedding of x' around that of x, unnormalised, and L_reg of Eq. 2 against collapse.

    Gives two terms, its own and "regulariser" (Bardes et al. 2022). Its own is the mean over rows and dimensions of
    (z - z')^2: nats up to a constant for sigma^2 = p / 2. With sigma^2 = 1/2 it would be the sum over the p dimensions,
    p times this. The regulariser is variance_weight * variance + covariance, as `vicreg_regulariser` has them. The
    published weights 25, 25, 1 are lambda_id 25, `variance_weight` 25 and lambda_reg 1, in the published code's terms;
    a weight for the sum over dimensions would be 25 / p. `projector` is the expander, (2b, f) to (2b, p). Both
    views pass it together, where the published code passes each alone: it matters to BatchNorm only.

    >>> h, nothing = torch.ones(4, 3), torch.zeros(4, 0)
    >>> pair = ViewPair(h, h, nothing, torch.ones(4).bool(), torch.zeros(4).long())
    >>> VICReg(nn.Identity(), variance_weight=25.0)(Features(h, h), None, pair)   # collapsed: 25 (1 - sqrt(0.0001))
    (tensor(0.), tensor(24.7500))
    """

    further = ("regulariser",)

    def __init__(self, projector: nn.Module, *, variance_weight: float) -> None:
        super().__init__()
        if not variance_weight >= 0:
            raise ValueError(f"variance_weight is {variance_weight}; need 0 or a positive value")
        self.projector = projector
        self.variance_weight = variance_weight

    def forward(
        self, online: Features, target: Features | None, pair: ViewPair
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        z, z_prime = self.projector(torch.cat((online.x, online.x_prime))).chunk(2)
        regulariser = vicreg_regulariser(
            distributed.gather(z), distributed.gather(z_prime), variance_weight=self.variance_weight
        )
        return vicreg_invariance(z, z_prime), regulariser


class BarlowTwins(InverseModel):
    """Each dimension of the embedding agrees between the views, and is uncorrelated with the others.

    The loss is `barlow_twins` (Zbontar et al. 2021; published redundancy 0.0051 at p = 8192): the squared surprise of
    each standardised dimension under a normal model, and a penalty on what two dimensions share, so no longer nats; it
    grows with p. `projector` maps (2b, f) features to (2b, p). Both views pass it together, where the published code
    passes each alone: it matters to its BatchNorm only; the correlation standardises each view by itself, as published.

    >>> h, nothing = torch.ones(4, 3), torch.zeros(4, 0)
    >>> pair = ViewPair(h, h, nothing, torch.ones(4).bool(), torch.zeros(4).long())
    >>> BarlowTwins(nn.Identity(), redundancy=0.0051)(Features(h, h), None, pair)   # collapsed: C = 0, p = 3
    tensor(3.)
    """

    def __init__(self, projector: nn.Module, *, redundancy: float) -> None:
        super().__init__()
        if not redundancy >= 0:
            raise ValueError(f"redundancy is {redundancy}; need 0 or a positive value")
        self.projector = projector
        self.redundancy = redundancy

    def forward(self, online: Features, target: Features | None, pair: ViewPair) -> Float[Tensor, ""]:
        z, z_prime = self.projector(torch.cat((online.x, online.x_prime))).chunk(2)
        return barlow_twins(distributed.gather(z), distributed.gather(z_prime), redundancy=self.redundancy)
