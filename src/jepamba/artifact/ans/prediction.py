"""Columns foretold by the columns before them: what the rows of an embedding have in common.

Of column j the value in row i is expected to be m = Σ b_jk·v_ik over k < j, with v the linear numbers of `ordinals` and
b whole multiples of 2^−shift, one set for all rows. The sums are of integers below 2^53 in double precision: exact, in
whatever order a machine adds them. The expectation is the context of the value: its size in steps of a fourteenth of
the grid's largest value; where it is negative, the values are coded upside down.

Shapes: R rows, C columns; J columns of a panel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jepamba.artifact.ans.coder import Coder, code_number
from jepamba.artifact.ans.histograms import code_integers, integers_cost

STEPS = 14
"""A size of this many steps is the grid's largest value, or more."""
SIZES = STEPS + 1
LEVEL_SHIFT = 2
"""Levels go together with sizes in halves instead of eighths."""
PANEL = 16
"""Columns for which the sums over all earlier panels are taken at once."""
MAX_COLUMNS = 1024
MAX_WORK = 1 << 30
"""Of R·C², multiplications to decode: what a reader is willing to do, about half a second."""
_COEFFICIENT_BITS = 16


@dataclass(frozen=True)
class Prediction:
    """b_jk = coefficients_CC[j, k] · 2^−shift, zero for k >= j."""

    shift: int
    coefficients_CC: NDArray[np.int64]


def allowed(R: int, C: int) -> bool:
    """Whether a matrix of this shape can be predicted."""
    return 2 <= C <= MAX_COLUMNS and R * C * C <= MAX_WORK


def code_prediction(coder: Coder, C: int, prediction: Prediction | None) -> Prediction:
    """The shift, and the coefficients of column after column."""
    below = np.tril_indices(C, -1)
    shift = code_number(coder, 4, prediction.shift if prediction else 0)
    known = prediction.coefficients_CC[below] if prediction else None
    coefficients_CC = np.zeros((C, C), dtype=np.int64)
    coefficients_CC[below] = code_integers(coder, below[0].size, known, _COEFFICIENT_BITS)
    return Prediction(shift, coefficients_CC)


def prediction_cost(prediction: Prediction) -> float:
    """Bits that `code_prediction` takes, nearly."""
    C = len(prediction.coefficients_CC)
    return integers_cost(prediction.coefficients_CC[np.tril_indices(C, -1)], _COEFFICIENT_BITS)


class Expectations:
    """The sums for one column after the other, as the columns become known."""

    def __init__(self, prediction: Prediction, R: int) -> None:
        self._prediction = prediction
        self._coefficients_CC = prediction.coefficients_CC.astype(np.float64)
        self._known_CR = np.zeros((len(self._coefficients_CC), R))
        self._panel_JR = np.zeros((PANEL, R))

    def of_column(self, j: int) -> NDArray[np.int64]:
        """m of column j in every row, in steps of 2^−shift, (R,). Columns before j must have been added, in order."""
        first = j - j % PANEL
        if j == first:
            self._panel_JR = self._coefficients_CC[j : j + PANEL, :j] @ self._known_CR[:j]
        inner_R = self._coefficients_CC[j, first:j] @ self._known_CR[first:j]
        m_R: NDArray[np.int64] = np.rint(self._panel_JR[j - first] + inner_R).astype(np.int64)
        return m_R

    def learn(self, j: int, linear_R: NDArray[np.int64]) -> None:
        """Make column j known."""
        self._known_CR[j] = linear_R


def sizes(m: NDArray[np.int64], shift: int, largest: int) -> NDArray[np.int64]:
    """Sizes of expectations in fourteenths of `largest`, rounded to the nearest, half up; at most 14."""
    unit = largest << shift
    steps: NDArray[np.int64] = np.minimum((2 * STEPS * np.abs(m) + unit) // (2 * unit), STEPS)
    return steps
