"""Histograms that learn while they code: the model of every symbol, at no cost in the file.

Writer and reader start from the same counts and add the same symbols to them, so a model never has to be stored. There
is one histogram for each context; a context is a small integer that both sides know before the symbol.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from jepamba.artifact.ans.coder import Coder, Counts, Symbols, code_number, frequencies

FIRST = 16
"""Symbols that a context codes before it learns for the first time; every later step is as long as all it has seen."""
LONGEST = 1 << 13
"""Most symbols between two steps."""
STEP = 2
"""What a symbol adds to its count, which starts at 1: the estimator of Krichevsky and Trofimov (1981)."""
LIMIT = 1 << 30
"""Total of counts at which they are halved, so that a histogram follows what changes."""

Contexts = NDArray[np.uint16]
"""The context of each symbol, (N,)."""


class Histograms:
    """Counts of `alphabet` symbols in each of `contexts` contexts."""

    def __init__(self, contexts: int, alphabet: int) -> None:
        self.counts = np.ones((contexts, alphabet), dtype=np.int64)
        self._seen = np.zeros(contexts, dtype=np.int64)

    def code(self, coder: Coder, contexts: Contexts, symbols: Symbols | None) -> Symbols:
        """The symbols (N,) in `contexts` (N,), in their order; the contexts one after the other in the file."""
        order = np.argsort(contexts, kind="stable")  # of 16-bit integers: a radix sort
        sizes = np.bincount(contexts, minlength=len(self.counts))
        grouped = None if symbols is None else symbols[order]
        coded = np.empty(contexts.size, dtype=np.uint8)
        start = 0
        for context in np.flatnonzero(sizes):
            end = start + int(sizes[context])
            while start < end:
                stop = min(end, start + min(max(FIRST, int(self._seen[context])), LONGEST))
                part = None if grouped is None else grouped[start:stop]
                coded[start:stop] = self._step(coder, context, stop - start, part)
                start = stop
        result = np.empty_like(coded)
        result[order] = coded
        return result

    def _step(self, coder: Coder, context: int, count: int, symbols: Symbols | None) -> Symbols:
        counts = self.counts[context]
        coded = coder.symbols(frequencies(counts), count, symbols)
        counts += STEP * np.bincount(coded, minlength=counts.size)
        self._seen[context] += count
        if counts.sum() > LIMIT:
            counts[:] = (counts + 1) // 2
        return coded

    def cost(self, found: Counts) -> float:
        """Bits that symbols counted in `found` (contexts, alphabet) would take from here on, learnt one by one."""
        before = torch.from_numpy(self.counts / STEP)
        after = before + torch.from_numpy(found)
        gained = (torch.lgamma(after) - torch.lgamma(before)).sum(1)
        lost = torch.lgamma(after.sum(1)) - torch.lgamma(before.sum(1))
        return float((lost - gained).sum()) / float(np.log(2))


def code_integers(coder: Coder, count: int, integers: NDArray[np.int64] | None, bits: int) -> NDArray[np.int64]:
    """`count` integers that lie within 256 of each other, the least of `bits` bits in two's complement."""
    least = int(integers.min()) if integers is not None and count else 0
    least = code_number(coder, bits, least & (1 << bits) - 1)
    least -= (least >> bits - 1) << bits
    symbols = None if integers is None else (integers - least).astype(np.uint8)
    size = code_number(coder, 8, int(symbols.max()) if symbols is not None and count else 0) + 1
    histogram = Histograms(1, size)
    coded = histogram.code(coder, np.zeros(count, dtype=np.uint16), symbols)
    return coded.astype(np.int64) + least


def integers_cost(integers: NDArray[np.int64], bits: int) -> float:
    """Bits that `code_integers` takes, nearly."""
    found = np.bincount(integers - integers.min())
    return bits + 8 + Histograms(1, found.size).cost(found[None])
