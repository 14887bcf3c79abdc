"""The search for the coefficients of a linear predictor by ridge regression. Only encoders need it.

Shapes: L lines of N values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jepamba.artifact.ans.prediction import LinearPredictor, is_predictable, panel_lines, predictor_cost


def fit_predictor(v_LN: NDArray[np.float64]) -> LinearPredictor | None:
    """Return a predictor of lines with the linear values `v_LN`, or None if it would not be worth its bytes.

    For lines scaled to RMS 1 with correlations S, and a normal prior of standard deviation τ/√N, the most probable
    coefficients solve (S + I/τ²)·b = s (ridge regression). τ is estimated from the variance that least squares explain.
    Rounding to slightly more than the uncertainty of a coefficient, 1/√N, makes most coefficients 0. Of several
    candidates, the one with the largest net saving is returned.
    """
    L, N = v_LN.shape
    if not is_predictable(L, N) or max(2 * L, _MIN_VALUES) > N:  # too few values for so many coefficients
        return None
    S_LL = v_LN @ v_LN.T / N
    rms_L = np.sqrt(np.where(np.diag(S_LL) > 0, np.diag(S_LL), 1.0))
    S_LL /= np.outer(rms_L, rms_L)
    explained = -np.log(np.diag(np.linalg.cholesky(S_LL + 1e-3 * np.eye(L)))).sum() * N
    ratio = explained / (L * (L - 1) / 4)  # its expectation is 1 for independent lines, 1 + τ² under the prior
    if ratio < _MIN_RATIO:
        return None
    max_shift = round(np.log2(N) / 2 - 0.5)
    candidates = [
        _rounded(_ridge(S_LL, N, factor / (ratio - 1)), shift, rms_L)
        for factor in (1.0, 0.3)
        for shift in (max_shift - 1, max_shift)
    ]
    return max(candidates, key=lambda predictor: _saving(S_LL, N, predictor, rms_L) - predictor_cost(predictor, N))


_MIN_VALUES = 64
_MIN_RATIO = 1.8
"""Below this ratio, no predictor has saved more than it costs."""


def _ridge(S_LL: NDArray[np.float64], N: int, ridge: float) -> NDArray[np.float64]:
    """Return the coefficients (L, L) of every line on the lines of earlier panels.

    With the Cholesky factor K·Kᵀ = S + ridge·I, the coefficients of lines p, p + 1, … on the lines before p are
    K[p:, :p]·K[:p, :p]⁻¹.
    """
    L = len(S_LL)
    K_LL = np.linalg.cholesky(S_LL + ridge * np.eye(L))
    inverse_LL = np.linalg.inv(K_LL)
    b_LL = np.zeros((L, L))
    step = panel_lines(L, N)
    for p in range(step, L, step):
        b_LL[p : p + step, :p] = K_LL[p : p + step, :p] @ inverse_LL[:p, :p]
    return b_LL


def _rounded(b_LL: NDArray[np.float64], shift: int, rms_L: NDArray[np.float64]) -> LinearPredictor:
    unscaled_LL = b_LL * rms_L[:, None] / rms_L[None]
    return LinearPredictor(shift, np.clip(np.rint(unscaled_LL * (1 << shift)), -127, 127).astype(np.int64))


def _saving(S_LL: NDArray[np.float64], N: int, predictor: LinearPredictor, rms_L: NDArray[np.float64]) -> float:
    """Return the bits that `predictor` saves for normally distributed values: N/2·log2 of the ratio of variances."""
    b_LL = predictor.coefficients_LL / (1 << predictor.shift) * rms_L[None] / rms_L[:, None]
    residual_L = 1 - 2 * (b_LL * S_LL).sum(1) + ((b_LL @ S_LL) * b_LL).sum(1)
    return float(-np.log2(np.maximum(residual_L, 1e-9)).sum() * N / 2)
