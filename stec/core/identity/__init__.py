"""Identity-related inverse models q(a_id | x, x'): was the object switched between the two views?"""

from stec.core.identity.contrastive import SimCLR

__all__ = ["SimCLR"]
