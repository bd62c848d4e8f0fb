"""Losses that keep an embedding from collapsing without negatives: each dimension varies, and no two alike.

They are statistics of a whole batch and no means over its rows: with several processes, pass the rows of all.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

VARIANCE_EPS = 1e-4  # under the root of VICReg's standard deviation: its slope stays finite where nothing varies
NORM_EPS = 1e-5  # BatchNorm's own, with which Barlow Twins standardises


def variance_hinge(z: Float[Tensor, "n f"]) -> Float[Tensor, ""]:
    """VICReg's variance term of one view: mean over dimensions of max(0, 1 - sqrt(Var z_j + 1e-4)).

    The variance is the unbiased one, over n - 1. A constant embedding gives 0.99, the largest value; one whose
    dimensions all have standard deviation 1 or more gives 0 (Bardes et al. 2022, Eq. 1).

    >>> variance_hinge(torch.ones(4, 2))
    tensor(0.9900)
    """
    _enough_rows(z)
    with torch.autocast(device_type=z.device.type, enabled=False):
        wide = z.to(torch.promote_types(z.dtype, torch.float32))
        return F.relu(1.0 - (wide.var(dim=0) + VARIANCE_EPS).sqrt()).mean()


def covariance_penalty(z: Float[Tensor, "n f"]) -> Float[Tensor, ""]:
    """VICReg's covariance term of one view: the squares of Cov(z)_ij, i != j, summed and divided by f.

    The covariance is over n - 1 (Bardes et al. 2022, Eq. 3 and 4). Uncorrelated dimensions give 0.

    >>> covariance_penalty(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]))   # Cov_01 = Cov_10 = 4, f = 2
    tensor(16.)
    """
    _enough_rows(z)
    with torch.autocast(device_type=z.device.type, enabled=False):
        wide = z.to(torch.promote_types(z.dtype, torch.float32))
        centred = wide - wide.mean(dim=0)
        n, f = centred.shape
        if 2 * n <= f:
            # Products of rows have the same squares in all as the covariance, at n over f of the cost. Of few rows no
            # covariance is diagonal: with equal variances the rest is at least half of all, so that little is lost.
            total, diagonal = (centred @ centred.T).square().sum(), centred.square().sum(dim=0).square().sum()
            return (total - diagonal) / ((n - 1) ** 2 * f)
        covariance = centred.T @ centred / (n - 1)
        # In place, and not total minus diagonal: that would leave rounding, even a negative one, where all is white.
        return covariance.fill_diagonal_(0.0).square().sum() / z.shape[1]


def vicreg_regulariser(
    z: Float[Tensor, "n f"], z_prime: Float[Tensor, "n f"], *, variance_weight: float
) -> Float[Tensor, ""]:
    """L_reg of VICReg: variance_weight * (mean of both views' variance hinge) + sum of both views' covariance penalty.

    As the published code has it: of the two views' terms, the variances are averaged and the covariances added, where
    the paper's Eq. 6 adds both (Bardes et al. 2022). So collapsed embeddings give 0.99 variance_weight, not twice that.

    >>> vicreg_regulariser(torch.ones(4, 2), torch.ones(4, 2), variance_weight=25.0)
    tensor(24.7500)
    """
    variance = (variance_hinge(z) + variance_hinge(z_prime)) / 2
    return variance_weight * variance + covariance_penalty(z) + covariance_penalty(z_prime)


def barlow_twins(z: Float[Tensor, "n f"], z_prime: Float[Tensor, "n f"], *, redundancy: float) -> Float[Tensor, ""]:
    """Sum of (1 - C_ii)^2 plus `redundancy` times the sum of C_ij^2, i != j (Zbontar et al. 2021).

    C (f, f) is the correlation over the batch of dimension i of z with dimension j of z'. Each view's dimensions are
    standardised as a BatchNorm without affine part does: biased variance, plus 1e-5. On standardised embeddings
    1 - C_ii is the surprise of dimension i under a normal identity model with sigma^2 = 1, up to a constant: this loss
    sums the squares of those surprises, and so is not itself in nats. Equal views with uncorrelated dimensions give 0;
    constant embeddings f; opposite views 4 f, with C_ij = 0.

    >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    >>> barlow_twins(z, -z, redundancy=0.0051)   # 4 * 2, less what the 1e-5 takes
    tensor(7.9999)
    """
    if z.shape != z_prime.shape:
        raise ValueError(f"z {tuple(z.shape)} and z_prime {tuple(z_prime.shape)} must hold partners row by row")
    _enough_rows(z)
    with torch.autocast(device_type=z.device.type, enabled=False):
        wide = torch.promote_types(z.dtype, torch.float32)
        correlation = _standardised(z.to(wide)).T @ _standardised(z_prime.to(wide)) / len(z)
        agreement = (1.0 - correlation.diagonal()).square().sum()
        return agreement + redundancy * correlation.clone().fill_diagonal_(0.0).square().sum()


def _standardised(z: Tensor) -> Tensor:
    """Every dimension with mean 0 and standard deviation 1 over the batch."""
    variance, mean = torch.var_mean(z, dim=0, correction=0)
    return (z - mean) * (variance + NORM_EPS).rsqrt()


def _enough_rows(z: Tensor) -> None:
    if len(z) < 2:
        raise ValueError(f"a batch of {len(z)} has no variance; these losses need at least 2 rows, and better hundreds")
