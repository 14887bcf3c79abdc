"""The section of corrections. A bit for each token says whether a correction starts in its bytes.

Adaptive models learn which corrections follow which tokens, so that frequent patterns cost little: for example the end
of a paragraph after a full stop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from jepamba.compress.adaptive import Frequencies, MixedBit
from jepamba.compress.corrections import Correction
from jepamba.compress.range_coder import SYMBOLS_PER_BYTE, RangeCoder, RangeDecoder, RangeEncoder
from jepamba.compress.tokens import Ids
from jepamba.errors import UserError

_MAX_EDITS = 256
"""Number of distinct edits (dropped size, inserted bytes) that are remembered; 0 introduces a new one."""
_END = -1
"""Pseudo-token for the end of the text."""
_NONE = Correction(1 << 62, 0, b"")
"""Sentinel after the last correction."""


def encode_corrections(changes: Sequence[Correction], ids: Ids, lengths: NDArray[np.int64]) -> bytes:
    """Encode the section; it is empty without corrections. `lengths` holds the bytes of each token (`byte_lengths`)."""
    if not changes:
        return b""
    encoder = RangeEncoder()
    written = sum(1 for _ in _code(encoder, ids, lengths, changes))
    return encoder.finish(written)


def decode_corrections(section: bytes, ids: Ids, lengths: NDArray[np.int64]) -> Iterator[Correction]:
    """Yield the corrections of `section`. Raises `UserError` if there are more than its size can hold."""
    if section:
        for count, change in enumerate(_code(RangeDecoder(section), ids, lengths, ())):
            if count == len(section) * SYMBOLS_PER_BYTE:
                raise UserError("it has more corrections than a section of its size can hold")
            yield change


class _EditModel:
    """A model of edits: a known edit, predicted from the previous one, or a new edit."""

    def __init__(self) -> None:
        self._known: list[tuple[int, bytes]] = [(0, b"")]
        self._index = {self._known[0]: 0}
        self._next_edit = [Frequencies(_MAX_EDITS)]
        self._last = 0
        self._drops, self._sizes, self._bytes = Frequencies(256), Frequencies(256), Frequencies(256)

    def code(self, coder: RangeCoder, drop: int, insert: bytes) -> tuple[int, bytes]:
        """Code an edit and return (number of dropped bytes, inserted bytes)."""
        which = self._last = self._next_edit[self._last].code(coder, self._index.get((drop, insert), 0))
        if which >= len(self._known):
            raise UserError("its corrections are damaged")
        if which:
            return self._known[which]
        drop = self._drops.code(coder, drop)
        size = self._sizes.code(coder, len(insert))
        insert = bytes(self._bytes.code(coder, insert[k] if coder.writing else 0) for k in range(size))
        if len(self._known) < _MAX_EDITS:
            self._index[drop, insert] = len(self._known)
            self._known.append((drop, insert))
            self._next_edit.append(Frequencies(_MAX_EDITS))
        return drop, insert


def _code(
    coder: RangeCoder, ids: Ids, lengths: NDArray[np.int64], changes: Sequence[Correction]
) -> Iterator[Correction]:
    """Encode `changes`, or decode corrections. Yields them in both directions."""
    begins, more, inside = MixedBit(4), MixedBit(1), MixedBit(1)
    edits = _EditModel()
    remaining = iter(changes)
    change = next(remaining, _NONE)
    start, tokens_since, previous = 0, 0, _END
    for token, length in chain(zip(ids.tolist(), lengths.tolist(), strict=True), [(_END, 0)]):
        end = start + length if token != _END else _NONE.at
        contexts = (previous, token, (previous, token), (previous, min(tokens_since.bit_length(), 9)))
        starts_here = begins.code(coder, contexts, change.at < end)
        tokens_since += 1
        while starts_here:
            tokens_since = 0
            starts_inside = inside.code(coder, (0,), change.at > start) if length > 1 else 0
            at = start + (1 + coder.uniform(length - 1, change.at - start - 1) if starts_inside else 0)
            yield Correction(at, *edits.code(coder, change.drop, change.insert))
            change = next(remaining, _NONE)
            starts_here = more.code(coder, (0,), change.at < end)
        start, previous = end, token
