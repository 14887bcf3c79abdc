"""Adaptive histograms: the models of all symbols, which the file does not contain.

Encoder and decoder start from the same counts and add the same symbols to them. There is one histogram per context, a
small integer that both sides know before the symbol.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from jepamba.artifact.ans.compiled import CompiledDecoder
from jepamba.artifact.ans.rans import AnsCoder, Counts, Symbols, code_number, frequencies

MIN_RUN, MAX_RUN = 4, 1 << 13
"""Symbols that a context codes between two updates of its counts."""
INCREMENT = 4
"""Each symbol adds it to its count, which starts at 1."""

Contexts = NDArray[np.uint16]
"""The context of each symbol, (N,)."""


class Histograms:
    """Counts of `alphabet` symbols in each of `contexts` contexts."""

    def __init__(self, contexts: int, alphabet: int) -> None:
        self.counts = np.ones((contexts, alphabet), dtype=np.int64)
        self._seen = np.zeros(contexts, dtype=np.int64)

    def code(self, coder: AnsCoder, contexts: Contexts, symbols: Symbols | None) -> Symbols:
        """Encode or decode the symbols (N,) in `contexts` (N,) and return them.

        The file holds them in rounds. In each round, each context with symbols left, in ascending order, codes a run of
        its next symbols. A run has an eighth as many symbols as the context has coded before, but at least 4 and at
        most 8,192. The counts are updated after each run.
        """
        if isinstance(coder, CompiledDecoder):
            return coder.code_adaptive(contexts, self.counts, self._seen, MIN_RUN, MAX_RUN, INCREMENT)
        order = np.argsort(contexts, kind="stable")  # a radix sort, as contexts have 16 bits
        grouped = None if symbols is None else symbols[order]
        coded = np.empty(contexts.size, dtype=np.uint8)
        ends = np.cumsum(np.bincount(contexts, minlength=len(self.counts)))
        starts = np.concatenate(([0], ends[:-1]))
        while (active := np.flatnonzero(starts < ends)).size:
            stops = starts[active] + np.clip(self._seen[active] // 8, MIN_RUN, MAX_RUN)
            stops = np.minimum(stops, ends[active])
            models = frequencies(self.counts[active])
            runs = zip(active.tolist(), starts[active].tolist(), stops.tolist(), models, strict=True)
            for context, start, stop, model in runs:
                run = None if grouped is None else grouped[start:stop]
                coded[start:stop] = coder.code(model, stop - start, run)
                self.counts[context] += INCREMENT * np.bincount(coded[start:stop], minlength=model.size)
            self._seen[active] += stops - starts[active]
            starts[active] = stops
        result = np.empty_like(coded)
        result[order] = coded
        return result

    def cost(self, counts: Counts) -> float:
        """Return the bits that coding symbols with these `counts` (contexts, alphabet) next would take.

        It assumes an update after each symbol, so that their order does not matter.
        """
        used = counts.any(axis=1)
        before = torch.from_numpy(self.counts[used] / INCREMENT)
        after = before + torch.from_numpy(counts[used])
        log_numerator = (torch.lgamma(after) - torch.lgamma(before)).sum(1)
        log_denominator = torch.lgamma(after.sum(1)) - torch.lgamma(before.sum(1))
        return float((log_denominator - log_numerator).sum()) / float(np.log(2))


def code_integers(coder: AnsCoder, count: int, integers: NDArray[np.int64] | None, bits: int) -> NDArray[np.int64]:
    """Code `count` integers that span at most 256 values, with a minimum of `bits` bits in two's complement."""
    minimum = int(integers.min()) if integers is not None and count else 0
    minimum = code_number(coder, bits, minimum & (1 << bits) - 1)
    minimum -= (minimum >> bits - 1) << bits
    symbols = None if integers is None else (integers - minimum).astype(np.uint8)
    size = code_number(coder, 8, int(symbols.max()) if symbols is not None and count else 0) + 1
    histogram = Histograms(1, size)
    coded = histogram.code(coder, np.zeros(count, dtype=np.uint16), symbols)
    return coded.astype(np.int64) + minimum


def integers_cost(integers: NDArray[np.int64], bits: int) -> float:
    """Return the approximate bits that `code_integers` takes."""
    counts = np.bincount(integers - integers.min())
    return bits + 8 + Histograms(1, counts.size).cost(counts[None])
