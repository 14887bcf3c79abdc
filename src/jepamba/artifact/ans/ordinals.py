"""Two integer representations of values: ordinals, in numerical order, and linear values, proportional to the value.

The ordinal of an integer q is q + q_max. The ordinal of a floating-point number is its bit pattern with the top bit set
if the number is positive, and with all bits flipped if it is negative. The ordinal of a byte is the byte.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepamba.artifact.streams import DTYPES, StreamSpec, Values
from jepamba.errors import UserError

Ordinals = NDArray[Any]
"""Ordinals (N,): uint8 for values of at most 8 bits, otherwise int64."""


def q_max(stream: StreamSpec) -> int:
    """Return the largest value of an `int` stream."""
    return (1 << stream.bits - 1) - 1


def max_ordinal(stream: StreamSpec) -> int:
    """Return the largest ordinal of a stream."""
    return 2 * q_max(stream) if stream.kind == "int" else (1 << stream.bits) - 1


def matrix_shape(stream: StreamSpec) -> tuple[int, int]:
    """Return (R, C) of a non-empty stream. The first dimension of the tensor is the rows; a vector is one row."""
    return (stream.shape[0], stream.size // stream.shape[0]) if len(stream.shape) > 1 else (1, stream.size)


def to_ordinals(stream: StreamSpec, values: Values) -> Ordinals:
    """Return the ordinals (N,) of `values`. Raises `ValueError` for an integer out of the stream's range."""
    flat = values.reshape(-1)
    if stream.kind == "u8":
        return flat
    if stream.kind == "int":
        if flat.size and (int(flat.min()) < -q_max(stream) or int(flat.max()) > q_max(stream)):
            raise ValueError(f"stream {stream.name} holds a value outside ±{q_max(stream)}")
        return (flat + np.int16(q_max(stream))).astype(np.uint8)
    sign, ordinal = 1 << stream.bits - 1, np.uint8 if stream.bits == 8 else np.int64
    wide = flat.astype(np.int64)
    return np.where(wide & sign, 2 * sign - 1 - wide, wide + sign).astype(ordinal)


def from_ordinals(stream: StreamSpec, ordinals: Ordinals) -> Values:
    """Return the values of `ordinals`, in the stream's shape. Raises `UserError` for an ordinal out of range."""
    if ordinals.size and not 0 <= int(ordinals.min()) <= int(ordinals.max()) <= max_ordinal(stream):
        raise UserError(f"stream {stream.name} holds a value outside its range")
    if stream.kind == "u8":
        flat = ordinals
    elif stream.kind == "int":
        flat = (ordinals - np.uint8(q_max(stream))).view(np.int8)  # modulo 256, in which the result is exact
    else:
        dtype = np.dtype(np.uint8 if stream.bits == 8 else np.int64)
        sign, most = (dtype.type(value) for value in (1 << stream.bits - 1, (1 << stream.bits) - 1))
        ordinals = ordinals.astype(dtype, copy=False)
        flat = np.where(ordinals & sign, ordinals - sign, most - ordinals)
    return flat.astype(DTYPES[stream.kind], copy=False).reshape(stream.shape)


_E4M3 = np.array([bits & 7 if bits < 8 else 8 + (bits & 7) << (bits >> 3) - 1 for bits in range(128)])
"""Magnitudes of FP8 e4m3 in units of the smallest, 2^−9, by bit pattern without the sign."""


def linear_values(stream: StreamSpec) -> NDArray[np.int64]:
    """Return the value of each ordinal of an `int` or `fp8` stream, in units of the smallest magnitude."""
    if stream.kind == "int":
        return np.arange(-q_max(stream), q_max(stream) + 1)
    return np.concatenate((-_E4M3[::-1], _E4M3))


def max_magnitude(stream: StreamSpec) -> int:
    """Return the largest magnitude of an `int` or `fp8` stream in the unit of `linear_values`."""
    return q_max(stream) if stream.kind == "int" else int(_E4M3[0x7E])


COARSE_BITS = 6
"""Bits of an ordinal that are coded in the context of the level."""


def low_bits(stream: StreamSpec) -> int:
    """Return the number of low bits of an `int` or `fp8` ordinal, which are coded separately."""
    return max(0, stream.bits - COARSE_BITS)


def flip_signs(stream: StreamSpec, ordinals: Ordinals, where: NDArray[np.bool_]) -> Ordinals:
    """Return the ordinals of an `int` or `fp8` stream, with the sign of the value flipped at `where`."""
    return np.where(where, np.uint8(max_ordinal(stream)) - ordinals, ordinals)
