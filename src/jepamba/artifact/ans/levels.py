"""Levels: the expected magnitudes of the values of a matrix, which are the contexts of their histograms.

A quantizer scales each row to its largest value, so that the rows differ in how peaked they are, and so do the columns.
The model of the expected magnitude in row i and column j is r_i·c_j. The level of a value is the base-2 logarithm of
this magnitude in steps of 1/8: base + class of the row + class of the column. Classes have steps of 1/8, 1/4 or 1/2, or
are absent.

Shapes: R rows, C columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jepamba.artifact.ans.histograms import code_integers, integers_cost
from jepamba.artifact.ans.rans import AnsCoder, code_number

LEVELS = 128
FULL_SCALE = 120
"""The level of the quantizer's largest magnitude."""
OFF = 3
"""The step that means: no classes."""
_CLASS_BITS = 8


@dataclass(frozen=True)
class Levels:
    """Base and classes. A class has the unit 2^step / 8; with the step `OFF` all classes are 0."""

    base: int
    row_step: int
    column_step: int
    rows_R: NDArray[np.int64]
    columns_C: NDArray[np.int64]

    def of_rows(self, start: int, stop: int) -> NDArray[np.int16]:
        """Return the levels (stop − start, C) of the rows from `start` to `stop`."""
        rows = (self.base + (self.rows_R[start:stop] << self.row_step)).astype(np.int16)
        columns = (self.columns_C << self.column_step).astype(np.int16)
        levels: NDArray[np.int16] = rows[:, None] + columns[None]
        return levels.clip(0, LEVELS - 1, out=levels)

    @property
    def cost(self) -> float:
        """The approximate bits that `code_levels` takes."""
        axes = ((self.row_step, self.rows_R), (self.column_step, self.columns_C))
        return sum(integers_cost(classes, _CLASS_BITS) for step, classes in axes if step != OFF)


def code_levels(coder: AnsCoder, R: int, C: int, levels: Levels | None) -> Levels:
    """Encode or decode the base, both steps, and the classes of each axis that has them. Returns the levels."""
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
