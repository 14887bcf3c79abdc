"""Floating-point scales and vectors. A histogram models the high bits of an ordinal; its low bits are stored as is.

A matrix of at most 8 rows has one histogram per row, any other stream has one in all.
"""

from __future__ import annotations

import numpy as np

from jepamba.artifact.ans.histograms import code_integers, integers_cost
from jepamba.artifact.ans.ordinals import Ordinals, matrix_shape
from jepamba.artifact.ans.rans import MAX_ALPHABET, AnsCoder, code_number, uniform
from jepamba.artifact.streams import StreamSpec
from jepamba.errors import UserError

MAX_SEPARATE_ROWS = 8
_LOW_BITS_FIELD = 5
"""Bits of the field that holds the number of low bits."""


def code_floats(coder: AnsCoder, stream: StreamSpec, ordinals: Ordinals | None) -> Ordinals:
    """Encode or decode the ordinals (N,) of a `bf16` or `fp32` stream and return them."""
    R, _ = matrix_shape(stream)
    num_rows = R if R <= MAX_SEPARATE_ROWS else 1
    rows = [None] * num_rows if ordinals is None else list(ordinals.reshape(num_rows, -1))
    return np.concatenate([_code_row(coder, stream, stream.size // num_rows, row) for row in rows])


def _code_row(coder: AnsCoder, stream: StreamSpec, count: int, ordinals: Ordinals | None) -> Ordinals:
    low = code_number(coder, _LOW_BITS_FIELD, 0 if ordinals is None else _best_low_bits(stream, ordinals))
    if low >= stream.bits:
        raise UserError(f"stream {stream.name} cannot have {low} low bits")
    coded = code_integers(coder, count, None if ordinals is None else ordinals >> low, stream.bits - low + 1) << low
    for start in range(0, low, 8):
        digit_bits = min(8, low - start)
        digits = None if ordinals is None else (ordinals >> start & (1 << digit_bits) - 1).astype(np.uint8)
        coded |= coder.code(uniform(digit_bits), count, digits).astype(np.int64) << start
    return coded


def _best_low_bits(stream: StreamSpec, ordinals: Ordinals) -> int:
    """Return the number of low bits that minimizes the encoded size."""
    ranges = [int((ordinals >> low).max() - (ordinals >> low).min()) for low in range(stream.bits)]
    possible = [low for low, size in enumerate(ranges) if size < MAX_ALPHABET]
    return min(possible, key=lambda low: low * ordinals.size + integers_cost(ordinals >> low, stream.bits - low + 1))
