"""The weight codec: every stream of a block in one run of ANS, under models that learn from what has been coded.

One walk over the block serves both directions (see `coder`): it is given the values when writing and returns them when
reading. What the writer chooses (levels, prediction, widths) stands before the values it concerns.

- Weights on a grid (`int`, `fp8`): ordinals, split into a coarse symbol of at most 64 and up to two low bits. Context
  of the coarse symbol: the level (`levels`), and what other columns foretell (`prediction`); of the low bits: the
  coarse symbol. The histograms are shared by all streams of a kind and width in the block.
- Other floating-point numbers (`bf16`, `fp32`): ordinals, split into a coarse symbol with a histogram of its own and
  plain low bits.
- Bytes (`u8`): one histogram.

Shapes: R rows, C columns. A matrix has its first dimension as rows; anything else is one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jepamba.artifact.ans import levels as lv
from jepamba.artifact.ans import prediction as pr
from jepamba.artifact.ans.coder import Coder, Reader, Symbols, Writer, code_number, uniform
from jepamba.artifact.ans.histograms import Histograms, code_integers, integers_cost
from jepamba.artifact.ans.ordinals import Ordinals, from_ordinals, largest, linear, to_ordinals, top
from jepamba.artifact.streams import Stream, Values

COARSE_BITS = 6
"""Weights wider than this have their lowest bits coded apart."""
PIECE = 1 << 20
"""Values coded at a time, to bound the memory of sorting them by context."""


class WeightCodec:
    """The codec `ans`."""

    name = "ans"

    def encode(self, streams: Sequence[Stream], values: Sequence[Values]) -> bytes:
        """The block in bytes. Deterministic. Raises `ValueError` for integers off their grid."""
        coder, tables = Writer(), _Tables()
        for stream, array in zip(streams, values, strict=True):
            _code(coder, tables, stream, to_ordinals(stream, array))
        return coder.finish()

    def decode(self, streams: Sequence[Stream], data: bytes) -> list[Values]:
        """The values of `streams`, in order. Raises `UserError` for data that are not exactly such a block."""
        coder, tables = Reader(data), _Tables()
        values = [from_ordinals(stream, _code(coder, tables, stream, None)) for stream in streams]
        coder.finish()
        return values


@dataclass
class _Tables:
    """Histograms that the streams of a block share, by kind and width."""

    level: dict[tuple[str, int], Histograms] = field(default_factory=dict)
    predicted: dict[tuple[str, int], Histograms] = field(default_factory=dict)
    low: dict[tuple[str, int], Histograms] = field(default_factory=dict)

    def of(self, stream: Stream) -> tuple[Histograms, Histograms, Histograms]:
        """For values by their level, for values that are predicted, and for low bits."""
        key, low = (stream.kind, stream.bits), _low_bits(stream)
        alphabet = (top(stream) >> low) + 1
        return (
            self.level.setdefault(key, Histograms(lv.LEVELS, alphabet)),
            self.predicted.setdefault(key, Histograms(lv.LEVELS * (pr.STEPS + 1), alphabet)),
            self.low.setdefault(key, Histograms(alphabet, 1 << low)),
        )


def _low_bits(stream: Stream) -> int:
    return 0 if stream.kind == "u8" else max(0, stream.bits - COARSE_BITS)


def _code(coder: Coder, tables: _Tables, stream: Stream, ordinals: Ordinals | None) -> Ordinals:
    """The ordinals (N,) of a stream."""
    if not stream.size:
        return np.zeros(0, dtype=np.int64)
    if stream.kind in ("int", "fp8"):
        return _code_weights(coder, tables, stream, ordinals)
    if stream.kind == "u8":
        symbols = None if ordinals is None else ordinals.astype(np.uint8)
        none = np.zeros(stream.size, dtype=np.uint16)
        return Histograms(1, 256).code(coder, none, symbols).astype(np.int64)
    R, C = _matrix(stream)
    apart = R if R <= _FEW_ROWS else 1
    rows = [None] * apart if ordinals is None else list(ordinals.reshape(apart, -1))
    return np.concatenate([_code_floats(coder, stream, stream.size // apart, row) for row in rows])


def _matrix(stream: Stream) -> tuple[int, int]:
    if len(stream.shape) < 2:
        return 1, stream.size
    return stream.shape[0], stream.size // stream.shape[0]


# Weights on a grid.


def _code_weights(coder: Coder, tables: _Tables, stream: Stream, ordinals: Ordinals | None) -> Ordinals:
    R, C = _matrix(stream)
    by_level, by_both, by_coarse = tables.of(stream)
    ordinals_RC = None if ordinals is None else ordinals.reshape(R, C)
    levels, prediction = None, None
    if ordinals_RC is not None:
        levels, prediction = _choose(stream, by_level, by_both, ordinals_RC)
    predicted = pr.allowed(R, C) and bool(code_number(coder, 1, int(prediction is not None)))
    levels = lv.code_levels(coder, R, C, levels)
    if predicted:
        prediction = pr.code_prediction(coder, C, prediction)
        return _code_columns(coder, stream, by_both, by_coarse, levels, prediction, ordinals_RC).reshape(-1)
    pieces = []
    rows = max(1, PIECE // C)
    for start in range(0, R, rows):
        context = levels.block(start, min(R, start + rows)).reshape(-1).astype(np.uint16)
        known = None if ordinals_RC is None else ordinals_RC[start : start + rows].reshape(-1)
        pieces.append(_code_split(coder, stream, by_level, by_coarse, context, known))
    return np.concatenate(pieces)


def _code_columns(
    coder: Coder,
    stream: Stream,
    by_both: Histograms,
    by_coarse: Histograms,
    levels: lv.Levels,
    prediction: pr.Prediction,
    ordinals_RC: Ordinals | None,
) -> Ordinals:
    R, C = _matrix(stream)
    numbers, flip = linear(stream), top(stream)
    expectations = pr.Expectations(prediction, R)
    coded_RC = np.empty((R, C), dtype=np.int64)
    level_RC = levels.block(0, R)
    for j in range(C):
        m_R = expectations.column(j)
        context = pr.contexts(m_R, prediction.shift, largest(stream)) * lv.LEVELS + level_RC[:, j]
        known = None if ordinals_RC is None else np.where(m_R < 0, flip - ordinals_RC[:, j], ordinals_RC[:, j])
        coded = _code_split(coder, stream, by_both, by_coarse, context.astype(np.uint16), known)
        coded_RC[:, j] = np.where(m_R < 0, flip - coded, coded)
        expectations.add(j, numbers[np.minimum(coded_RC[:, j], numbers.size - 1)])
    return coded_RC


def _code_split(
    coder: Coder,
    stream: Stream,
    coarse: Histograms,
    fine: Histograms,
    contexts: NDArray[np.uint16],
    ordinals: Ordinals | None,
) -> Ordinals:
    low = _low_bits(stream)
    symbols = None if ordinals is None else (ordinals >> low).astype(np.uint8)
    upper = coarse.code(coder, contexts, symbols)
    if not low:
        return upper.astype(np.int64)
    symbols = None if ordinals is None else (ordinals & (1 << low) - 1).astype(np.uint8)
    return (upper.astype(np.int64) << low) + fine.code(coder, upper.astype(np.uint16), symbols)


def _choose(
    stream: Stream, by_level: Histograms, by_both: Histograms, ordinals_RC: Ordinals
) -> tuple[lv.Levels, pr.Prediction | None]:
    """The cheaper way for these values: by levels alone, or with a prediction."""
    R, C = ordinals_RC.shape
    linear_RC = linear(stream)[ordinals_RC]
    symbols_RC = (ordinals_RC >> _low_bits(stream)).astype(np.uint8)
    cost, levels = lv.choose(by_level, symbols_RC, np.abs(linear_RC), largest(stream))
    best: tuple[float, lv.Levels, pr.Prediction | None] = (cost, levels, None)
    for shift in pr.SHIFTS if pr.allowed(R, C) else ():
        prediction = pr.fit(linear_RC.astype(np.float64), shift)
        if prediction is None:
            break
        m_RC = (linear_RC.astype(np.float64) @ prediction.coefficients_CC.T.astype(np.float64)).astype(np.int64)
        residual_RC = np.abs(linear_RC - m_RC / (1 << shift))
        size_RC = pr.contexts(m_RC, shift, largest(stream))
        flipped_RC = np.where(m_RC < 0, top(stream) - ordinals_RC, ordinals_RC) >> _low_bits(stream)
        cost, levels = lv.choose(by_both, flipped_RC.astype(np.uint8), residual_RC, largest(stream), size_RC)
        cost += pr.prediction_cost(prediction)
        best = min(best, (cost, levels, prediction), key=lambda option: option[0])
    return best[1], best[2]


# Other floating-point numbers.

_FEW_ROWS = 8
"""A matrix of so few rows has a histogram for each."""
_WIDTH_BITS = 5


def _code_floats(coder: Coder, stream: Stream, count: int, ordinals: Ordinals | None) -> Ordinals:
    """`count` ordinals: a coarse part, whose histogram is its own, and low bits as they are."""
    low = code_number(coder, _WIDTH_BITS, _best_width(stream, ordinals) if ordinals is not None else 0)
    bits = stream.bits + 1
    coarse = code_integers(coder, count, None if ordinals is None else ordinals >> low, bits) << low
    for start in range(0, low, 8):
        width = min(8, low - start)
        symbols = None if ordinals is None else (ordinals >> start & (1 << width) - 1).astype(np.uint8)
        coarse += coder.symbols(uniform(width), count, symbols).astype(np.int64) << start
    return coarse


def _best_width(stream: Stream, ordinals: Ordinals) -> int:
    costs = {}
    for low in range(stream.bits):
        coarse = ordinals >> low
        if int(coarse.max() - coarse.min()) < 256:
            costs[low] = low * ordinals.size + integers_cost(coarse, stream.bits + 1)
    return min(costs, key=lambda low: costs[low])
