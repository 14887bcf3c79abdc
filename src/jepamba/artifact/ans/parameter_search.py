"""What a writer chooses for a matrix of weights: its levels, and whether lines are foretold. No reader needs this.

Shapes: R rows, C columns; A symbols; `cells` pairs of a row's and a column's class.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from jepamba.artifact.ans import regression
from jepamba.artifact.ans.histograms import Histograms
from jepamba.artifact.ans.levels import FULL, LEVELS, OFF, Levels
from jepamba.artifact.ans.ordinals import Ordinals, largest, linear, low_bits, turned
from jepamba.artifact.ans.prediction import Prediction, lines, prediction_cost, sizes
from jepamba.artifact.ans.rans import Counts, Symbols
from jepamba.artifact.streams import StreamSpec


@dataclass(frozen=True)
class Choices:
    """What there is to choose from."""

    row_steps: tuple[int, ...] = (0, 1, 2, OFF)
    column_steps: tuple[int, ...] = (0, 1, 2, OFF)
    prediction: bool = True


EVERYTHING = Choices()


def choose(
    choices: Choices, stream: StreamSpec, by_level: Histograms, by_both: Histograms, ordinals_RC: Ordinals
) -> tuple[Levels, Prediction | None]:
    """What costs least: levels alone, under `by_level`, or a prediction and the levels of what remains, `by_both`.

    A prediction takes longer to decode, and must save a thousandth.
    """
    low, full = low_bits(stream), largest(stream)
    linear_RC = linear(stream)[ordinals_RC].astype(np.float64)
    cost, levels = _levels(choices, by_level, ordinals_RC >> low, _fit(np.abs(linear_RC), full))
    prediction = regression.fit(lines(linear_RC)) if choices.prediction else None
    if prediction is None:
        return levels, None
    m_RC = lines(prediction.coefficients_LL.astype(np.float64) @ lines(linear_RC), back_to=linear_RC.shape)
    symbols_RC = turned(stream, ordinals_RC, m_RC < 0) >> low
    finest = _fit(np.abs(linear_RC - m_RC / (1 << prediction.shift)), full)
    size_RC = sizes(m_RC.astype(np.int64), prediction.shift, full)
    foretold_cost, foretold_levels = _levels(choices, by_both, symbols_RC, finest, size_RC)
    foretold_cost += prediction_cost(prediction, max(linear_RC.shape))
    return (foretold_levels, prediction) if foretold_cost < 0.999 * cost else (levels, None)


def _fit(magnitudes_RC: NDArray[np.float64], full: float) -> Levels:
    """The finest levels for values of these magnitudes on a grid up to `full`.

    r_i and c_j are found by alternating means, which is maximum likelihood for exponentially distributed magnitudes.
    """
    r_R1 = magnitudes_RC.mean(1, keepdims=True)
    c_1C = np.ones((1, magnitudes_RC.shape[1]))
    for _ in range(2):
        c_1C = _without(magnitudes_RC, r_R1).mean(0, keepdims=True)
        c_1C /= max(float(c_1C.mean()), 1e-30)
        r_R1 = _without(magnitudes_RC, c_1C).mean(1, keepdims=True)
    base = int(_eighths(magnitudes_RC.mean(keepdims=True).reshape(-1) / full)[0])
    return Levels(base + FULL, 0, 0, _eighths(r_R1.reshape(-1) / full) - base, _eighths(c_1C.reshape(-1)))


def _without(magnitudes_RC: NDArray[np.float64], factor: NDArray[np.float64]) -> NDArray[np.float64]:
    return magnitudes_RC / np.where(factor > 0, factor, 1.0)


def _eighths(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Logarithms in eighths, of at least 2^−15 and at most 2^0.875: what levels and classes have room for."""
    eighths: NDArray[np.int64] = np.rint(8 * np.log2(np.clip(values, 2.0 ** -(FULL / 8), 2.0**0.875))).astype(np.int64)
    return eighths


def _coarser(levels: Levels, row_step: int, column_step: int) -> Levels:
    """The finest levels in larger steps."""
    rows_R, columns_C = (
        np.zeros_like(classes) if step == OFF else np.rint(classes / (1 << step)).astype(np.int64)
        for classes, step in ((levels.rows_R, row_step), (levels.columns_C, column_step))
    )
    return Levels(levels.base, row_step, column_step, rows_R, columns_C)


def _levels(
    choices: Choices,
    histograms: Histograms,
    symbols_RC: Symbols,
    finest: Levels,
    size_RC: NDArray[np.int64] | None = None,
) -> tuple[float, Levels]:
    """The cheapest of the finest levels in larger steps, and the cost in bits.

    `histograms` are those that will code the symbols, in their present state. `size_RC` are the sizes of expectations,
    where there are some.
    """
    rows, row_of = np.unique(finest.rows_R, return_inverse=True)
    columns, column_of = np.unique(finest.columns_C, return_inverse=True)
    alphabet, outers = histograms.counts.shape[1], len(histograms.counts) // LEVELS
    counts = _count(symbols_RC, row_of * columns.size, column_of, size_RC, (outers, rows.size * columns.size, alphabet))
    distinct = Levels(finest.base, 0, 0, rows, columns)
    options = []
    for row_step, column_step in product(choices.row_steps, choices.column_steps):
        found = np.zeros((LEVELS, outers, alphabet), dtype=np.int64)
        level = _coarser(distinct, row_step, column_step).of_rows(0, rows.size).reshape(-1)
        np.add.at(found, level, counts)
        levels = _coarser(finest, row_step, column_step)
        options.append((histograms.cost(found.swapaxes(0, 1).reshape(-1, alphabet)) + levels.cost, levels))
    return min(options, key=lambda option: option[0])


def _count(
    symbols_RC: Symbols,
    row_cell_R: NDArray[np.int64],
    column_cell_C: NDArray[np.int64],
    size_RC: NDArray[np.int64] | None,
    shape: tuple[int, int, int],
) -> Counts:
    """How often each symbol occurs, by cell and size: (cells, sizes, A), given `shape` (sizes, cells, A)."""
    _, cells, alphabet = shape
    counts = np.zeros(prod(shape), dtype=np.int64)
    for start in range(0, len(row_cell_R), 512):
        part = slice(start, start + 512)
        cell = row_cell_R[part, None] + column_cell_C[None]
        if size_RC is not None:
            cell = cell + size_RC[part] * cells
        counts += np.bincount((cell * alphabet + symbols_RC[part]).reshape(-1), minlength=counts.size)
    return counts.reshape(shape).swapaxes(0, 1)
