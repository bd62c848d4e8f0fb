"""Losses as pure functions: torch and arithmetic only, in nats, computed in float32 or better."""

from stec.core.losses.action import binned_nll, gaussian_nll, mean_over_valid
from stec.core.losses.contrastive import info_nce, nt_xent, two_way_nce
from stec.core.losses.sequence import cpc, cpc_steps, lag_free_nce, switch_nll

__all__ = [
    "binned_nll",
    "cpc",
    "cpc_steps",
    "gaussian_nll",
    "info_nce",
    "lag_free_nce",
    "mean_over_valid",
    "nt_xent",
    "switch_nll",
    "two_way_nce",
]
