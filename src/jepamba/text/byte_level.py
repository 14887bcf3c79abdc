"""The byte tokenizer: one token per byte of UTF-8."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from jepamba.errors import UserError
from jepamba.text.protocol import PIECE_CHARS, Ids, Kind, checked, sliced, utf8

_BLOBS = {True: b"byte 0 separates documents", False: b"every symbol is one byte of text"}


class ByteTokenizer:
    """A tokenizer of 256 tokens, one per byte value.

    Arguments: `separator`. True (data built by jepamba): byte 0 is BOS, adds to the loss and counts 0 bytes; text must
    not contain it. False (published byte shards): nothing separates documents, and every token is one byte of text.
    """

    kind: Kind = "bytes"
    vocab_size = 256
    bos_id = 0

    def __init__(self, separator: bool = True) -> None:
        self.separator = separator
        self.control_ids = frozenset({0}) if separator else frozenset[int]()
        self.fingerprint = hashlib.sha256(b"bytes" + self.serialize()).hexdigest()

    @classmethod
    def from_blob(cls, blob: bytes, separator: bool) -> ByteTokenizer:
        """Restore the tokenizer from `serialize()`; `separator` decides for an empty blob. Raises `UserError`."""
        for value, known in _BLOBS.items():
            if blob == known:
                return cls(value)
        if blob:
            raise UserError("the description of the byte tokenizer is damaged")
        return cls(separator)

    def encode(self, text: str) -> NDArray[np.uint16]:
        """Return the UTF-8 bytes of `text`. Raises `UserError` for a NUL in the text if byte 0 is the separator."""
        raw = utf8(text)
        if self.separator and b"\0" in raw:
            raise UserError("the text contains a NUL, which separates documents in byte mode: split the text there")
        return np.frombuffer(raw, dtype=np.uint8).astype(np.uint16)

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint16]]:
        """Encode each text."""
        return [self.encode(text) for text in texts]

    def encode_pieces(self, texts: Iterable[str]) -> Iterator[tuple[str, NDArray[np.uint16]]]:
        """Yield the pieces of a long text, each with its ids."""
        for piece in sliced(texts, PIECE_CHARS):
            yield piece, self.encode(piece)

    def decode(self, ids: Ids, previous: int | None = None) -> bytes:
        """Return the bytes of `ids`. Separators give no bytes. `previous` has no effect."""
        array = checked(ids, self.vocab_size)
        return (array[array != 0] if self.separator else array).astype(np.uint8).tobytes()

    def target_bytes(self, previous_N: Ids, targets_N: Ids) -> NDArray[np.int64]:
        """Return 1 for each target, and 0 for a separator."""
        targets = checked(targets_N, self.vocab_size)
        return (targets != 0).astype(np.int64) if self.separator else np.ones_like(targets)

    def serialize(self) -> bytes:
        """Return a short text that says whether byte 0 separates documents."""
        return _BLOBS[self.separator]
