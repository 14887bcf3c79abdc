"""Floating-point numbers that are few: ordinals in two parts, a coarse one under a histogram and low bits as they are.

A matrix of at most eight rows has a histogram for each row; everything else is one row.
"""

from __future__ import annotations

import numpy as np

from jepamba.artifact.ans.histograms import code_integers, integers_cost
from jepamba.artifact.ans.ordinals import Ordinals, matrix
from jepamba.artifact.ans.rans import MAX_ALPHABET, AnsCoder, code_number, uniform
from jepamba.artifact.streams import StreamSpec
from jepamba.errors import UserError

FEW_ROWS = 8
_WIDTH_BITS = 5


def code_floats(coder: AnsCoder, stream: StreamSpec, ordinals: Ordinals | None) -> Ordinals:
    """The ordinals (N,) of a stream of `bf16` or `fp32`."""
    R, _ = matrix(stream)
    apart = R if R <= FEW_ROWS else 1
    rows = [None] * apart if ordinals is None else list(ordinals.reshape(apart, -1))
    return np.concatenate([_code_row(coder, stream, stream.size // apart, row) for row in rows])


def _code_row(coder: AnsCoder, stream: StreamSpec, count: int, ordinals: Ordinals | None) -> Ordinals:
    low = code_number(coder, _WIDTH_BITS, 0 if ordinals is None else _width(stream, ordinals))
    if low >= stream.bits:
        raise UserError(f"stream {stream.name} cannot have {low} low bits")
    coded = code_integers(coder, count, None if ordinals is None else ordinals >> low, stream.bits - low + 1) << low
    for start in range(0, low, 8):
        width = min(8, low - start)
        symbols = None if ordinals is None else (ordinals >> start & (1 << width) - 1).astype(np.uint8)
        coded |= coder.symbols(uniform(width), count, symbols).astype(np.int64) << start
    return coded


def _width(stream: StreamSpec, ordinals: Ordinals) -> int:
    """The number of low bits that makes the whole smallest."""
    spans = [int((ordinals >> low).max() - (ordinals >> low).min()) for low in range(stream.bits)]
    fitting = [low for low, span in enumerate(spans) if span < MAX_ALPHABET]
    return min(fitting, key=lambda low: low * ordinals.size + integers_cost(ordinals >> low, stream.bits - low + 1))
