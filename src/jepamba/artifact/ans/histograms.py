"""Histograms that learn while they code: the model of every symbol, at no cost in the file.

Writer and reader start from the same counts and add the same symbols to them, so a model never has to be stored. There
is one histogram for each context; a context is a small integer that both sides know before the symbol.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from jepamba.artifact.ans.rans import AnsCoder, Counts, Symbols, code_number, frequencies

SHORTEST, LONGEST = 4, 1 << 13
"""Symbols that a context codes between two updates of its counts."""
STEP = 4
"""What a symbol adds to its count, which starts at 1."""

Contexts = NDArray[np.uint16]
"""The context of each symbol, (N,)."""


class Histograms:
    """Counts of `alphabet` symbols in each of `contexts` contexts."""

    def __init__(self, contexts: int, alphabet: int) -> None:
        self.counts = np.ones((contexts, alphabet), dtype=np.int64)
        self._seen = np.zeros(contexts, dtype=np.int64)

    def code(self, coder: AnsCoder, contexts: Contexts, symbols: Symbols | None) -> Symbols:
        """The symbols (N,) in `contexts` (N,), returned in this order.

        In the file they come in rounds: in each, every context that has symbols left, the least first, codes its next
        run, in their order: an eighth as many symbols as the context has seen, but 4 to 8,192. After a run the counts
        of its symbols go up.
        """
        order = np.argsort(contexts, kind="stable")  # of 16-bit integers: a radix sort
        grouped = None if symbols is None else symbols[order]
        coded = np.empty(contexts.size, dtype=np.uint8)
        ends = np.cumsum(np.bincount(contexts, minlength=len(self.counts)))
        starts = np.concatenate(([0], ends[:-1]))
        while (active := np.flatnonzero(starts < ends)).size:
            stops = starts[active] + np.clip(self._seen[active] // 8, SHORTEST, LONGEST)
            stops = np.minimum(stops, ends[active])
            models = frequencies(self.counts[active])
            runs = zip(active.tolist(), starts[active].tolist(), stops.tolist(), models, strict=True)
            for context, start, stop, model in runs:
                part = None if grouped is None else grouped[start:stop]
                coded[start:stop] = coder.symbols(model, stop - start, part)
                self.counts[context] += STEP * np.bincount(coded[start:stop], minlength=model.size)
            self._seen[active] += stops - starts[active]
            starts[active] = stops
        result = np.empty_like(coded)
        result[order] = coded
        return result

    def cost(self, found: Counts) -> float:
        """Bits that symbols counted in `found` (contexts, alphabet) would take from here on, learnt one by one."""
        met = found.any(axis=1)
        before = torch.from_numpy(self.counts[met] / STEP)
        after = before + torch.from_numpy(found[met])
        gained = (torch.lgamma(after) - torch.lgamma(before)).sum(1)
        lost = torch.lgamma(after.sum(1)) - torch.lgamma(before.sum(1))
        return float((lost - gained).sum()) / float(np.log(2))


def code_integers(coder: AnsCoder, count: int, integers: NDArray[np.int64] | None, bits: int) -> NDArray[np.int64]:
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
