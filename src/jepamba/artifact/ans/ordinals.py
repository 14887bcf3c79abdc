"""Values as whole numbers: in order of size for coding (ordinals), and in proportion to them for prediction (linear).

The ordinal of an integer q is q + limit. The ordinal of a floating-point number turns its bit pattern into an unsigned
integer in the order of the numbers: of a positive one the top bit is set, of a negative one every bit is flipped. Bytes
of a file are their own ordinals.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepamba.artifact.streams import DTYPES, StreamSpec, Values
from jepamba.errors import UserError

Ordinals = NDArray[Any]
"""Ordinals (N,): uint8 where a value has up to 8 bits, else int64."""


def limit(stream: StreamSpec) -> int:
    """The largest integer of a stream of integers."""
    return (1 << stream.bits - 1) - 1


def top(stream: StreamSpec) -> int:
    """The largest ordinal of a stream."""
    return 2 * limit(stream) if stream.kind == "int" else (1 << stream.bits) - 1


def matrix(stream: StreamSpec) -> tuple[int, int]:
    """(R, C) of a stream that is not empty: the first dimension has the rows; a vector is one row."""
    return (stream.shape[0], stream.size // stream.shape[0]) if len(stream.shape) > 1 else (1, stream.size)


def to_ordinals(stream: StreamSpec, values: Values) -> Ordinals:
    """Ordinals of `values`. Raises `ValueError` for an integer that is off the stream's grid."""
    flat = values.reshape(-1)
    if stream.kind == "u8":
        return flat
    if stream.kind == "int":
        if flat.size and (int(flat.min()) < -limit(stream) or int(flat.max()) > limit(stream)):
            raise ValueError(f"stream {stream.name} holds a value outside ±{limit(stream)}")
        return (flat + np.int16(limit(stream))).astype(np.uint8)
    sign, ordinal = 1 << stream.bits - 1, np.uint8 if stream.bits == 8 else np.int64
    wide = flat.astype(np.int64)
    return np.where(wide & sign, 2 * sign - 1 - wide, wide + sign).astype(ordinal)


def from_ordinals(stream: StreamSpec, ordinals: Ordinals) -> Values:
    """The values of `ordinals`, in the stream's shape. Raises `UserError` for one that the stream cannot hold."""
    if ordinals.size and not 0 <= int(ordinals.min()) <= int(ordinals.max()) <= top(stream):
        raise UserError(f"stream {stream.name} holds a value outside its range")
    if stream.kind == "u8":
        flat = ordinals
    elif stream.kind == "int":
        flat = ordinals.astype(np.int16) - np.int16(limit(stream))
    else:
        sign, wide = 1 << stream.bits - 1, ordinals.astype(np.int64)
        flat = np.where(wide & sign, wide - sign, 2 * sign - 1 - wide)
    return flat.astype(DTYPES[stream.kind]).reshape(stream.shape)


_E4M3 = np.array([bits & 7 if bits < 8 else 8 + (bits & 7) << (bits >> 3) - 1 for bits in range(128)])
"""Magnitudes of FP8 e4m3 in units of its smallest, 2^−9."""


def linear(stream: StreamSpec) -> NDArray[np.int64]:
    """The number that each ordinal of a stream of `int` or `fp8` stands for, in units of the least magnitude."""
    if stream.kind == "int":
        return np.arange(-limit(stream), limit(stream) + 1)
    return np.concatenate((-_E4M3[::-1], _E4M3))


def largest(stream: StreamSpec) -> int:
    """The largest number of a grid of `int` or `fp8` in the unit of `linear`."""
    return limit(stream) if stream.kind == "int" else int(_E4M3[0x7E])


COARSE_BITS = 6


def low_bits(stream: StreamSpec) -> int:
    """Bits of an ordinal of `int` or `fp8` that are coded apart from the others."""
    return max(0, stream.bits - COARSE_BITS)


def turned(stream: StreamSpec, ordinals: Ordinals, where: NDArray[np.bool_]) -> Ordinals:
    """Ordinals of `int` or `fp8`, of the opposite numbers `where` it says so."""
    return np.where(where, np.uint8(top(stream)) - ordinals, ordinals)
