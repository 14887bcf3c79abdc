"""Probabilities that learn as they go: writer and reader see the same values in the same order, so nothing is stored.

A bit is predicted from several contexts at once. Each context has a running estimate; the estimates are mixed in the
logistic domain with weights that learn too (Mahoney 2005, "Adaptive weighing of context models"). Only additions,
multiplications and two small tables take part, so that every machine computes the same.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from jepamba.compress.coder import SymbolCoder

_STEPS = 4096
_STRETCH = [math.log((k + 0.5) / (_STEPS - k - 0.5)) for k in range(_STEPS)]
"""ln(p / (1 − p)) by p · 4096."""
_SQUASH = [1 / (1 + math.exp(-k / 256)) for k in range(-2560, 2561)]
"""1 / (1 + e^−x) by x · 256, |x| <= 10."""
_RARE = 0.02
"""First estimate in a context that was never seen: corrections are rare."""
_RATE, _SLOWEST = 0.02, 255
_GAIN, _FULL = 64.0, 16384.0


class MixedBit:
    """A bit whose probability is mixed from `contexts` estimates."""

    def __init__(self, contexts: int) -> None:
        self._cells: list[dict[Hashable, list[float]]] = [{} for _ in range(contexts)]
        # A set of weights for each state of knowledge: how often each context was seen, 3 standing for more.
        self._weights: dict[tuple[float, ...], list[float]] = {}
        self._even = 1.0 / contexts

    def code(self, coder: SymbolCoder, contexts: Sequence[Hashable], value: int = 0) -> int:
        """The bit, in these contexts; learns from it."""
        cells = [table.setdefault(key, [_RARE, 0.0]) for table, key in zip(self._cells, contexts, strict=True)]
        signs = [_STRETCH[int(cell[0] * _STEPS)] for cell in cells]
        weights = self._weights.setdefault(tuple([min(cell[1], 3.0) for cell in cells]), [self._even] * len(cells))
        mixed = sum([weight * sign for weight, sign in zip(weights, signs, strict=True)])
        p_one = _SQUASH[round(min(max(mixed, -10.0), 10.0) * 256) + 2560]
        value = coder.bit(p_one, value)
        error = _RATE * (value - p_one)
        for index, (cell, sign) in enumerate(zip(cells, signs, strict=True)):
            weights[index] += error * sign
            cell[1] = min(cell[1] + 1.0, _SLOWEST)
            cell[0] = min(max(cell[0] + (value - cell[0]) / (cell[1] + 1.5), 0.0002), 0.9998)
        return value


class Frequencies:
    """A symbol of up to `size` values, as likely as it was often seen, the recent past counting most."""

    def __init__(self, size: int) -> None:
        self._counts = np.full(size, 1.0)

    def code(self, coder: SymbolCoder, value: int = 0) -> int:
        """The symbol; learns from it."""
        value = coder.symbol(self._counts, value)
        self._counts[value] += _GAIN
        if self._counts[value] > _FULL:
            self._counts *= 0.5
        return value
