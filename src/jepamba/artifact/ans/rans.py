"""A range asymmetric numeral system (rANS; Duda 2013, arXiv 1311.2540) with exact integer frequencies.

Each of the A symbols of an alphabet has a frequency of at least 1, and the frequencies sum to 2^24. The arithmetic is
that of `constriction`'s `AnsCoder`, with a 64-bit state and 32-bit words; docs/artifact-format.md has the decoder in
ten lines. The library takes probabilities in floating point. `_model` passes values that it converts exactly, so that
the result does not depend on the rounding of a machine.

`AnsEncoder` and `AnsDecoder` have the same interface, so that the same code serves both directions: an encoder returns
the symbols that it takes, a decoder returns the symbols that it reads.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import constriction
import numpy as np
from numpy.typing import NDArray

from jepamba.errors import UserError

PRECISION = 24
"""Bits of a frequency. The frequencies of an alphabet sum to 2^24."""
MAX_ALPHABET = 256
END, END_BITS = 0xE5D0, 16
"""The last number of a block. It reveals data that end too early, which decode to arbitrary symbols."""

Symbols = NDArray[Any]
"""Symbols (N,), uint8."""
Counts = NDArray[np.int64]
"""Frequencies, counts or weights of the symbols of an alphabet, (..., A)."""


@runtime_checkable
class AnsCoder(Protocol):
    """An encoder or a decoder. Both must get the same calls in the same order."""

    def code(self, frequencies: Counts, count: int, symbols: Symbols | None) -> Symbols:
        """Encode or decode `count` symbols (N,) of one model and return them. `symbols` is None for a decoder."""
        ...


def frequencies(weights: Counts) -> Counts:
    """Return frequencies (..., A) that are nearly proportional to `weights` (..., A) and sum to 2^24.

    The weights are positive and sum to less than 2^38. With W(s) the sum of the weights before symbol s, the sum of the
    frequencies before s is s + ⌊W(s)·(2^24 − A) / W(A)⌋, so that each frequency is at least 1.
    """
    size = weights.shape[-1]
    cumulative = np.cumsum(weights, axis=-1)
    ends: Counts = cumulative * ((1 << PRECISION) - size) // cumulative[..., -1:] + np.arange(1, size + 1)
    ends[..., 1:] -= ends[..., :-1].copy()
    return ends


def _model(frequencies: Counts) -> Any:
    # `Categorical(perfect=False)` starts symbol s at s + ⌊scale · Σ p⌋, where scale = (2^24 − A) / Σ p. If p is the
    # frequency minus 1, then scale = 1 and every sum is an integer, which double precision represents exactly.
    return constriction.stream.model.Categorical((frequencies - 1).astype(np.float64), perfect=False)


def code_number(coder: AnsCoder, bits: int, number: int) -> int:
    """Code an unsigned integer of `bits` bits, all values equally likely: 8 bits at a time, lowest first."""
    result = 0
    for start in range(0, bits, 8):
        digit_bits = min(8, bits - start)
        digit = np.array([number >> start & (1 << digit_bits) - 1], dtype=np.uint8)
        result |= int(coder.code(uniform(digit_bits), 1, digit)[0]) << start
    return result


def uniform(bits: int) -> Counts:
    """Return equal frequencies (2^bits,) of all integers of `bits` bits, at most 8."""
    return np.full(1 << bits, 1 << (PRECISION - bits), dtype=np.int64)


class AnsEncoder:
    """Collects symbols; `finish` encodes them in reverse order, because ANS is a stack."""

    def __init__(self) -> None:
        self._runs: list[tuple[Counts, Symbols]] = []

    def code(self, frequencies: Counts, count: int, symbols: Symbols | None) -> Symbols:
        """Add `symbols` and return them. An alphabet of one symbol costs nothing."""
        assert symbols is not None
        assert symbols.size == count
        if frequencies.size > 1 and count:
            self._runs.append((frequencies, symbols))
        return symbols

    def finish(self) -> bytes:
        """Return the encoded symbols as little-endian 32-bit words. A decoder reads the last word first."""
        code_number(self, END_BITS, END)
        coder = constriction.stream.stack.AnsCoder()
        for weights, symbols in reversed(self._runs):
            coder.encode_reverse(symbols.astype(np.int32), _model(weights))
        return bytes(coder.get_compressed().astype("<u4").tobytes())


_decoder = constriction.stream.stack.AnsCoder


class AnsDecoder:
    """Decodes the symbols of an `AnsEncoder`. Invalid data may decode to arbitrary symbols; `finish` detects them.

    Raises `UserError` for data that are not whole 32-bit words, or whose last word is 0, which an encoder never writes.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) % 4:
            raise UserError(f"ans data have {len(data)} bytes, not a multiple of 4")
        words = np.frombuffer(data, dtype="<u4").astype(np.uint32)
        if words.size and words[-1] == 0:
            raise UserError("ans data are damaged")
        self._start(words)

    def _start(self, words: NDArray[np.uint32]) -> None:
        self._coder: Any = _decoder(words)

    def code(self, frequencies: Counts, count: int, symbols: Symbols | None) -> Symbols:
        """Return the next `count` symbols. `symbols` is ignored."""
        if frequencies.size == 1 or not count:
            return np.zeros(count, dtype=np.uint8)
        return self._decode(frequencies, count)

    def _decode(self, frequencies: Counts, count: int) -> Symbols:
        try:
            return np.asarray(self._coder.decode(_model(frequencies), count)).astype(np.uint8)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a panic of the library is not an Exception
            raise UserError("ans data are damaged") from error

    def finish(self) -> None:
        """Raise `UserError` unless the data end here."""
        if code_number(self, END_BITS, 0) != END or not self._is_empty():
            raise UserError("ans data are damaged, or hold more than is declared")

    def _is_empty(self) -> bool:
        empty: bool = self._coder.is_empty()
        return empty
