"""How large a value is expected to be: a level for each row and each column of a matrix.

A grid scales each row to its largest value, so rows differ in how peaked they are, and so do columns. The expected
magnitude of the value in row i and column j is taken as r_i·c_j. Its logarithm, base 2, in eighths is the value's
level: base + class of the row + class of the column. Classes come in eighths, quarters or halves, or not at all.

Shapes: R rows, C columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jepamba.artifact.ans.histograms import code_integers, integers_cost
from jepamba.artifact.ans.rans import AnsCoder, code_number

LEVELS = 128
FULL = 120
"""The level at which the grid's largest value is expected."""
OFF = 3
"""As a step: no classes."""
_CLASS_BITS = 8


@dataclass(frozen=True)
class Levels:
    """Base and classes. A class counts 2^step eighths; with the step `OFF` all are 0."""

    base: int
    row_step: int
    column_step: int
    rows_R: NDArray[np.int64]
    columns_C: NDArray[np.int64]

    def of_rows(self, start: int, stop: int) -> NDArray[np.int16]:
        """The levels of rows `start` to `stop`, (stop − start, C)."""
        rows = (self.base + (self.rows_R[start:stop] << self.row_step)).astype(np.int16)
        columns = (self.columns_C << self.column_step).astype(np.int16)
        levels: NDArray[np.int16] = np.clip(rows[:, None] + columns[None], 0, LEVELS - 1)
        return levels

    @property
    def cost(self) -> float:
        """Bits that `code_levels` takes, nearly."""
        axes = ((self.row_step, self.rows_R), (self.column_step, self.columns_C))
        return sum(integers_cost(classes, _CLASS_BITS) for step, classes in axes if step != OFF)


def code_levels(coder: AnsCoder, R: int, C: int, levels: Levels | None) -> Levels:
    """Base, the two steps, and the classes of each axis that has some."""
    base = code_number(coder, 7, levels.base if levels else 0)
    row_step = code_number(coder, 2, levels.row_step if levels else 0)
    column_step = code_number(coder, 2, levels.column_step if levels else 0)
    rows_R = _code_classes(coder, R, row_step, levels.rows_R if levels else None)
    columns_C = _code_classes(coder, C, column_step, levels.columns_C if levels else None)
    return Levels(base, row_step, column_step, rows_R, columns_C)


def _code_classes(coder: AnsCoder, count: int, step: int, classes: NDArray[np.int64] | None) -> NDArray[np.int64]:
    if step == OFF:
        return np.zeros(count, dtype=np.int64)
    return code_integers(coder, count, classes, _CLASS_BITS)
