"""Identity-related inverse models q(a_id | x, x'): was the object switched between the two views?"""

from stec.core.identity.contrastive import MoCo, ReLIC, ReLICv2, SimCLR
from stec.core.identity.decorrelating import BarlowTwins, VICReg
from stec.core.identity.predictive import BYOL, SimSiam

__all__ = ["BYOL", "BarlowTwins", "MoCo", "ReLIC", "ReLICv2", "SimCLR", "SimSiam", "VICReg"]
