"""Values as whole numbers: in order of size for coding (ordinals), and in proportion to them for prediction (linear).

The ordinal of an integer q is q + limit. The ordinal of a floating-point number of b bits turns its bit pattern into an
unsigned integer in the order of the numbers: of a positive one the top bit is set, of a negative one every bit is
flipped. Bytes of a file are their own ordinals.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jepamba.artifact.streams import DTYPES, Stream, Values
from jepamba.errors import UserError

Ordinals = NDArray[np.int64]


def limit(stream: Stream) -> int:
    """The largest integer of a stream of integers."""
    return (1 << stream.bits - 1) - 1


def top(stream: Stream) -> int:
    """The largest ordinal of a stream."""
    return 2 * limit(stream) if stream.kind == "int" else (1 << stream.bits) - 1


def to_ordinals(stream: Stream, values: Values) -> Ordinals:
    """Ordinals (N,) of `values`. Raises `ValueError` for an integer that is off the stream's grid."""
    flat = values.reshape(-1).astype(np.int64)
    if stream.kind == "int":
        if flat.size and int(np.abs(flat).max()) > limit(stream):
            raise ValueError(f"stream {stream.name} holds a value outside ±{limit(stream)}")
        return flat + limit(stream)
    if stream.kind == "u8":
        return flat
    sign = 1 << stream.bits - 1
    return np.where(flat & sign, 2 * sign - 1 - flat, flat + sign)


def from_ordinals(stream: Stream, ordinals: Ordinals) -> Values:
    """The values of `ordinals` (N,), in the stream's shape. Raises `UserError` for one that the stream cannot hold."""
    if ordinals.size and not 0 <= int(ordinals.min()) <= int(ordinals.max()) <= top(stream):
        raise UserError(f"stream {stream.name} holds a value outside its range")
    if stream.kind == "int":
        flat = ordinals - limit(stream)
    elif stream.kind == "u8":
        flat = ordinals
    else:
        sign = 1 << stream.bits - 1
        flat = np.where(ordinals & sign, ordinals - sign, 2 * sign - 1 - ordinals)
    return flat.astype(DTYPES[stream.kind]).reshape(stream.shape)


_E4M3 = np.array([(bits & 7) if bits < 8 else (8 + (bits & 7)) << (bits >> 3) - 1 for bits in range(128)])
"""Magnitudes of FP8 e4m3 in units of its smallest, 2^−9."""


def linear(stream: Stream) -> NDArray[np.int64]:
    """The number that each ordinal of a stream of `int` or `fp8` stands for, as a multiple of the least magnitude."""
    if stream.kind == "int":
        return np.arange(-limit(stream), limit(stream) + 1)
    return np.concatenate((-_E4M3[::-1], _E4M3))


def largest(stream: Stream) -> int:
    """The largest number of a stream of `int` or `fp8` in the unit of `linear`: a row's scale makes it this large."""
    return limit(stream) if stream.kind == "int" else int(_E4M3[0x7E])
