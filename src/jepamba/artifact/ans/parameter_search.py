"""The encoder's search for the levels and the linear predictor of a matrix of weights. Decoders do not need it.

Shapes: R rows, C columns; A symbols. A cell is a pair of a row class and a column class.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from jepamba.artifact.ans import regression
from jepamba.artifact.ans.histograms import Histograms
from jepamba.artifact.ans.levels import FULL_SCALE, LEVELS, OFF, Levels
from jepamba.artifact.ans.ordinals import Ordinals, flip_signs, linear_values, low_bits, max_magnitude
from jepamba.artifact.ans.prediction import LinearPredictor, from_lines, predictor_cost, size_classes, to_lines
from jepamba.artifact.ans.rans import Counts, Symbols
from jepamba.artifact.streams import StreamSpec


@dataclass(frozen=True)
class SearchSpace:
    """The parameters that the search tries."""

    row_steps: tuple[int, ...] = (0, 1, 2, OFF)
    column_steps: tuple[int, ...] = (0, 1, 2, OFF)
    prediction: bool = True


FULL_SEARCH = SearchSpace()


def search_parameters(
    space: SearchSpace, stream: StreamSpec, by_level: Histograms, by_size_and_level: Histograms, ordinals_RC: Ordinals
) -> tuple[Levels, LinearPredictor | None]:
    """Return the cheapest levels and, if it saves at least 0.1 %, a predictor, which takes longer to decode.

    The symbols are coded with `by_level` without a predictor, and with `by_size_and_level` with one. In the second
    case the levels are those of the residuals.
    """
    low, full_scale = low_bits(stream), max_magnitude(stream)
    linear_RC = linear_values(stream)[ordinals_RC].astype(np.float64)
    cost, levels = _cheapest_levels(space, by_level, ordinals_RC >> low, _fit_levels(np.abs(linear_RC), full_scale))
    predictor = regression.fit_predictor(to_lines(linear_RC)) if space.prediction else None
    if predictor is None:
        return levels, None
    m_RC = from_lines(predictor.coefficients_LL.astype(np.float64) @ to_lines(linear_RC), linear_RC.shape)
    symbols_RC = flip_signs(stream, ordinals_RC, m_RC < 0) >> low
    finest = _fit_levels(np.abs(linear_RC - m_RC / (1 << predictor.shift)), full_scale)
    size_RC = size_classes(m_RC.astype(np.int64), predictor.shift, full_scale)
    predicted_cost, residual_levels = _cheapest_levels(space, by_size_and_level, symbols_RC, finest, size_RC)
    predicted_cost += predictor_cost(predictor, max(linear_RC.shape))
    return (residual_levels, predictor) if predicted_cost < 0.999 * cost else (levels, None)


def _fit_levels(magnitudes_RC: NDArray[np.float64], full_scale: float) -> Levels:
    """Return the finest levels for values of these magnitudes. `full_scale` is the quantizer's largest magnitude.

    Alternating means give r_i and c_j, the maximum-likelihood solution for exponentially distributed magnitudes.
    """
    r_R1 = magnitudes_RC.mean(1, keepdims=True)
    c_1C = np.ones((1, magnitudes_RC.shape[1]))
    for _ in range(2):
        c_1C = _divided(magnitudes_RC, r_R1).mean(0, keepdims=True)
        c_1C /= max(float(c_1C.mean()), 1e-30)
        r_R1 = _divided(magnitudes_RC, c_1C).mean(1, keepdims=True)
    base = int(_eighths(magnitudes_RC.mean(keepdims=True).reshape(-1) / full_scale)[0])
    return Levels(base + FULL_SCALE, 0, 0, _eighths(r_R1.reshape(-1) / full_scale) - base, _eighths(c_1C.reshape(-1)))


def _divided(magnitudes_RC: NDArray[np.float64], factor: NDArray[np.float64]) -> NDArray[np.float64]:
    return magnitudes_RC / np.where(factor > 0, factor, 1.0)


def _eighths(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return base-2 logarithms in units of 1/8, of values clipped to the range of levels and classes."""
    clipped = np.clip(values, 2.0 ** -(FULL_SCALE / 8), 2.0**0.875)
    eighths: NDArray[np.int64] = np.rint(8 * np.log2(clipped)).astype(np.int64)
    return eighths


def _coarser(levels: Levels, row_step: int, column_step: int) -> Levels:
    """Return `levels`, which have the finest steps, with larger steps."""
    rows_R, columns_C = (
        np.zeros_like(classes) if step == OFF else np.rint(classes / (1 << step)).astype(np.int64)
        for classes, step in ((levels.rows_R, row_step), (levels.columns_C, column_step))
    )
    return Levels(levels.base, row_step, column_step, rows_R, columns_C)


def _cheapest_levels(
    space: SearchSpace,
    histograms: Histograms,
    symbols_RC: Symbols,
    finest: Levels,
    size_RC: NDArray[np.int64] | None = None,
) -> tuple[float, Levels]:
    """Return the minimum cost in bits over all steps of the classes, and the levels with this cost.

    `histograms`, in their current state, will code the symbols. `size_RC` holds the size classes of the predictions, if
    there is a predictor.
    """
    rows, row_of = np.unique(finest.rows_R, return_inverse=True)
    columns, column_of = np.unique(finest.columns_C, return_inverse=True)
    alphabet, sizes = histograms.counts.shape[1], len(histograms.counts) // LEVELS
    counts = _count(symbols_RC, row_of * columns.size, column_of, size_RC, (sizes, rows.size * columns.size, alphabet))
    distinct = Levels(finest.base, 0, 0, rows, columns)
    candidates = []
    for row_step, column_step in product(space.row_steps, space.column_steps):
        level_counts = np.zeros((LEVELS, sizes, alphabet), dtype=np.int64)
        level = _coarser(distinct, row_step, column_step).of_rows(0, rows.size).reshape(-1)
        np.add.at(level_counts, level, counts)
        levels = _coarser(finest, row_step, column_step)
        candidates.append((histograms.cost(level_counts.swapaxes(0, 1).reshape(-1, alphabet)) + levels.cost, levels))
    return min(candidates, key=lambda candidate: candidate[0])


def _count(
    symbols_RC: Symbols,
    row_cell_R: NDArray[np.int64],
    column_cell_C: NDArray[np.int64],
    size_RC: NDArray[np.int64] | None,
    shape: tuple[int, int, int],
) -> Counts:
    """Return the counts of the symbols by cell and size class, (cells, sizes, A). `shape` is (sizes, cells, A)."""
    _, cells, alphabet = shape
    counts = np.zeros(prod(shape), dtype=np.int64)
    for start in range(0, len(row_cell_R), 512):
        rows = slice(start, start + 512)
        cell = row_cell_R[rows, None] + column_cell_C[None]
        if size_RC is not None:
            cell = cell + size_RC[rows] * cells
        counts += np.bincount((cell * alphabet + symbols_RC[rows]).reshape(-1), minlength=counts.size)
    return counts.reshape(shape).swapaxes(0, 1)
