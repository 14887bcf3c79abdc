"""The arithmetic coder, one description for both directions: every call names the value on writing and returns it.

Ranges are constriction's (Bamler 2022, "Understanding entropy coding"), with probabilities of 24 bits.
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
"""A section has at least a byte for so many symbols, so that a small file cannot ask for much work."""


@runtime_checkable
class SymbolCoder(Protocol):
    """Writes values, or reads them back when it is asked for the same things in the same order."""

    writing: bool

    def bit(self, p_one: float, value: int = 0) -> int:
        """A 0 or 1, which is 1 with probability `p_one`."""
        ...

    def symbol(self, weights: NDArray[np.float64], value: int = 0) -> int:
        """One of `len(weights)` values, at least 2, with probabilities that are in proportion to `weights`."""
        ...

    def even(self, size: int, value: int = 0) -> int:
        """One of `size` values, all alike."""
        ...

    def rows(self, weights_NV: NDArray[np.float64], values_N: NDArray[np.int32]) -> NDArray[np.int32]:
        """N symbols, each with a row of weights of its own."""
        ...


class SymbolEncoder:
    """Collects what it is given; `finish` has it as bytes."""

    writing = True

    def __init__(self) -> None:
        self._range = _queue.RangeEncoder()

    def bit(self, p_one: float, value: int = 0) -> int:
        """See `Coder`."""
        self._range.encode(value, _models.Bernoulli(p_one, perfect=False))
        return value

    def symbol(self, weights: NDArray[np.float64], value: int = 0) -> int:
        """See `Coder`."""
        self._range.encode(value, _models.Categorical(weights, perfect=False))
        return value

    def even(self, size: int, value: int = 0) -> int:
        """See `Coder`."""
        if size > 1:
            self._range.encode(value, _models.Uniform(size))
        return value

    def rows(self, weights_NV: NDArray[np.float64], values_N: NDArray[np.int32]) -> NDArray[np.int32]:
        """See `Coder`."""
        self._range.encode(values_N, _ROWS, weights_NV)
        return values_N

    def finish(self, symbols: int) -> bytes:
        """The section, little-endian words of 32 bits; filled up with zeros for `symbols` that cost too little."""
        words: bytes = self._range.get_compressed().astype("<u4").tobytes()
        return words.ljust(-(-symbols // (4 * SYMBOLS_PER_BYTE)) * 4, b"\0")


class SymbolDecoder:
    """Reads what `Writer.finish` gave. Bytes that no writer made are read as something, or raise `UserError`."""

    writing = False

    def __init__(self, section: bytes) -> None:
        self._range = _queue.RangeDecoder(np.frombuffer(section, dtype="<u4").astype(np.uint32))

    def bit(self, p_one: float, value: int = 0) -> int:
        """See `Coder`."""
        return int(self._read(_models.Bernoulli(p_one, perfect=False)))

    def symbol(self, weights: NDArray[np.float64], value: int = 0) -> int:
        """See `Coder`."""
        return int(self._read(_models.Categorical(weights, perfect=False)))

    def even(self, size: int, value: int = 0) -> int:
        """See `Coder`."""
        return int(self._read(_models.Uniform(size))) if size > 1 else 0

    def rows(self, weights_NV: NDArray[np.float64], values_N: NDArray[np.int32]) -> NDArray[np.int32]:
        """See `Coder`."""
        found: NDArray[np.int32] = self._read(_ROWS, weights_NV)
        return found

    def _read(self, *asked: Any) -> Any:
        try:
            return self._range.decode(*asked)
        except AssertionError:  # how constriction says that no symbol has this code
            raise UserError("its coded data are damaged") from None
