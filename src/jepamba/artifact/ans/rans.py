"""The entropy coder: asymmetric numeral systems (Duda 2013) under exact integer frequencies.

A symbol of an alphabet of A symbols has a frequency of at least 1, and all A add up to 2^24. The arithmetic is that of
`constriction`'s `AnsCoder`: a 64-bit state and 32-bit words (docs/artifact-format.md has the decoder in ten lines). The
library takes probabilities as floating point; `_model` hands it numbers for which its conversion is exact, so that no
rounding of any machine takes part.

`Writer` and `Reader` have the same methods, so that one walk over a block serves both directions: where a reader
returns what it decodes, a writer returns what it is given.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import constriction
import numpy as np
from numpy.typing import NDArray

from jepamba.errors import UserError

PRECISION = 24
"""Bits of a frequency: all of an alphabet add up to 2^24."""
MAX_ALPHABET = 256
END, END_BITS = 0xE5D0, 16
"""The last number of any data. Without it data that are used up would go on giving the first symbol for ever."""

Symbols = NDArray[Any]
"""Symbols (N,) of an alphabet of at most 256, uint8."""
Counts = NDArray[np.int64]
"""A weight for each symbol of an alphabet, (A,)."""


@runtime_checkable
class AnsCoder(Protocol):
    """Either direction. Every call must be made in the same order by both."""

    def symbols(self, frequencies: Counts, count: int, symbols: Symbols | None) -> Symbols:
        """`count` symbols under one model; `symbols` are those to write, and None when reading."""
        ...


def frequencies(weights: Counts) -> Counts:
    """Frequencies in proportion to `weights` (..., A), which are positive and add up to less than 2^38.

    With W(s) the sum of the weights before symbol s, s starts at s + ⌊W(s)·(2^24 − A) / W(A)⌋: every symbol has at
    least 1, and the sum is exact.
    """
    size = weights.shape[-1]
    after = np.cumsum(weights, axis=-1)
    ends: Counts = after * ((1 << PRECISION) - size) // after[..., -1:] + np.arange(1, size + 1)
    ends[..., 1:] -= ends[..., :-1].copy()
    return ends


def _model(frequencies: Counts) -> Any:
    # `Categorical(perfect=False)` starts symbol s at s + ⌊scale · Σ p⌋ with scale = (2^24 − A) / Σ p. With p one less
    # than the frequency that is scale = 1, and every sum an integer that double precision holds exactly.
    return constriction.stream.model.Categorical((frequencies - 1).astype(np.float64), perfect=False)


def code_number(coder: AnsCoder, bits: int, number: int) -> int:
    """An unsigned integer of `bits` bits, all equally probable: eight bits at a time, the lowest first."""
    result = 0
    for start in range(0, bits, 8):
        width = min(8, bits - start)
        digit = np.array([number >> start & (1 << width) - 1], dtype=np.uint8)
        result |= int(coder.symbols(uniform(width), 1, digit)[0]) << start
    return result


def uniform(bits: int) -> Counts:
    """Equal frequencies for all integers of `bits` bits, at most 8."""
    return np.full(1 << bits, 1 << (PRECISION - bits), dtype=np.int64)


class AnsEncoder:
    """Takes symbols down; `finish` encodes them, last first, since ANS is a stack."""

    def __init__(self) -> None:
        self._runs: list[tuple[Counts, Symbols]] = []

    def symbols(self, frequencies: Counts, count: int, symbols: Symbols | None) -> Symbols:
        """`symbols` themselves, taken down. An alphabet of one symbol costs nothing."""
        assert symbols is not None
        assert symbols.size == count
        if frequencies.size > 1 and count:
            self._runs.append((frequencies, symbols))
        return symbols

    def finish(self) -> bytes:
        """All that was taken down: 32-bit words, little-endian, the one to be read first at the end."""
        code_number(self, END_BITS, END)
        coder = constriction.stream.stack.AnsCoder()
        for weights, symbols in reversed(self._runs):
            coder.encode_reverse(symbols.astype(np.int32), _model(weights))
        return bytes(coder.get_compressed().astype("<u4").tobytes())


_decoder = constriction.stream.stack.AnsCoder


class AnsDecoder:
    """Gives back what a `Writer` took down. Any data can be decoded to the end; `finish` tells whether they were sound.

    Raises `UserError` for data that are no whole words, or end in a word of zero, which a writer never leaves.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) % 4:
            raise UserError(f"ans data have {len(data)} bytes, which is no multiple of 4")
        words = np.frombuffer(data, dtype="<u4").astype(np.uint32)
        if words.size and words[-1] == 0:
            raise UserError("ans data are damaged")
        self._coder = _decoder(words)

    def symbols(self, frequencies: Counts, count: int, symbols: Symbols | None) -> Symbols:
        """The next `count` symbols."""
        if frequencies.size == 1 or not count:
            return np.zeros(count, dtype=np.uint8)
        try:
            return np.asarray(self._coder.decode(_model(frequencies), count)).astype(np.uint8)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a panic of the library is no Exception
            raise UserError("ans data are damaged") from error

    def finish(self) -> None:
        """Raises `UserError` unless the data end here."""
        if code_number(self, END_BITS, 0) != END or not self._coder.is_empty():
            raise UserError("ans data are damaged, or hold more than is declared")
