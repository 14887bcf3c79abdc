"""The LeWorldModel objective (Maes et al. 2026, arXiv 2603.19312). Only training uses it.

Read `objective.py` first, then `heads.py` and `sigreg.py`.
"""

from jepamba.jepa.heads import JepaHeads, document_pairs, prediction_error, trailing_mean
from jepamba.jepa.objective import LossTerms, LossWeights, compute_losses, sigreg_lambda, weighted_terms
from jepamba.jepa.sigreg import Projections, num_samples, sample_projections, sigreg, sigreg_sums

__all__ = [
    "JepaHeads",
    "LossTerms",
    "LossWeights",
    "Projections",
    "compute_losses",
    "document_pairs",
    "num_samples",
    "prediction_error",
    "sample_projections",
    "sigreg",
    "sigreg_lambda",
    "sigreg_sums",
    "trailing_mean",
    "weighted_terms",
]
