"""A read-only stream of tokens over one or more shards.

Shapes: N tokens of the stream, T of a window.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jepamba.text.tokenizers import Tokenizer

_AT_ONCE = 1 << 22


class Tokens:
    """Shards as one stream, with the tokenizer that made them.

    Arguments: `shards`, arrays (N_i,) of tokens, in order; `tokenizer`; where they were recorded when the tokens were
    made, `text_bytes`, the bytes of the original text, and `recorded_bytes`, those that the tokens decode to (others
    than `text_bytes` where the tokenizer normalises).
    """

    def __init__(
        self,
        shards: Sequence[NDArray[np.uint16]],
        tokenizer: Tokenizer,
        text_bytes: int | None = None,
        recorded_bytes: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.text_bytes, self.recorded_bytes = text_bytes, recorded_bytes
        self._shards = [shard for shard in shards if shard.size]
        self._starts = [0]
        for shard in self._shards:
            self._starts.append(self._starts[-1] + shard.size)
        self._decoded_bytes: int | None = None

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def bos_id(self) -> int | None:
        """The token that starts each document; None where nothing separates documents."""
        return self.tokenizer.bos_id if self.tokenizer.separator else None

    def read(self, start: int, stop: int) -> NDArray[np.uint16]:
        """Tokens `start` to `stop` (N,). Raises `ValueError` outside the stream."""
        if not 0 <= start <= stop <= len(self):
            raise ValueError(f"tokens {start} to {stop} of a stream of {len(self)}")
        if start == stop:
            return np.empty(0, dtype=np.uint16)
        first = bisect_right(self._starts, start) - 1
        begin = self._starts[first]
        if stop <= self._starts[first + 1]:
            return np.asarray(self._shards[first][start - begin : stop - begin])
        parts = []
        while start < stop:
            shard, begin = self._shards[first], self._starts[first]
            parts.append(shard[start - begin : min(stop - begin, shard.size)])
            start, first = begin + shard.size, first + 1
        return np.concatenate(parts)

    @property
    def decoded_bytes(self) -> int:
        """Bytes of text that all tokens stand for, the length of `text()`."""
        if self._decoded_bytes is None:
            total, before = 0, self._before_first()
            for start in range(0, len(self), _AT_ONCE):
                part = self.read(start, min(start + _AT_ONCE, len(self))).astype(np.int64)
                total += int(self.tokenizer.target_bytes(np.concatenate([[before], part[:-1]]), part).sum())
                before = int(part[-1])
            self._decoded_bytes = total
        return self._decoded_bytes

    def text(self, start: int = 0, stop: int | None = None) -> bytes:
        """The text of tokens `start` to `stop`, documents run together, as the tokenizer gives it back."""
        tokens = self.read(start, len(self) if stop is None else stop)
        return self.tokenizer.decode(tokens, previous=int(self.read(start - 1, start)[0]) if start else None)

    def _before_first(self) -> int:
        """A token of text: what precedes the stream is unknown, and taken for the middle of a document."""
        return next(i for i in range(self.tokenizer.vocab_size) if i not in self.tokenizer.control_ids)
