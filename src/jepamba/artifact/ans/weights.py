"""Weights on a grid: each under a histogram of the values that were expected to be as large as it is.

An ordinal is split into a coarse symbol of at most 64 values and up to two low bits. The context of the coarse symbol
is the weight's level (`levels`), in some matrices together with what other lines foretell of it (`prediction`); that
of the low bits is the coarse symbol. Histograms are shared by all streams of one kind and width in a block, and go on
learning from one to the next.

Shapes: R rows, C columns; L lines of N values, J lines of a panel.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from jepamba.artifact.ans import levels as lv
from jepamba.artifact.ans import prediction as pr
from jepamba.artifact.ans.histograms import Contexts, Histograms
from jepamba.artifact.ans.ordinals import Ordinals, largest, linear, low_bits, matrix, top, turned
from jepamba.artifact.ans.parameter_search import Choices, choose
from jepamba.artifact.ans.rans import AnsCoder, code_number
from jepamba.artifact.streams import StreamSpec

PIECE = 1 << 20
"""Values that are coded together, in whole rows: bounds the memory of sorting them by context."""


@dataclass
class Tables:
    """The histograms of a block, by kind and width."""

    choices: Choices
    _made: dict[tuple[str, int], tuple[Histograms, Histograms, Histograms]] = field(default_factory=dict)

    def of(self, stream: StreamSpec) -> tuple[Histograms, Histograms, Histograms]:
        """For coarse symbols by level, by expectation and level, and for low bits."""
        low = low_bits(stream)
        alphabet = (top(stream) >> low) + 1
        if (stream.kind, stream.bits) not in self._made:
            self._made[stream.kind, stream.bits] = (
                Histograms(lv.LEVELS, alphabet),
                Histograms(pr.SIZES * lv.LEVELS, alphabet),
                Histograms(alphabet, 1 << low),
            )
        return self._made[stream.kind, stream.bits]


def code_weights(coder: AnsCoder, tables: Tables, stream: StreamSpec, ordinals: Ordinals | None) -> Ordinals:
    """The ordinals (N,) of a stream of `int` or `fp8`."""
    R, C = matrix(stream)
    by_level, by_both, _ = tables.of(stream)
    ordinals_RC = None if ordinals is None else ordinals.reshape(R, C)
    levels, prediction = None, None
    if ordinals_RC is not None:
        levels, prediction = choose(tables.choices, stream, by_level, by_both, ordinals_RC)
    L, N = min(R, C), max(R, C)
    foretold = pr.allowed(L, N) and bool(code_number(coder, 1, int(prediction is not None)))
    levels = lv.code_levels(coder, R, C, levels)
    if foretold:
        prediction = pr.code_prediction(coder, L, N, prediction)
        return _code_lines(coder, tables, stream, levels, prediction, ordinals_RC).reshape(-1)
    pieces = []
    rows = max(1, PIECE // C)
    for start in range(0, R, rows):
        context = levels.of_rows(start, min(R, start + rows)).reshape(-1).astype(np.uint16)
        known = None if ordinals_RC is None else ordinals_RC[start : start + rows].reshape(-1)
        pieces.append(_code_split(coder, tables, stream, by_level, context, known))
    return np.concatenate(pieces)


def _code_lines(
    coder: AnsCoder,
    tables: Tables,
    stream: StreamSpec,
    levels: lv.Levels,
    prediction: pr.Prediction,
    ordinals_RC: Ordinals | None,
) -> Ordinals:
    """Panel after panel of lines, each foretold by those before; upside down where the expectation is negative."""
    R, C = matrix(stream)
    L, N = min(R, C), max(R, C)
    _, by_both, _ = tables.of(stream)
    number_of = linear(stream)
    expectations = pr.Expectations(prediction, N, int(number_of.max()))
    level_LN = pr.lines(levels.of_rows(0, R))
    ordinals_LN = None if ordinals_RC is None else pr.lines(ordinals_RC)
    coded_LN = np.empty((L, N), dtype=np.uint8)
    for start in range(0, L, pr.panel(L, N)):
        panel = slice(start, start + pr.panel(L, N))
        m_JN = expectations.of(panel)
        size_JN = pr.sizes(m_JN, prediction.shift, largest(stream))
        context = (size_JN * lv.LEVELS + level_LN[panel]).astype(np.uint16).reshape(-1)
        known = None if ordinals_LN is None else turned(stream, ordinals_LN[panel], m_JN < 0).reshape(-1)
        coded = _code_split(coder, tables, stream, by_both, context, known).reshape(m_JN.shape)
        coded_LN[panel] = turned(stream, coded, m_JN < 0)
        expectations.learn(panel, number_of[np.minimum(coded_LN[panel], top(stream))])
    return pr.lines(coded_LN, back_to=(R, C))


def _code_split(
    coder: AnsCoder,
    tables: Tables,
    stream: StreamSpec,
    coarse: Histograms,
    contexts: Contexts,
    ordinals: Ordinals | None,
) -> Ordinals:
    low = low_bits(stream)
    upper = coarse.code(coder, contexts, None if ordinals is None else ordinals >> low)
    if not low:
        return upper
    _, _, fine = tables.of(stream)
    lower = fine.code(coder, upper.astype(np.uint16), None if ordinals is None else ordinals & (1 << low) - 1)
    return (upper << low) | lower
