"""Adaptive probability models. Encoder and decoder see the same values in the same order, so no model is stored.

Several contexts predict a bit together. Each context keeps a running estimate. The estimates are mixed in the logistic
domain with adaptive weights (Mahoney 2005, "Adaptive weighing of context models"). The computation uses only additions,
multiplications, divisions and two small tables, so that every machine computes the same values.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from jepamba.compress.range_coder import RangeCoder

_STEPS = 4096
_STRETCH = [math.log((k + 0.5) / (_STEPS - k - 0.5)) for k in range(_STEPS)]
"""ln(p / (1 − p)), indexed by p · 4096."""
_SQUASH = [1 / (1 + math.exp(-k / 256)) for k in range(-2560, 2561)]
"""1 / (1 + e^−x), indexed by x · 256 + 2560, |x| <= 10."""
_INITIAL = 0.02
"""Initial estimate of a new context. Corrections are rare."""
_RATE, _MAX_COUNT = 0.02, 255
_INCREMENT, _MAX_WEIGHT = 64.0, 16384.0


class MixedBit:
    """A model of a bit that mixes the estimates of `contexts` contexts."""

    def __init__(self, contexts: int) -> None:
        self._cells: list[dict[Hashable, list[float]]] = [{} for _ in range(contexts)]
        # Weights by how often each context was seen, where 3 means 3 or more.
        self._weights: dict[tuple[float, ...], list[float]] = {}
        self._initial_weight = 1.0 / contexts

    def code(self, coder: RangeCoder, contexts: Sequence[Hashable], value: int = 0) -> int:
        """Encode `value`, or decode a bit, in these contexts. Then update the model and return the bit."""
        cells = [table.setdefault(key, [_INITIAL, 0.0]) for table, key in zip(self._cells, contexts, strict=True)]
        logits = [_STRETCH[int(cell[0] * _STEPS)] for cell in cells]
        weights = self._weights.setdefault(
            tuple([min(cell[1], 3.0) for cell in cells]), [self._initial_weight] * len(cells)
        )
        mixed = sum([weight * logit for weight, logit in zip(weights, logits, strict=True)])
        p_one = _SQUASH[round(min(max(mixed, -10.0), 10.0) * 256) + 2560]
        value = coder.bit(p_one, value)
        error = _RATE * (value - p_one)
        for index, (cell, logit) in enumerate(zip(cells, logits, strict=True)):
            weights[index] += error * logit
            cell[1] = min(cell[1] + 1.0, _MAX_COUNT)
            cell[0] = min(max(cell[0] + (value - cell[0]) / (cell[1] + 1.5), 0.0002), 0.9998)
        return value


class Frequencies:
    """A model of a symbol below `size` by its frequencies, in which recent symbols weigh most."""

    def __init__(self, size: int) -> None:
        self._counts = np.full(size, 1.0)

    def code(self, coder: RangeCoder, value: int = 0) -> int:
        """Encode `value`, or decode a symbol. Then update the model and return the symbol."""
        value = coder.symbol(self._counts, value)
        self._counts[value] += _INCREMENT
        if self._counts[value] > _MAX_WEIGHT:
            self._counts *= 0.5
        return value
