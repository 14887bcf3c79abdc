"""How large a value is expected to be: a level for each row and each column of a matrix.

A grid scales each row to its largest value, so rows differ in how peaked they are, and so do columns. The expected
magnitude of the value in row i and column j is taken as r_i·c_j. Its logarithm, base 2, in steps of an eighth, is the
value's context (its level): base + row class + column class. Classes are stored in steps of an eighth, a quarter or a
half, or not at all, whichever makes the whole smallest.

Shapes: R rows, C columns; A symbols.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepamba.artifact.ans.coder import Coder, Counts, code_number
from jepamba.artifact.ans.histograms import Histograms, code_integers, integers_cost

LEVELS = 128
"""Levels are 0 to 127; at level 120 the expected magnitude is the largest value of the grid."""
FULL = 120
OFF = 3
"""Of a step: no classes."""
_CLASS_BITS = 16


@dataclass(frozen=True)
class Levels:
    """Base and classes; a class of rows or columns counts in steps of 2^step eighths."""

    base: int
    row_step: int
    column_step: int
    rows_R: NDArray[np.int64]
    columns_C: NDArray[np.int64]

    def block(self, start: int, stop: int) -> NDArray[np.int64]:
        """The levels of rows `start` to `stop`, (stop − start, C)."""
        rows = self.rows_R[start:stop] << self.row_step
        columns = self.columns_C << self.column_step
        return np.clip(self.base + rows[:, None] + columns[None], 0, LEVELS - 1)


def code_levels(coder: Coder, R: int, C: int, levels: Levels | None) -> Levels:
    """Base, the two steps, and the classes of each axis that has some."""
    base = code_number(coder, 7, levels.base if levels else 0)
    row_step = code_number(coder, 2, levels.row_step if levels else 0)
    column_step = code_number(coder, 2, levels.column_step if levels else 0)
    rows_R = _code_classes(coder, R, row_step, levels.rows_R if levels else None)
    columns_C = _code_classes(coder, C, column_step, levels.columns_C if levels else None)
    return Levels(base, row_step, column_step, rows_R, columns_C)


def _code_classes(coder: Coder, count: int, step: int, classes: NDArray[np.int64] | None) -> NDArray[np.int64]:
    if step == OFF:
        return np.zeros(count, dtype=np.int64)
    return code_integers(coder, count, classes, _CLASS_BITS)


def fit(magnitudes_RC: NDArray[np.float64], full: float) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    """Base, and rows' and columns' offsets from it in eighths, for values of these magnitudes on a grid up to `full`.

    r_i and c_j are found by alternating means, which is maximum likelihood for exponentially distributed magnitudes.
    """
    r_R1 = magnitudes_RC.mean(1, keepdims=True)
    c_1C = np.ones((1, magnitudes_RC.shape[1]))
    for _ in range(2):
        c_1C = _part(magnitudes_RC, r_R1).mean(0, keepdims=True)
        c_1C /= max(float(c_1C.mean()), 1e-30)
        r_R1 = _part(magnitudes_RC, c_1C).mean(1, keepdims=True)
    rows_R = _eighths(r_R1.reshape(-1) / full)
    base = _eighths(np.array([magnitudes_RC.mean() / full]))[0]
    return int(base) + FULL, rows_R - base, _eighths(c_1C.reshape(-1))


def _part(magnitudes_RC: NDArray[np.float64], factor: NDArray[np.float64]) -> NDArray[np.float64]:
    return magnitudes_RC / np.where(factor > 0, factor, 1.0)


def _eighths(values: NDArray[np.float64]) -> NDArray[np.int64]:
    smallest = 2.0 ** -(FULL // 8)
    return np.rint(8 * np.log2(np.clip(values, smallest, 2.0))).astype(np.int64)


def choose(
    histograms: Histograms,
    symbols_RC: NDArray[np.uint8],
    magnitudes_RC: NDArray[Any],
    full: float,
    outer_RC: NDArray[np.int64] | None = None,
) -> tuple[float, Levels]:
    """The cheapest levels for these symbols under `histograms` as they are now, and their cost in bits.

    `outer_RC` is a second context, by which the histograms are ordered first: context = outer · 128 + level.
    """
    base, rows_R, columns_C = fit(magnitudes_RC.astype(np.float64), full)
    outers = len(histograms.counts) // LEVELS
    joint = _joint(symbols_RC, rows_R, columns_C, histograms.counts.shape[1], outer_RC, outers)
    options = []
    for row_step in (0, 1, 2, OFF):
        for column_step in (0, 1, 2, OFF):
            levels = Levels(base, row_step, column_step, _coarser(rows_R, row_step), _coarser(columns_C, column_step))
            found = joint.at(base, row_step, column_step)
            side = sum(
                integers_cost(classes, _CLASS_BITS)
                for classes, step in ((levels.rows_R, row_step), (levels.columns_C, column_step))
                if step != OFF
            )
            options.append((histograms.cost(found) + side, levels))
    return min(options, key=lambda option: option[0])


def _coarser(offsets: NDArray[np.int64], step: int) -> NDArray[np.int64]:
    return np.zeros_like(offsets) if step == OFF else np.rint(offsets / (1 << step)).astype(np.int64)


@dataclass(frozen=True)
class _Joint:
    """How often each symbol occurs for each pair of a row's and a column's offset."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    counts: Counts

    def at(self, base: int, row_step: int, column_step: int) -> Counts:
        """How often each symbol occurs in each context, (contexts, A)."""
        rows = _coarser(self.rows, row_step) << row_step
        columns = _coarser(self.columns, column_step) << column_step
        level = np.clip(base + rows[:, None] + columns[None], 0, LEVELS - 1).reshape(-1)
        alphabet = self.counts.shape[-1]
        outers = self.counts.shape[0]
        found = np.zeros((outers, LEVELS, alphabet), dtype=np.int64)
        np.add.at(found, (slice(None), level), self.counts.reshape(outers, -1, alphabet))
        return found.reshape(-1, alphabet)


def _joint(
    symbols_RC: NDArray[np.uint8],
    rows_R: NDArray[np.int64],
    columns_C: NDArray[np.int64],
    A: int,
    outer_RC: NDArray[np.int64] | None,
    outers: int,
) -> _Joint:
    rows, row_of = np.unique(rows_R, return_inverse=True)
    columns, column_of = np.unique(columns_C, return_inverse=True)
    counts = np.zeros(outers * rows.size * columns.size * A, dtype=np.int64)
    for start in range(0, rows_R.size, 512):
        part = slice(start, start + 512)
        cells = row_of[part, None] * columns.size + column_of[None]
        if outer_RC is not None:
            cells = cells + outer_RC[part] * (rows.size * columns.size)
        counts += np.bincount((cells * A + symbols_RC[part]).reshape(-1), minlength=counts.size)
    return _Joint(rows, columns, counts.reshape(outers, rows.size, columns.size, A))
