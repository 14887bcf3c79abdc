"""What a model is worth: bits per byte, the temperature, diagnostics, and the compressors to compare with.

Read `score.py` first, then `windows.py` and `likelihood.py`.
"""

from jepamba.evaluate.baselines import Baseline, compressors
from jepamba.evaluate.diagnostics import diagnostics
from jepamba.evaluate.score import Score, counted_bytes, score_plain, score_plain_at, score_sliding
from jepamba.evaluate.stored import stored
from jepamba.evaluate.temperature import calibrate

__all__ = [
    "Baseline",
    "Score",
    "calibrate",
    "compressors",
    "counted_bytes",
    "diagnostics",
    "score_plain",
    "score_plain_at",
    "score_sliding",
    "stored",
]
