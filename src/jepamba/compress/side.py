"""The section of corrections: after each token a bit says whether one begins in its bytes; the few are spelled out.

What comes after which tokens is learned on the way, so that a paragraph's end after a full stop costs little and its
absence next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from jepamba.compress.adaptive import Frequencies, MixedBit
from jepamba.compress.coder import SYMBOLS_PER_BYTE, SymbolCoder, SymbolDecoder, SymbolEncoder
from jepamba.compress.corrections import Correction
from jepamba.compress.tokens import Ids
from jepamba.errors import UserError

_KINDS = 256
"""Kinds of corrections that are remembered; 0 stands for one that is not."""
_END = -1
"""In place of a token: the end of the text."""
_NONE = Correction(1 << 62, 0, b"")
"""After the last correction."""


def write_corrections(changes: Sequence[Correction], ids: Ids, lengths: NDArray[np.int64]) -> bytes:
    """The section; no bytes for no corrections. `lengths` are the tokens' bytes."""
    if not changes:
        return b""
    writer = SymbolEncoder()
    written = sum(1 for _ in _code(writer, ids, lengths, changes))
    return writer.finish(written)


def read_corrections(section: bytes, ids: Ids, lengths: NDArray[np.int64]) -> Iterator[Correction]:
    """The corrections in `section`, as they are read. Raises `UserError` if there are more than its size can hold."""
    if section:
        for count, change in enumerate(_code(SymbolDecoder(section), ids, lengths, ())):
            if count == len(section) * SYMBOLS_PER_BYTE:
                raise UserError("it has more corrections than a section of its size can hold")
            yield change


class _Kinds:
    """What is dropped and put: one of those seen before, which depends on the one before it, or a new one."""

    def __init__(self) -> None:
        self._known: list[tuple[int, bytes]] = [(0, b"")]
        self._index = {self._known[0]: 0}
        self._after = [Frequencies(_KINDS)]
        self._last = 0
        self._drops, self._sizes, self._bytes = Frequencies(256), Frequencies(256), Frequencies(256)

    def code(self, coder: SymbolCoder, drop: int, put: bytes) -> tuple[int, bytes]:
        """(bytes dropped, bytes put)."""
        which = self._last = self._after[self._last].code(coder, self._index.get((drop, put), 0))
        if which >= len(self._known):
            raise UserError("its corrections are damaged")
        if which:
            return self._known[which]
        drop = self._drops.code(coder, drop)
        size = self._sizes.code(coder, len(put))
        put = bytes(self._bytes.code(coder, put[k] if coder.writing else 0) for k in range(size))
        if len(self._known) < _KINDS:
            self._index[drop, put] = len(self._known)
            self._known.append((drop, put))
            self._after.append(Frequencies(_KINDS))
        return drop, put


def _code(
    coder: SymbolCoder, ids: Ids, lengths: NDArray[np.int64], changes: Sequence[Correction]
) -> Iterator[Correction]:
    """Both directions: writes `changes`, or reads what is yielded."""
    begins, more, inside = MixedBit(4), MixedBit(1), MixedBit(1)
    kinds = _Kinds()
    left = iter(changes)
    change = next(left, _NONE)
    start, since, before = 0, 0, _END
    for token, length in chain(zip(ids.tolist(), lengths.tolist(), strict=True), [(_END, 0)]):
        end = start + length if token != _END else _NONE.at
        contexts = (before, token, (before, token), (before, min(since.bit_length(), 9)))
        here = begins.code(coder, contexts, change.at < end)
        since += 1
        while here:
            since = 0
            within = inside.code(coder, (0,), change.at > start) if length > 1 else 0
            at = start + (1 + coder.even(length - 1, change.at - start - 1) if within else 0)
            yield Correction(at, *kinds.code(coder, change.drop, change.put))
            change = next(left, _NONE)
            here = more.code(coder, (0,), change.at < end)
        start, before = end, token
