"""Evaluation: bits per byte, the logit temperature, diagnostics, and general-purpose compressors for comparison.

Read `score.py` first, then `windowed.py`, `carried.py` and `adapted.py`, and `accounting.py` for the byte counts.
"""

from jepamba.evaluate.accounting import TextBytes, check_scorable, counted_bytes, text_bytes
from jepamba.evaluate.adapted import ADAPT_LR, score_adapted
from jepamba.evaluate.baselines import Baseline, compressors
from jepamba.evaluate.carried import score_carried
from jepamba.evaluate.diagnostics import diagnostics
from jepamba.evaluate.latent_probes import probe_latents, probe_rows
from jepamba.evaluate.latents import Latents, compute_latents, measure_latents, save_latents
from jepamba.evaluate.score import Score, StoppedError
from jepamba.evaluate.stored import stored
from jepamba.evaluate.temperature import calibrate
from jepamba.evaluate.windowed import score_plain, score_plain_at, score_sliding

__all__ = [
    "ADAPT_LR",
    "Baseline",
    "Latents",
    "Score",
    "StoppedError",
    "TextBytes",
    "calibrate",
    "check_scorable",
    "compressors",
    "compute_latents",
    "counted_bytes",
    "diagnostics",
    "measure_latents",
    "probe_latents",
    "probe_rows",
    "save_latents",
    "score_adapted",
    "score_carried",
    "score_plain",
    "score_plain_at",
    "score_sliding",
    "stored",
    "text_bytes",
]
