"""A range coder with one interface for both directions: an encoder takes the value, and both return it.

The arithmetic is that of constriction (Bamler 2022, "Understanding entropy coding"), with 24-bit probabilities.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import constriction
import numpy as np
from numpy.typing import NDArray

from jepamba.errors import UserError

_models, _queue = constriction.stream.model, constriction.stream.queue
_ROWS = _models.Categorical(perfect=False)

SYMBOLS_PER_BYTE = 16
"""Upper bound on the symbols per byte of a section. It bounds the work that a small hostile file can cause."""


def section(words: NDArray[np.uint32], symbols: int) -> bytes:
    """Return little-endian 32-bit words, padded with zeros as `SYMBOLS_PER_BYTE` requires for this many symbols."""
    return words.astype("<u4").tobytes().ljust(-(-symbols // (4 * SYMBOLS_PER_BYTE)) * 4, b"\0")


def section_words(content: bytes) -> NDArray[np.uint32]:
    """Return the words of a section."""
    return np.frombuffer(content, dtype="<u4").astype(np.uint32)


@runtime_checkable
class RangeCoder(Protocol):
    """Encodes values, or decodes them with the same calls in the same order. A decoder ignores `value`."""

    writing: bool

    def bit(self, p_one: float, value: int = 0) -> int:
        """Code a bit that is 1 with probability `p_one`."""
        ...

    def symbol(self, weights: NDArray[np.float64], value: int = 0) -> int:
        """Code one of `len(weights)` values, at least 2, with probabilities proportional to `weights`."""
        ...

    def uniform(self, size: int, value: int = 0) -> int:
        """Code one of `size` equally likely values."""
        ...

    def rows(self, weights_NV: NDArray[np.float64], values_N: NDArray[np.int32]) -> NDArray[np.int32]:
        """Code N symbols, each with its own row of weights."""
        ...


class RangeEncoder:
    """Encodes values into the section that `finish` returns."""

    writing = True

    def __init__(self) -> None:
        self._range = _queue.RangeEncoder()

    def bit(self, p_one: float, value: int = 0) -> int:
        """See `RangeCoder`."""
        self._range.encode(value, _models.Bernoulli(p_one, perfect=False))
        return value

    def symbol(self, weights: NDArray[np.float64], value: int = 0) -> int:
        """See `RangeCoder`."""
        self._range.encode(value, _models.Categorical(weights, perfect=False))
        return value

    def uniform(self, size: int, value: int = 0) -> int:
        """See `RangeCoder`."""
        if size > 1:
            self._range.encode(value, _models.Uniform(size))
        return value

    def rows(self, weights_NV: NDArray[np.float64], values_N: NDArray[np.int32]) -> NDArray[np.int32]:
        """See `RangeCoder`."""
        self._range.encode(values_N, _ROWS, weights_NV)
        return values_N

    def finish(self, symbols: int) -> bytes:
        """Return the `section` of the words."""
        return section(self._range.get_compressed(), symbols)


class RangeDecoder:
    """Decodes a section of `RangeEncoder.finish`. Other bytes decode to arbitrary values or raise `UserError`."""

    writing = False

    def __init__(self, section: bytes) -> None:
        self._range = _queue.RangeDecoder(section_words(section))

    def bit(self, p_one: float, value: int = 0) -> int:
        """See `RangeCoder`."""
        return int(self._read(_models.Bernoulli(p_one, perfect=False)))

    def symbol(self, weights: NDArray[np.float64], value: int = 0) -> int:
        """See `RangeCoder`."""
        return int(self._read(_models.Categorical(weights, perfect=False)))

    def uniform(self, size: int, value: int = 0) -> int:
        """See `RangeCoder`."""
        return int(self._read(_models.Uniform(size))) if size > 1 else 0

    def rows(self, weights_NV: NDArray[np.float64], values_N: NDArray[np.int32]) -> NDArray[np.int32]:
        """See `RangeCoder`."""
        symbols: NDArray[np.int32] = self._read(_ROWS, weights_NV)
        return symbols

    def _read(self, *model: Any) -> Any:
        try:
            return self._range.decode(*model)
        except AssertionError:  # constriction raises it for a code of no symbol
            raise UserError("its coded data are damaged") from None
