r"""The objectives: what a student is asked to match, at whatever states it is trained on.

========================  =====================================  ===========================  ========================
objective                 the expert annotates                   loss on a state              reflected: threshold on
========================  =====================================  ===========================  ========================
Progressive (PD)          the prediction of k sub-steps          distance to that prediction  expert's predictions,
                                                                                              and the target
GaussianKL                the same                               KL of the two steps'         as PD
                                                                 Gaussian kernels
Consistency (LCM)         its next state, one solver step on     distance to the EMA          expert's prediction, and
                                                                 student's output there       the EMA student's output
DistributionMatching      nothing: it is asked at loss time      fake minus real score        both scores' predictions
(DMD2)
========================  =====================================  ===========================  ========================

No loss looks at where a state came from: one loss, three state laws. States are constants; nothing differentiates
through a chain. The operator of the reflected formulation is the expert's own (``expert.threshold``), so there is one
place to set it.
"""

from dagdiff.objectives.base import Loss, Objective, RowLoss
from dagdiff.objectives.consistency import Consistency
from dagdiff.objectives.distribution import DistributionMatching
from dagdiff.objectives.gaussian import GaussianKL
from dagdiff.objectives.progressive import Progressive

__all__ = ["Consistency", "DistributionMatching", "GaussianKL", "Loss", "Objective", "Progressive", "RowLoss"]
