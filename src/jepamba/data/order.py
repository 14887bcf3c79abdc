"""A pseudorandom permutation of 0 to n − 1 in constant memory: each element is computed on demand.

The permutation is a Feistel network on a × b ≥ n cells, whose rounds add modulo a and modulo b in turn, with cycle
walking: a cell ≥ n is encrypted again. See Black & Rogaway, "Ciphers with Arbitrary Finite Domains" (CT-RSA 2002). The
round function is the finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014). It is not cryptographically secure.
"""

from __future__ import annotations

from math import isqrt

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8


class Permutation:
    """The numbers 0 to `count` − 1 in an order given by `seed`, a tuple of non-negative integers."""

    def __init__(self, count: int, seed: tuple[int, ...]) -> None:
        if not 0 < count < 2**62:
            raise ValueError(f"a permutation of {count} numbers")
        self.count = count
        rows = isqrt(count - 1) + 1
        self._sides = np.uint64(rows), np.uint64(-(-count // rows))
        self._keys = np.random.default_rng(seed).integers(2**64, size=_ROUNDS, dtype=np.uint64)

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers (N,) at `positions` (N,). Raises `ValueError` for a position outside 0 to `count` − 1."""
        if positions.size and not 0 <= int(positions.min()) <= int(positions.max()) < self.count:
            raise ValueError(f"a position outside a permutation of {self.count} numbers")
        numbers = self._permute_cells(positions.astype(np.uint64))
        while (outside := numbers >= self.count).any():
            # Fewer than 2·√n cells are outside, so few numbers need another pass.
            numbers[outside] = self._permute_cells(numbers[outside])
        return numbers.astype(np.int64)

    def _permute_cells(self, cells: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Apply the Feistel network, a permutation of all a × b cells."""
        rows, columns = self._sides
        row, column = cells // columns, cells % columns
        for first, second in zip(self._keys[::2], self._keys[1::2], strict=True):
            row = (row + _hash(column ^ first) % rows) % rows
            column = (column + _hash(row ^ second) % columns) % columns
        return row * columns + column


def _hash(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash each value to 64 bits with the finaliser of SplitMix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
