"""The coefficients that foretell lines best, as a writer finds them.

Shapes: L lines of N values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jepamba.artifact.ans.prediction import Prediction, allowed, panel, prediction_cost


def fit(v_LN: NDArray[np.float64]) -> Prediction | None:
    """Coefficients for lines of the numbers `v_LN`; None where they would not be worth their bytes.

    Ridge regression: with a prior of spread τ/√N for a coefficient between lines of spread 1, the most probable ones
    solve (S + I/τ²)·b = s, S being the correlations. τ comes from what least squares explain, and rounding to a little
    more than a coefficient's own uncertainty (1/√N) makes most coefficients 0. What is left is measured.
    """
    L, N = v_LN.shape
    if not allowed(L, N) or max(2 * L, _FEW) > N:  # too few values for so many coefficients
        return None
    S_LL = v_LN @ v_LN.T / N
    spread_L = np.sqrt(np.where(np.diag(S_LL) > 0, np.diag(S_LL), 1.0))
    S_LL /= np.outer(spread_L, spread_L)
    explained = -np.log(np.diag(np.linalg.cholesky(S_LL + 1e-3 * np.eye(L)))).sum() * N
    surprise = explained / (L * (L - 1) / 4)  # 1, were the lines independent; 1 + τ² by the prior
    if surprise < _WORTH:
        return None
    fineness = round(np.log2(N) / 2 - 0.5)
    options = [
        _rounded(_ridge(S_LL, N, factor / (surprise - 1)), shift, spread_L)
        for factor in (1.0, 0.3)
        for shift in (fineness - 1, fineness)
    ]
    return max(options, key=lambda prediction: _gain(S_LL, N, prediction, spread_L) - prediction_cost(prediction, N))


_FEW = 64
_WORTH = 1.8
"""Least surprise at which a prediction has been seen to pay."""


def _ridge(S_LL: NDArray[np.float64], N: int, ridge: float) -> NDArray[np.float64]:
    """Coefficients of every line on the lines of earlier panels.

    With K·Kᵀ = S + ridge, those of lines from p on, foretold by the lines before p, are K[p:, :p]·K[:p, :p]⁻¹.
    """
    L = len(S_LL)
    K_LL = np.linalg.cholesky(S_LL + ridge * np.eye(L))
    inverse_LL = np.linalg.inv(K_LL)
    b_LL = np.zeros((L, L))
    step = panel(L, N)
    for p in range(step, L, step):
        b_LL[p : p + step, :p] = K_LL[p : p + step, :p] @ inverse_LL[:p, :p]
    return b_LL


def _rounded(b_LL: NDArray[np.float64], shift: int, spread_L: NDArray[np.float64]) -> Prediction:
    plain_LL = b_LL * spread_L[:, None] / spread_L[None]
    return Prediction(shift, np.clip(np.rint(plain_LL * (1 << shift)), -127, 127).astype(np.int64))


def _gain(S_LL: NDArray[np.float64], N: int, prediction: Prediction, spread_L: NDArray[np.float64]) -> float:
    """Bits that a prediction saves, were the values normally distributed: N/2·log2 of the ratio of variances."""
    b_LL = prediction.coefficients_LL / (1 << prediction.shift) * spread_L[None] / spread_L[:, None]
    left_L = 1 - 2 * (b_LL * S_LL).sum(1) + ((b_LL @ S_LL) * b_LL).sum(1)
    return float(-np.log2(np.maximum(left_L, 1e-9)).sum() * N / 2)
