"""Streams, the named arrays that a container stores, and their layouts in bytes.

A stream holds values of 2 to 8, 16 or 32 bits: quantized weights as signed integers, floating-point numbers as bit
patterns, and a file (the tokenizer) as bytes. It has two layouts:

- `packed`: integers of 2 to 8 bits are adjacent, most significant bit first, with zero bits at the end; 16- and 32-bit
  values are little-endian. It is the smallest layout without compression.
- `bytes`: an integer of up to 8 bits takes one byte, so that a byte-oriented compressor sees whole values; 16- and
  32-bit values are split into byte planes, from the lowest byte of all values to the highest.
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
"""The values of a stream: int8 for the kind `int`, otherwise unsigned integers."""

STREAM_BITS: dict[str, tuple[int, ...]] = {
    "int": (2, 3, 4, 5, 6, 7, 8),
    "u8": (8,),
    "fp8": (8,),
    "bf16": (16,),
    "fp32": (32,),
}
"""Possible numbers of bits per value, by kind of stream."""

DTYPES: dict[str, str] = {"int": "|i1", "u8": "|u1", "fp8": "|u1", "bf16": "<u2", "fp32": "<u4"}
"""NumPy dtype of the values, by kind of stream."""


@dataclass(frozen=True)
class StreamSpec:
    """Name, kind, bits per value and shape of a stream. They determine its size in bytes."""

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
    def byte_plane_bytes(self) -> int:
        """Bytes of the `bytes` layout and of the values in memory."""
        return self.size * max(1, self.bits // 8)


def pack(stream: StreamSpec, values: Values) -> bytes:
    """Return `values` in the layout `packed`. Raises `ValueError` for an integer out of range."""
    if stream.kind != "int":
        return values.astype(DTYPES[stream.kind], copy=False).tobytes()
    _check_range(stream, values, ValueError)
    return pack_integers(values, stream.bits)


def unpack(stream: StreamSpec, data: bytes) -> Values:
    """Invert `pack`. Raises `UserError` for a wrong length, padding bits that are set, or an integer out of range."""
    if len(data) != stream.packed_bytes:
        raise UserError(f"stream {stream.name} has {len(data)} bytes, {stream.packed_bytes} expected")
    if stream.kind != "int":
        return np.frombuffer(data, dtype=DTYPES[stream.kind]).reshape(stream.shape)
    values = unpack_integers(data, stream.bits, stream.size).reshape(stream.shape)
    _check_range(stream, values, UserError)
    return values


def to_byte_planes(stream: StreamSpec, values: Values) -> bytes:
    """Return `values` in the layout `bytes`. Integers have an offset, so that the smallest is 0."""
    if stream.kind == "int":
        _check_range(stream, values, ValueError)
        return (values.astype(np.int16) + _q_max(stream.bits)).astype(np.uint8).tobytes()
    raw = values.astype(DTYPES[stream.kind], copy=False).reshape(-1, 1).view(np.uint8)
    return raw.T.tobytes()


def from_byte_planes(stream: StreamSpec, data: bytes) -> Values:
    """Invert `to_byte_planes`. Raises `UserError` for a wrong length or an integer out of range."""
    if len(data) != stream.byte_plane_bytes:
        raise UserError(f"stream {stream.name} has {len(data)} bytes, {stream.byte_plane_bytes} expected")
    raw = np.frombuffer(data, dtype=np.uint8)
    if stream.kind == "int":
        values = raw.astype(np.int16) - _q_max(stream.bits)
        _check_range(stream, values, UserError)
        return values.astype(np.int8).reshape(stream.shape)
    planes = raw.reshape(max(1, stream.bits // 8), stream.size)
    return np.ascontiguousarray(planes.T).reshape(-1).view(DTYPES[stream.kind]).reshape(stream.shape)


_CHUNK = 1 << 20
"""Values that are packed at a time. A multiple of 8, so that each chunk but the last ends with a whole byte."""


def pack_integers(values: Values, bits: int) -> bytes:
    """Return signed integers in two's complement of `bits` bits each, most significant bit first."""
    flat = values.reshape(-1)
    return b"".join(_pack_chunk(flat[start : start + _CHUNK], bits) for start in range(0, flat.size, _CHUNK))


def _pack_chunk(values: Values, bits: int) -> bytes:
    fields = (values.astype(np.uint8) << (8 - bits)).astype(np.uint8)
    return np.packbits(np.unpackbits(fields[:, None], axis=1, count=bits)).tobytes()


def unpack_integers(data: bytes, bits: int, count: int) -> NDArray[np.int8]:
    """Invert `pack_integers` for `count` integers. Raises `UserError` if padding bits are set."""
    values = np.empty(count, dtype=np.int8)
    packed = np.frombuffer(data, dtype=np.uint8)
    step = _CHUNK * bits // 8
    for chunk, start in enumerate(range(0, count, _CHUNK)):
        target = values[start : start + _CHUNK]
        unpacked = np.unpackbits(packed[chunk * step : (chunk + 1) * step])
        if unpacked[target.size * bits :].any():
            raise UserError("bits are set after the last packed value")
        fields = np.packbits(unpacked[: target.size * bits].reshape(target.size, bits), axis=1).reshape(target.size)
        # The value is in the upper bits. An arithmetic shift of the signed byte extends its sign.
        np.right_shift(fields.view(np.int8), np.int8(8 - bits), out=target)
    return values


def _q_max(bits: int) -> int:
    return int(2 ** (bits - 1) - 1)


def _check_range(stream: StreamSpec, values: Values, error: Callable[[str], Exception]) -> None:
    q_max = _q_max(stream.bits)
    if values.size and (int(values.min()) < -q_max or int(values.max()) > q_max):
        raise error(f"stream {stream.name} holds a value outside ±{q_max}")
