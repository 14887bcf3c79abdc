"""Coding of quantized weights, each with a histogram of the weights whose expected magnitude is the same.

An ordinal is split into a coarse symbol of at most 64 values and up to two low bits. The context of the coarse symbol
is the level of the weight (`levels.py`) and, in some matrices, the size class of its prediction from other lines
(`prediction.py`). The context of the low bits is the coarse symbol. All streams of one kind and number of bits in a
block share their histograms, which continue to adapt from one stream to the next.

Shapes: R rows, C columns; L lines of N values, J lines of a panel.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from jepamba.artifact.ans import levels as lv
from jepamba.artifact.ans import prediction as pr
from jepamba.artifact.ans.histograms import Contexts, Histograms
from jepamba.artifact.ans.ordinals import (
    Ordinals,
    flip_signs,
    linear_values,
    low_bits,
    matrix_shape,
    max_magnitude,
    max_ordinal,
)
from jepamba.artifact.ans.parameter_search import SearchSpace, Statistics, search_parameters
from jepamba.artifact.ans.rans import AnsCoder, code_number
from jepamba.artifact.streams import StreamSpec

CHUNK_VALUES = 1 << 20
"""Values that are coded together, in whole rows. It bounds the memory for sorting them by context."""


@dataclass
class HistogramSets:
    """The histograms of a block, by kind and bits of a stream, and the search space of the encoder."""

    search_space: SearchSpace
    _sets: dict[tuple[str, int], tuple[Histograms, Histograms, Histograms]] = field(default_factory=dict)

    def of(self, stream: StreamSpec) -> tuple[Histograms, Histograms, Histograms]:
        """Return the histograms of coarse symbols by level and by size class and level, and those of low bits."""
        low = low_bits(stream)
        alphabet = (max_ordinal(stream) >> low) + 1
        if (stream.kind, stream.bits) not in self._sets:
            self._sets[stream.kind, stream.bits] = (
                Histograms(lv.LEVELS, alphabet),
                Histograms(pr.SIZE_CLASSES * lv.LEVELS, alphabet),
                Histograms(alphabet, 1 << low),
            )
        return self._sets[stream.kind, stream.bits]


def code_weights(
    coder: AnsCoder, sets: HistogramSets, stream: StreamSpec, ordinals: Ordinals | None, statistics: Statistics | None
) -> Ordinals:
    """Encode or decode the ordinals (N,) of an `int` or `fp8` stream and return them.

    An encoder has the `ordinals` and the statistics of them.
    """
    R, C = matrix_shape(stream)
    by_level, by_size_and_level, _ = sets.of(stream)
    ordinals_RC = None if ordinals is None else ordinals.reshape(R, C)
    levels, predictor = None, None
    if statistics is not None:
        levels, predictor = search_parameters(sets.search_space, statistics, by_level, by_size_and_level)
    L, N = min(R, C), max(R, C)
    predicted = pr.is_predictable(L, N) and bool(code_number(coder, 1, int(predictor is not None)))
    levels = lv.code_levels(coder, R, C, levels)
    if predicted:
        predictor = pr.code_predictor(coder, L, N, predictor)
        return _code_lines(coder, sets, stream, levels, predictor, ordinals_RC).reshape(-1)
    chunks = []
    rows = max(1, CHUNK_VALUES // C)
    for start in range(0, R, rows):
        context = levels.of_rows(start, min(R, start + rows)).reshape(-1).view(np.uint16)
        known = None if ordinals_RC is None else ordinals_RC[start : start + rows].reshape(-1)
        chunks.append(_code_split(coder, sets, stream, by_level, context, known))
    return np.concatenate(chunks)


def _code_lines(
    coder: AnsCoder,
    sets: HistogramSets,
    stream: StreamSpec,
    levels: lv.Levels,
    predictor: pr.LinearPredictor,
    ordinals_RC: Ordinals | None,
) -> Ordinals:
    """Code the lines panel by panel, each predicted from those before. Returns the ordinals (R, C)."""
    R, C = matrix_shape(stream)
    L, N = min(R, C), max(R, C)
    _, by_size_and_level, _ = sets.of(stream)
    linear = linear_values(stream)
    prediction = pr.PanelPrediction(predictor, N, int(linear.max()))
    level_LN = pr.to_lines(levels.of_rows(0, R))
    ordinals_LN = None if ordinals_RC is None else pr.to_lines(ordinals_RC)
    coded_LN = np.empty((L, N), dtype=np.uint8)
    for start in range(0, L, pr.panel_lines(L, N)):
        panel = slice(start, start + pr.panel_lines(L, N))
        m_JN = prediction.predict(panel)
        size_JN = pr.size_classes(m_JN, predictor.shift, max_magnitude(stream))
        context = (size_JN * lv.LEVELS + level_LN[panel]).astype(np.uint16).reshape(-1)
        known = None if ordinals_LN is None else flip_signs(stream, ordinals_LN[panel], m_JN < 0).reshape(-1)
        coded = _code_split(coder, sets, stream, by_size_and_level, context, known).reshape(m_JN.shape)
        coded_LN[panel] = flip_signs(stream, coded, m_JN < 0)
        prediction.update(panel, linear[np.minimum(coded_LN[panel], max_ordinal(stream))])
    return pr.from_lines(coded_LN, (R, C))


def _code_split(
    coder: AnsCoder,
    sets: HistogramSets,
    stream: StreamSpec,
    coarse: Histograms,
    contexts: Contexts,
    ordinals: Ordinals | None,
) -> Ordinals:
    low = low_bits(stream)
    upper = coarse.code(coder, contexts, None if ordinals is None else ordinals >> low)
    if not low:
        return upper
    _, _, fine = sets.of(stream)
    lower = fine.code(coder, upper.astype(np.uint16), None if ordinals is None else ordinals & (1 << low) - 1)
    return (upper << low) | lower
