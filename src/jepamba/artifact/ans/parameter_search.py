"""The encoder's search for the levels and the linear predictor of a matrix of weights. Decoders do not need it.

Shapes: R rows, C columns; A symbols. A cell is a pair of a row class and a column class.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepamba.artifact.ans import regression
from jepamba.artifact.ans.histograms import Histograms
from jepamba.artifact.ans.levels import FULL_SCALE, LEVELS, OFF, Levels
from jepamba.artifact.ans.ordinals import (
    Ordinals,
    flip_signs,
    linear_values,
    low_bits,
    matrix_shape,
    max_magnitude,
    max_ordinal,
)
from jepamba.artifact.ans.prediction import (
    SIZE_CLASSES,
    LinearPredictor,
    from_lines,
    predictor_cost,
    size_classes,
    to_lines,
)
from jepamba.artifact.ans.rans import Counts, Symbols
from jepamba.artifact.streams import StreamSpec


@dataclass(frozen=True)
class SearchSpace:
    """The parameters that the search tries."""

    row_steps: tuple[int, ...] = (0, 1, 2, OFF)
    column_steps: tuple[int, ...] = (0, 1, 2, OFF)
    prediction: bool = True


FULL_SEARCH = SearchSpace()


class LevelStatistics(NamedTuple):
    """The finest levels of a matrix, and how often each symbol occurs with each pair of their classes."""

    finest: Levels
    distinct: Levels
    """The classes that occur, once each."""
    counts: Counts
    """By cell and size class, (cells, sizes, A). Without a predictor, there is one size class."""


class Statistics(NamedTuple):
    """What the search needs to know of a matrix. It does not depend on what was coded before."""

    plain: LevelStatistics
    predictor: LinearPredictor | None
    residuals: LevelStatistics | None
    """With the predictor."""


def statistics(space: SearchSpace, stream: StreamSpec, ordinals: Ordinals) -> Statistics:
    """Return the statistics of the ordinals (N,) of an `int` or `fp8` stream: most of the work of an encoder."""
    low, full_scale = low_bits(stream), max_magnitude(stream)
    ordinals_RC = ordinals.reshape(matrix_shape(stream))
    linear_RC = linear_values(stream)[ordinals_RC].astype(np.float64)
    plain = _count(ordinals_RC >> low, _fit_levels(np.abs(linear_RC), full_scale), _alphabet(stream))
    predictor = regression.fit_predictor(to_lines(linear_RC)) if space.prediction else None
    if predictor is None:
        return Statistics(plain, None, None)
    m_RC = from_lines(predictor.coefficients_LL.astype(np.float64) @ to_lines(linear_RC), linear_RC.shape)
    symbols_RC = flip_signs(stream, ordinals_RC, m_RC < 0) >> low
    finest = _fit_levels(np.abs(linear_RC - m_RC / (1 << predictor.shift)), full_scale)
    size_RC = size_classes(m_RC.astype(np.int64), predictor.shift, full_scale)
    return Statistics(plain, predictor, _count(symbols_RC, finest, _alphabet(stream), size_RC))


def search_parameters(
    space: SearchSpace, known: Statistics, by_level: Histograms, by_size_and_level: Histograms
) -> tuple[Levels, LinearPredictor | None]:
    """Return the cheapest levels and, if it saves at least 0.1 %, a predictor, which takes longer to decode.

    The symbols are coded with `by_level` without a predictor, and with `by_size_and_level` with one. In the second
    case the levels are those of the residuals.
    """
    cost, levels = _cheapest_levels(space, by_level, known.plain)
    if known.predictor is None or known.residuals is None:
        return levels, None
    predicted_cost, residual_levels = _cheapest_levels(space, by_size_and_level, known.residuals)
    longer = max(known.plain.finest.rows_R.size, known.plain.finest.columns_C.size)
    predicted_cost += predictor_cost(known.predictor, longer)
    return (residual_levels, known.predictor) if predicted_cost < 0.999 * cost else (levels, None)


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


def _cheapest_levels(space: SearchSpace, histograms: Histograms, known: LevelStatistics) -> tuple[float, Levels]:
    """Return the minimum cost in bits over all steps of the classes, and the levels with this cost.

    `histograms`, in their current state, will code the symbols.
    """
    _, sizes, alphabet = known.counts.shape
    candidates = []
    for row_step, column_step in product(space.row_steps, space.column_steps):
        level_counts = np.zeros((LEVELS, sizes, alphabet), dtype=np.int64)
        level = _coarser(known.distinct, row_step, column_step).of_rows(0, known.distinct.rows_R.size).reshape(-1)
        np.add.at(level_counts, level, known.counts)
        levels = _coarser(known.finest, row_step, column_step)
        candidates.append((histograms.cost(level_counts.swapaxes(0, 1).reshape(-1, alphabet)) + levels.cost, levels))
    return min(candidates, key=lambda candidate: candidate[0])


def _alphabet(stream: StreamSpec) -> int:
    return (max_ordinal(stream) >> low_bits(stream)) + 1


def _count(
    symbols_RC: Symbols, finest: Levels, alphabet: int, size_RC: NDArray[np.int64] | None = None
) -> LevelStatistics:
    """Count the symbols by the classes of `finest` and, if there is a predictor, by the size of its predictions."""
    rows, row_of = np.unique(finest.rows_R, return_inverse=True)
    columns, column_of = np.unique(finest.columns_C, return_inverse=True)
    cells, sizes = rows.size * columns.size, 1 if size_RC is None else SIZE_CLASSES
    counts = np.zeros(sizes * cells * alphabet, dtype=np.int64)
    for start in range(0, len(symbols_RC), 512):
        part = slice(start, start + 512)
        cell = (row_of * columns.size)[part, None] + column_of[None]
        if size_RC is not None:
            cell = cell + size_RC[part] * cells
        counts += np.bincount((cell * alphabet + symbols_RC[part]).reshape(-1), minlength=counts.size)
    distinct = Levels(finest.base, 0, 0, rows, columns)
    return LevelStatistics(finest, distinct, counts.reshape(sizes, cells, alphabet).swapaxes(0, 1))
