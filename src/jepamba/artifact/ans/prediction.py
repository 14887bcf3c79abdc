"""Lines of a matrix foretold by the lines before them: directions that an embedding or a projection prefers.

Lines are the columns of a matrix or, where these are fewer, its rows. With v the linear numbers of `ordinals`, the
value of line j at place i is expected to be m = Σ b_jk·v_ki over earlier lines k, with whole multiples of 2^−shift for
b, the same at every place. Lines are coded in panels; earlier are those of earlier panels. The sums are of integers
that floating point holds exactly, in whatever order a machine adds them.

The expectation is part of the value's context: its size in steps of a fourteenth of the grid's largest value. Where it
is negative, the value is coded upside down.

Shapes: L lines of N values; J lines of a panel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepamba.artifact.ans.histograms import code_integers, integers_cost
from jepamba.artifact.ans.rans import AnsCoder, code_number

STEPS = 14
"""A size of this many steps is the grid's largest value, or more."""
SIZES = STEPS + 1
MAX_LINES = 1024
PARTS = 32
_PANEL = 1 << 16
"""Values of a panel, nearly."""
_COEFFICIENT_BITS = 16


@dataclass(frozen=True)
class Prediction:
    """b_jk = coefficients_LL[j, k] · 2^−shift; zero unless line k comes in a panel before that of line j."""

    shift: int
    coefficients_LL: NDArray[np.int64]


def lines(matrix_RC: NDArray[Any], back_to: tuple[int, ...] | None = None) -> NDArray[Any]:
    """The lines (L, N) of a matrix; or, from lines, the matrix of the shape `back_to`."""
    R, C = back_to or matrix_RC.shape
    return matrix_RC.T if R >= C else matrix_RC


def panel(L: int, N: int) -> int:
    """Lines of a panel: few of all lines, and not too many values."""
    return max(1, min(L // PARTS, _PANEL // N))


def allowed(L: int, N: int) -> bool:
    """Whether lines can be foretold: there are not too many, and not all are in one panel."""
    return panel(L, N) < L <= MAX_LINES


def earlier(L: int, N: int) -> NDArray[np.bool_]:
    """Which lines foretell which, (L, L): [j, k] where line k comes in a panel before that of line j."""
    number = np.arange(L) // panel(L, N)
    return number[:, None] > number[None]


def code_prediction(coder: AnsCoder, L: int, N: int, prediction: Prediction | None) -> Prediction:
    """The shift, and the coefficients of line after line."""
    where = earlier(L, N)
    shift = code_number(coder, 4, prediction.shift if prediction else 0)
    known = prediction.coefficients_LL[where] if prediction else None
    coefficients_LL = np.zeros((L, L), dtype=np.int64)
    coefficients_LL[where] = code_integers(coder, int(where.sum()), known, _COEFFICIENT_BITS)
    return Prediction(shift, coefficients_LL)


def prediction_cost(prediction: Prediction, N: int) -> float:
    """Bits that `code_prediction` takes, nearly."""
    coefficients_LL = prediction.coefficients_LL
    return integers_cost(coefficients_LL[earlier(len(coefficients_LL), N)], _COEFFICIENT_BITS)


class Expectations:
    """The sums for one panel after the other, as the lines become known. `largest` bounds |v|."""

    def __init__(self, prediction: Prediction, N: int, largest: int) -> None:
        L = len(prediction.coefficients_LL)
        sum_of_all = int(np.abs(prediction.coefficients_LL).max()) * largest * L
        assert sum_of_all < 1 << 53
        # Integers that single precision holds are twice as fast, and need half the room.
        single = sum_of_all < 1 << 24
        self._int = np.dtype(np.int32 if single else np.int64)
        self._coefficients_LL = prediction.coefficients_LL.astype(np.float32 if single else np.float64)
        self._known_LN = np.zeros((L, N), dtype=self._coefficients_LL.dtype)

    def of(self, panel: slice) -> NDArray[Any]:
        """m of the lines of a panel, in steps of 2^−shift, (J, N). The lines before it must be known."""
        m_JN: NDArray[Any] = self._coefficients_LL[panel, : panel.start] @ self._known_LN[: panel.start]
        return m_JN.astype(self._int)

    def learn(self, panel: slice, linear_JN: NDArray[np.int64]) -> None:
        """Make the lines of a panel known."""
        self._known_LN[panel] = linear_JN


def sizes(m: NDArray[Any], shift: int, largest: int) -> NDArray[Any]:
    """Sizes of expectations in fourteenths of `largest`, rounded to the nearest, half up; at most 14."""
    unit = largest << shift
    steps: NDArray[Any] = np.minimum((2 * STEPS * np.abs(m) + unit) // (2 * unit), STEPS)
    return steps
