"""The objective that makes a language model a LeWorldModel; nothing here is kept in the artifact.

Read `objective.py` first, then `heads.py` and `sigreg.py`.
"""

from jepamba.jepa.heads import JepaHeads, document_pairs, prediction_error
from jepamba.jepa.objective import LossTerms, LossWeights, objective, sigreg_lambda
from jepamba.jepa.sigreg import Projections, num_samples, sample_projections, sigreg, sigreg_sums

__all__ = [
    "JepaHeads",
    "LossTerms",
    "LossWeights",
    "Projections",
    "document_pairs",
    "num_samples",
    "objective",
    "prediction_error",
    "sample_projections",
    "sigreg",
    "sigreg_lambda",
    "sigreg_sums",
]
