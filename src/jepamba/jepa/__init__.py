"""The LeWorldModel objective (Maes et al. 2026, arXiv 2603.19312). Only training uses it.

Read `objective.py` first, then `heads.py`, `target_encoder.py`, `sigreg.py` and `vicreg.py`.
"""

from jepamba.jepa.heads import JepaHeads, document_pairs, prediction_error, trailing_mean
from jepamba.jepa.objective import (
    NO_LATENT_WEIGHTS,
    LatentWeights,
    LossTerms,
    LossWeights,
    compute_losses,
    latent_weights,
    weighted_terms,
)
from jepamba.jepa.sigreg import Projections, num_samples, sample_projections, sigreg, sigreg_sums
from jepamba.jepa.target_encoder import TargetEncoder
from jepamba.jepa.vicreg import vicreg

__all__ = [
    "NO_LATENT_WEIGHTS",
    "JepaHeads",
    "LatentWeights",
    "LossTerms",
    "LossWeights",
    "Projections",
    "TargetEncoder",
    "compute_losses",
    "document_pairs",
    "latent_weights",
    "num_samples",
    "prediction_error",
    "sample_projections",
    "sigreg",
    "sigreg_sums",
    "trailing_mean",
    "vicreg",
    "weighted_terms",
]
