"""The objective that makes a language model a LeWorldModel; nothing here is kept in the artifact.

Read `objective.py` first, then `heads.py` and `sigreg.py`.
"""

from jepamba.jepa.heads import JepaHeads, document_pairs, prediction_error, within_sequence_share
from jepamba.jepa.objective import Shares, Terms, objective, sigreg_lambda
from jepamba.jepa.sigreg import Draw, draw, sigreg, sigreg_sums, tested

__all__ = [
    "Draw",
    "JepaHeads",
    "Shares",
    "Terms",
    "document_pairs",
    "draw",
    "objective",
    "prediction_error",
    "sigreg",
    "sigreg_lambda",
    "sigreg_sums",
    "tested",
    "within_sequence_share",
]
