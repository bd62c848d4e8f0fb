"""Identity models without negatives: q(a_id = 0 | x, x') is normal around a prediction from the other view."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stec.core.actions import ViewPair
from stec.core.losses import byol
from stec.core.networks import MomentumEncoder
from stec.core.objective import Features, InverseModel


class BYOL(InverseModel):
    """A normal model, sigma^2 = 1/2, of the other view's embedding around the predictor's output, on the unit sphere.

    The loss is 2 - 2 cos(prediction from x, target of x') plus the same with x and x' exchanged, as in the published
    code (Grill et al. 2020): nats, up to the normal's constant, between 0 and 8. `projector` maps (2b, f) features to
    (2b, p), `predictor` (2b, p) to (2b, p). Targets carry no gradient. With `momentum` they come from slow copies: the
    momentum encoder's features through a projector of this model's that follows at that rate, rising to 1
    (published: 0.996 for 1000 epochs, 0.99 for 300). With None they are the online projections themselves, and
    `stop_gradient=False` then lets the gradient into them too.

    A constant embedding has loss 0, the least there is: nothing but the predictor, the stopped gradient and the slow
    copies keep the encoder from it. Both views pass a network together, where the published code passes each alone:
    it matters to BatchNorm only.

    >>> x, x_prime, nothing = torch.eye(2), torch.eye(2).flip(0), torch.zeros(2, 0)
    >>> pair = ViewPair(x, x_prime, nothing, torch.ones(2).bool(), torch.zeros(2).long())
    >>> BYOL(nn.Identity(), nn.Identity(), momentum=None)(Features(x, x_prime), None, pair)   # 2 - 2 * 0, twice
    tensor(4.)
    """

    def __init__(
        self, projector: nn.Module, predictor: nn.Module, *, momentum: float | None, stop_gradient: bool = True
    ) -> None:
        super().__init__()
        if momentum is not None and not stop_gradient:
            raise ValueError("a momentum encoder carries no gradient: stop_gradient=False goes with momentum=None")
        self.stop_gradient = stop_gradient
        self.projector = projector
        self.predictor = predictor
        self.target_projector = None if momentum is None else MomentumEncoder(projector, momentum=momentum)
        self.needs_target = momentum is not None

    def forward(self, online: Features, target: Features | None, pair: ViewPair) -> Float[Tensor, ""]:
        z = self.projector(torch.cat((online.x, online.x_prime)))
        if self.target_projector is None:
            other = _exchanged(z.detach() if self.stop_gradient else z)
        elif target is not None:
            other = self.target_projector(torch.cat((target.x_prime, target.x)))
        else:
            raise ValueError("BYOL with momentum reads the momentum encoder's features: pass target, or momentum=None")
        return 2.0 * byol(self.predictor(z), other)  # the mean over 2b predictions, twice: the sum of both orders


class SimSiam(InverseModel):
    """BYOL's normal model without slow copies, sigma^2 = 1: the target is the online projection, its gradient stopped.

    The loss is the mean over both orders of 1 - cos(prediction, projection of the other view), in nats up to the
    normal's constant, between 0 and 2. The published loss is the same less 1: -cos (Chen and He 2021). `projector`
    maps (2b, f) features to (2b, p), `predictor` (2b, p) to (2b, p). `stop_gradient=False` lets the gradient into the
    target too, and the embedding collapses (their Fig. 2). Both views pass a network together, as in `BYOL`.

    >>> x, x_prime, nothing = torch.eye(2), torch.eye(2).flip(0), torch.zeros(2, 0)
    >>> pair = ViewPair(x, x_prime, nothing, torch.ones(2).bool(), torch.zeros(2).long())
    >>> SimSiam(nn.Identity(), nn.Identity())(Features(x, x_prime), None, pair)   # 1 - 0
    tensor(1.)
    """

    def __init__(self, projector: nn.Module, predictor: nn.Module, *, stop_gradient: bool = True) -> None:
        super().__init__()
        self.projector = projector
        self.predictor = predictor
        self.stop_gradient = stop_gradient

    def forward(self, online: Features, target: Features | None, pair: ViewPair) -> Float[Tensor, ""]:
        z = self.projector(torch.cat((online.x, online.x_prime)))
        other = _exchanged(z.detach() if self.stop_gradient else z)
        return byol(self.predictor(z), other) / 2.0


def _exchanged(z: Float[Tensor, "two_b p"]) -> Float[Tensor, "two_b p"]:
    """The embeddings of x' and x, from those of x and x'."""
    x, x_prime = z.chunk(2)
    return torch.cat((x_prime, x))
