"""Linear prediction of the lines of a matrix from earlier lines, for matrices with correlated rows or columns.

The lines of a matrix are its columns or its rows, whichever are fewer (columns if equal). Lines are coded in panels,
and each line is predicted from the lines of earlier panels. With v_ki the linear value (`ordinals.py`) of line k at
position i, the prediction of line j is m_ji = Σ_k b_jk·v_ki. The coefficients b are multiples of 2^−shift. All sums are
integers that floating point represents exactly, so that their order does not matter.

The context of a value contains the size class of its prediction, |m| in steps of 1/14 of the quantizer's largest
magnitude. If the prediction is negative, the value is coded with the opposite sign.

Shapes: L lines of N values; J lines of a panel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepamba.artifact.ans.histograms import code_integers, integers_cost
from jepamba.artifact.ans.rans import AnsCoder, code_number

MAX_SIZE_CLASS = 14
"""The size class of predictions at or above the quantizer's largest magnitude."""
SIZE_CLASSES = MAX_SIZE_CLASS + 1
MAX_LINES = 1024
_PANELS = 32
"""Minimum number of panels of a matrix with at least as many lines."""
_PANEL_VALUES = 1 << 16
"""Maximum number of values of a panel of more than one line."""
_COEFFICIENT_BITS = 16


@dataclass(frozen=True)
class LinearPredictor:
    """b_jk = coefficients_LL[j, k] · 2^−shift; 0 unless the panel of line k precedes that of line j."""

    shift: int
    coefficients_LL: NDArray[np.int64]


def to_lines(matrix_RC: NDArray[Any]) -> NDArray[Any]:
    """Return the lines (L, N) of a matrix."""
    R, C = matrix_RC.shape
    return matrix_RC.T if R >= C else matrix_RC


def from_lines(lines_LN: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the matrix of `shape` (R, C) with the given lines."""
    R, C = shape
    return lines_LN.T if R >= C else lines_LN


def panel_lines(L: int, N: int) -> int:
    """Return the number of lines of a panel."""
    return max(1, min(L // _PANELS, _PANEL_VALUES // N))


def is_predictable(L: int, N: int) -> bool:
    """Whether the lines can be predicted: there are not too many, and more than one panel."""
    return panel_lines(L, N) < L <= MAX_LINES


def earlier_lines(L: int, N: int) -> NDArray[np.bool_]:
    """Return a mask (L, L): whether line k can predict line j, because its panel is an earlier one."""
    panel_L = np.arange(L) // panel_lines(L, N)
    return panel_L[:, None] > panel_L[None]


def code_predictor(coder: AnsCoder, L: int, N: int, predictor: LinearPredictor | None) -> LinearPredictor:
    """Encode or decode the shift and the coefficients, line by line. Returns the predictor."""
    mask_LL = earlier_lines(L, N)
    shift = code_number(coder, 4, predictor.shift if predictor else 0)
    known = predictor.coefficients_LL[mask_LL] if predictor else None
    coefficients_LL = np.zeros((L, L), dtype=np.int64)
    coefficients_LL[mask_LL] = code_integers(coder, int(mask_LL.sum()), known, _COEFFICIENT_BITS)
    return LinearPredictor(shift, coefficients_LL)


def predictor_cost(predictor: LinearPredictor, N: int) -> float:
    """Return the approximate bits that `code_predictor` takes."""
    coefficients_LL = predictor.coefficients_LL
    return integers_cost(coefficients_LL[earlier_lines(len(coefficients_LL), N)], _COEFFICIENT_BITS)


class PanelPrediction:
    """Predictions panel by panel, from the lines known so far. `max_magnitude` bounds |v|."""

    def __init__(self, predictor: LinearPredictor, N: int, max_magnitude: int) -> None:
        L = len(predictor.coefficients_LL)
        max_sum = int(np.abs(predictor.coefficients_LL).max()) * max_magnitude * L
        assert max_sum < 1 << 53
        # Single precision, where it is exact, takes half the time and memory.
        single = max_sum < 1 << 24
        self._int = np.dtype(np.int32 if single else np.int64)
        self._coefficients_LL = predictor.coefficients_LL.astype(np.float32 if single else np.float64)
        self._known_LN = np.zeros((L, N), dtype=self._coefficients_LL.dtype)

    def predict(self, panel: slice) -> NDArray[Any]:
        """Return m (J, N) of the lines of a panel, in units of 2^−shift. All earlier lines must be known."""
        m_JN: NDArray[Any] = self._coefficients_LL[panel, : panel.start] @ self._known_LN[: panel.start]
        return m_JN.astype(self._int)

    def update(self, panel: slice, linear_JN: NDArray[np.int64]) -> None:
        """Add the linear values of the lines of a panel."""
        self._known_LN[panel] = linear_JN


def size_classes(m: NDArray[Any], shift: int, max_magnitude: int) -> NDArray[Any]:
    """Return |m| in steps of 1/14 of `max_magnitude`, rounded to the nearest integer (half up), at most 14."""
    unit = max_magnitude << shift
    steps: NDArray[Any] = np.minimum((2 * MAX_SIZE_CLASS * np.abs(m) + unit) // (2 * unit), MAX_SIZE_CLASS)
    return steps
