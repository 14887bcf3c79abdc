"""A permutation of the numbers below n that needs no memory: any place of the order is computed when it is asked for.

A Feistel network over the grid of a × b ≥ n cells, whose rounds add modulo a and modulo b in turn, and which walks on
where it lands outside: the constructions of Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (CT-RSA 2002).
The round function is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014). Not for secrets.
"""

from __future__ import annotations

from math import isqrt

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8


class Permutation:
    """The numbers 0 to `count` − 1 in an order that `seed` (whole numbers, none negative) decides."""

    def __init__(self, count: int, seed: tuple[int, ...]) -> None:
        if not 0 < count < 2**62:
            raise ValueError(f"a permutation of {count} numbers")
        self.count = count
        rows = isqrt(count - 1) + 1
        self._sides = np.uint64(rows), np.uint64(-(-count // rows))
        self._keys = np.random.default_rng(seed).integers(2**64, size=_ROUNDS, dtype=np.uint64)

    def __call__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers (N,) at `places` (N,) of the order. Raises `ValueError` for a place outside it."""
        if places.size and not 0 <= int(places.min()) <= int(places.max()) < self.count:
            raise ValueError(f"a place outside a permutation of {self.count} numbers")
        numbers = self._cell(places.astype(np.uint64))
        while (outside := numbers >= self.count).any():
            # Fewer than 2·√n cells are outside, so that hardly any number takes a second walk.
            numbers[outside] = self._cell(numbers[outside])
        return numbers.astype(np.int64)

    def _cell(self, cells: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """One pass of the network: a permutation of all a × b cells."""
        rows, columns = self._sides
        row, column = cells // columns, cells % columns
        for first, second in zip(self._keys[::2], self._keys[1::2], strict=True):
            row = (row + _mixed(column ^ first) % rows) % rows
            column = (column + _mixed(row ^ second) % columns) % columns
        return row * columns + column


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 bits that look random, alike for equal `values`."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
