"""A read-only stream of tokens over one or more shards.

Legend: N tokens.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from jepamba.data.shards import Shard, check_tokens
from jepamba.errors import UserError
from jepamba.text.protocol import join_documents, utf8
from jepamba.text.tokenizers import Tokenizer
from jepamba.text.unrestored import Unrestored, compare

_CHUNK_TOKENS = 1 << 22


class Tokens:
    """Shards as one stream, with their tokenizer.

    Arguments: `shards`: files or arrays (N_i,) of tokens, in order; `tokenizer`: the tokenizer of the shards;
    `text_bytes`: recorded bytes of the original text; `recorded_bytes`: recorded bytes that the tokens decode to, which
    differ from `text_bytes` if the tokenizer normalizes text; `unrestored`: what the tokens do not give back of the
    original text. None means not recorded. `bad_rows`: rows of the text that were left out.
    """

    def __init__(
        self,
        shards: Sequence[Shard | NDArray[np.uint16]],
        tokenizer: Tokenizer,
        text_bytes: int | None = None,
        recorded_bytes: int | None = None,
        unrestored: Unrestored | None = None,
        bad_rows: int = 0,
    ) -> None:
        self.tokenizer = tokenizer
        self.text_bytes, self.recorded_bytes, self.unrestored = text_bytes, recorded_bytes, unrestored
        self.bad_rows = bad_rows
        self._shards = [shard for shard in shards if len(shard)]
        self._starts = [0]
        for shard in self._shards:
            self._starts.append(self._starts[-1] + len(shard))
        self._decoded_bytes: int | None = None

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def bos_id(self) -> int | None:
        """The token that starts each document, or None if nothing separates documents."""
        return self.tokenizer.bos_id if self.tokenizer.separator else None

    def read(self, start: int, stop: int) -> NDArray[np.uint16]:
        """Read tokens `start` to `stop` (N,).

        Raises `ValueError` outside the stream. Raises `UserError` with the shard name for a token ≥ `vocab_size`.
        """
        self.prefetch(start, stop)
        parts = [self._read_shard(*piece) for piece in self._pieces(start, stop)]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, dtype=np.uint16), *parts])

    def prefetch(self, start: int, stop: int) -> None:
        """Ask the system to read tokens `start` to `stop` in the background."""
        for index, first, last in self._pieces(start, stop):
            shard = self._shards[index]
            if isinstance(shard, Shard):
                shard.prefetch(first, last)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield (shard index, start, stop within the shard) for each shard of tokens `start` to `stop`."""
        if not 0 <= start <= stop <= len(self):
            raise ValueError(f"tokens {start} to {stop} are outside a stream of {len(self)}")
        index = bisect_right(self._starts, start) - 1
        while start < stop:
            begin, end = self._starts[index], self._starts[index + 1]
            yield index, start - begin, min(stop, end) - begin
            start, index = end, index + 1

    def _read_shard(self, index: int, start: int, stop: int) -> NDArray[np.uint16]:
        shard = self._shards[index]
        part = shard[start:stop]
        name = str(shard.path) if isinstance(shard, Shard) else "the tokens"
        check_tokens(part, self.tokenizer.vocab_size, name, start)
        return part

    @property
    def decoded_bytes(self) -> int:
        """Bytes that all tokens decode to: the length of `text()`."""
        if self._decoded_bytes is None:
            total, before = 0, self._before_first()
            for start in range(0, len(self), _CHUNK_TOKENS):
                part = self.read(start, min(start + _CHUNK_TOKENS, len(self))).astype(np.int64)
                total += int(self.tokenizer.target_bytes(np.concatenate([[before], part[:-1]]), part).sum())
                before = int(part[-1])
            self._decoded_bytes = total
        return self._decoded_bytes

    @property
    def loss(self) -> str:
        """What the tokens do not give back of the original text, in words. Empty if nothing is lost or known."""
        return "" if self.unrestored is None else self.unrestored.in_words(self.text_bytes or 0)

    @property
    def original_per_decoded(self) -> float:
        """Original bytes for each decoded byte of the whole stream, or 1 if one of them is not recorded."""
        return self.text_bytes / self.recorded_bytes if self.text_bytes and self.recorded_bytes else 1.0

    def text(self, start: int = 0, stop: int | None = None) -> bytes:
        """Decode tokens `start` to `stop`, without separators between documents."""
        tokens = self.read(start, len(self) if stop is None else stop)
        return self.tokenizer.decode(tokens, previous=int(self.read(start - 1, start)[0]) if start else None)

    def _before_first(self) -> int:
        """Return a text token, because the stream is assumed to start in the middle of a document."""
        return next(i for i in range(self.tokenizer.vocab_size) if i not in self.tokenizer.control_ids)


def tokens_in_memory(documents: Iterable[str], tokenizer: Tokenizer) -> Tokens:
    """Encode `documents` as a stream, with the tokens and the byte counts that a file with these documents has.

    Raises `UserError` for a NUL in a document, and for text that has no UTF-8 form.
    """
    texts = list(documents)
    if any("\0" in text for text in texts):
        raise UserError("the text contains a NUL, which separates documents: give a list with a text for each document")
    ids = join_documents(tokenizer, tokenizer.encode_batch(texts))
    text, decoded = "".join(texts), tokenizer.decode(ids)
    return Tokens([ids], tokenizer, len(utf8(text)), len(decoded), compare(text, decoded))
