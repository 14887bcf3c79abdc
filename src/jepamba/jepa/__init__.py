"""The objective that makes a language model a LeWorldModel; nothing here is kept in the artifact.

Read `objective.py` first, then `heads.py` and `sigreg.py`.
"""

from jepamba.jepa.heads import JepaHeads, prediction_error, within_sequence_share
from jepamba.jepa.objective import Terms, objective, sigreg_lambda
from jepamba.jepa.sigreg import Draw, draw, sigreg

__all__ = [
    "Draw",
    "JepaHeads",
    "Terms",
    "draw",
    "objective",
    "prediction_error",
    "sigreg",
    "sigreg_lambda",
    "within_sequence_share",
]
