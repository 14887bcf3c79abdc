"""Streams: the named arrays of raw values that a container stores, and how their bits lie in bytes.

A stream holds integers of 2 to 8, 16 or 32 bits: quantized weights as signed integers, floating-point numbers as
their raw bit patterns, a file (the tokenizer) as its bytes. Two layouts turn a stream into bytes:

- `packed`: integers of 2 to 8 bits side by side, most significant bit first, the last byte filled with zero bits;
  wider values little-endian. The smallest form before compression.
- `bytes`: one byte for every value narrower than 8 bits, so that a byte-oriented compressor sees whole values; wider
  values split into byte planes, all lowest bytes first, the highest bytes last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepamba.errors import UserError

Values = NDArray[Any]
"""The values of a stream in its dtype: int8 for `int`, else unsigned integers."""

STREAM_BITS: dict[str, tuple[int, ...]] = {
    "int": (2, 3, 4, 5, 6, 7, 8),
    "u8": (8,),
    "fp8": (8,),
    "bf16": (16,),
    "fp32": (32,),
}
"""Widths in bits that each kind of stream can have."""

DTYPES: dict[str, str] = {"int": "|i1", "u8": "|u1", "fp8": "|u1", "bf16": "<u2", "fp32": "<u4"}
"""NumPy dtype of the values of each kind."""


@dataclass(frozen=True)
class StreamSpec:
    """Name, kind, width and shape of a stream: all that is needed to know how many bytes it takes."""

    name: str
    kind: str
    bits: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed layout."""
        return (self.size * self.bits + 7) // 8

    @property
    def plain_bytes(self) -> int:
        """Bytes of the `bytes` layout, which are also the bytes of the values in memory."""
        return self.size * max(1, self.bits // 8)


def pack(stream: StreamSpec, values: Values) -> bytes:
    """`values` in the packed layout. Raises `ValueError` for an integer that `stream.bits` cannot hold."""
    if stream.kind != "int":
        return values.astype(DTYPES[stream.kind], copy=False).tobytes()
    _check_range(stream, values, ValueError)
    return pack_integers(values, stream.bits)


def unpack(stream: StreamSpec, data: bytes) -> Values:
    """The values that `pack` was given. Raises `UserError` for a wrong length, padding bits or a value off the grid."""
    if len(data) != stream.packed_bytes:
        raise UserError(f"stream {stream.name} has {len(data)} bytes, {stream.packed_bytes} expected")
    if stream.kind != "int":
        return np.frombuffer(data, dtype=DTYPES[stream.kind]).reshape(stream.shape)
    values = unpack_integers(data, stream.bits, stream.size).reshape(stream.shape)
    _check_range(stream, values, UserError)
    return values


def spread(stream: StreamSpec, values: Values) -> bytes:
    """`values` in the `bytes` layout: integers offset to start at 0, wider values as byte planes."""
    if stream.kind == "int":
        _check_range(stream, values, ValueError)
        return (values.astype(np.int16) + _limit(stream.bits)).astype(np.uint8).tobytes()
    raw = values.astype(DTYPES[stream.kind], copy=False).reshape(-1, 1).view(np.uint8)
    return raw.T.tobytes()


def gather(stream: StreamSpec, data: bytes) -> Values:
    """The values that `spread` was given. Raises `UserError` for a wrong length or a value off the grid."""
    if len(data) != stream.plain_bytes:
        raise UserError(f"stream {stream.name} has {len(data)} bytes, {stream.plain_bytes} expected")
    raw = np.frombuffer(data, dtype=np.uint8)
    if stream.kind == "int":
        values = raw.astype(np.int16) - _limit(stream.bits)
        _check_range(stream, values, UserError)
        return values.astype(np.int8).reshape(stream.shape)
    planes = raw.reshape(max(1, stream.bits // 8), stream.size)
    return np.ascontiguousarray(planes.T).reshape(-1).view(DTYPES[stream.kind]).reshape(stream.shape)


_PIECE = 1 << 20
"""Values that are packed at a time: a multiple of 8, so that every piece but the last fills its bytes."""


def pack_integers(values: Values, bits: int) -> bytes:
    """Signed integers as two's complement of `bits` bits each, most significant bit first, zero bits at the end."""
    flat = values.reshape(-1)
    return b"".join(_pack_piece(flat[start : start + _PIECE], bits) for start in range(0, flat.size, _PIECE))


def _pack_piece(values: Values, bits: int) -> bytes:
    fields = (values.astype(np.uint8) << (8 - bits)).astype(np.uint8)
    return np.packbits(np.unpackbits(fields[:, None], axis=1, count=bits)).tobytes()


def unpack_integers(data: bytes, bits: int, count: int) -> NDArray[np.int8]:
    """The `count` integers that `pack_integers` was given. Raises `UserError` where padding bits are set."""
    values = np.empty(count, dtype=np.int8)
    packed = np.frombuffer(data, dtype=np.uint8)
    step = _PIECE * bits // 8
    for piece, start in enumerate(range(0, count, _PIECE)):
        target = values[start : start + _PIECE]
        every_bit = np.unpackbits(packed[piece * step : (piece + 1) * step])
        if every_bit[target.size * bits :].any():
            raise UserError("bits are set after the last packed value")
        fields = np.packbits(every_bit[: target.size * bits].reshape(target.size, bits), axis=1).reshape(target.size)
        # The value sits in the upper bits; an arithmetic shift of the signed byte brings its sign along.
        np.right_shift(fields.view(np.int8), np.int8(8 - bits), out=target)
    return values


def _limit(bits: int) -> int:
    return int(2 ** (bits - 1) - 1)


def _check_range(stream: StreamSpec, values: Values, error: Callable[[str], Exception]) -> None:
    limit = _limit(stream.bits)
    if values.size and (int(values.min()) < -limit or int(values.max()) > limit):
        raise error(f"stream {stream.name} holds a value outside ±{limit}")
