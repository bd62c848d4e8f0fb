"""Losses as pure functions: torch and arithmetic only, in nats, computed in float32 or better."""

from stec.core.losses.action import binned_nll, gaussian_nll, mean_over_valid
from stec.core.losses.contrastive import info_nce, nt_xent, two_way_nce
from stec.core.losses.decorrelation import barlow_twins, covariance_penalty, variance_hinge, vicreg_regulariser
from stec.core.losses.moco import queue_nce
from stec.core.losses.normal import byol, vicreg_invariance
from stec.core.losses.relic import relic
from stec.core.losses.sequence import cpc, cpc_steps, lag_free_nce, switch_nll

__all__ = [
    "barlow_twins",
    "binned_nll",
    "byol",
    "covariance_penalty",
    "cpc",
    "cpc_steps",
    "gaussian_nll",
    "info_nce",
    "lag_free_nce",
    "mean_over_valid",
    "nt_xent",
    "queue_nce",
    "relic",
    "switch_nll",
    "two_way_nce",
    "variance_hinge",
    "vicreg_invariance",
    "vicreg_regulariser",
]
