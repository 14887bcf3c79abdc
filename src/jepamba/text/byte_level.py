"""Byte mode: every byte of the text is one symbol."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jepamba.errors import UserError
from jepamba.text.protocol import Ids, Kind, checked, utf8

_BLOBS = {True: b"byte 0 separates documents", False: b"every symbol is one byte of text"}


class ByteTokenizer:
    """256 symbols, one a byte.

    Arguments: `separator`. True, as in our own data: byte 0 is BOS; it costs loss and counts 0 bytes, so text may not
    hold it. False, as in published byte shards: nothing separates documents and every symbol, 0 too, is one byte.
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
        """The tokenizer that `serialize` described; an empty blob leaves it to `separator`. `UserError` otherwise."""
        for value, known in _BLOBS.items():
            if blob == known:
                return cls(value)
        if blob:
            raise UserError("byte tokenizer: its description is damaged")
        return cls(separator)

    def encode(self, text: str) -> NDArray[np.uint16]:
        """The UTF-8 bytes of `text`. Raises `UserError` for a NUL in the text if it separates documents."""
        raw = utf8(text)
        if self.separator and b"\0" in raw:
            raise UserError("text holds a NUL, which separates documents in byte mode: split the text there")
        return np.frombuffer(raw, dtype=np.uint8).astype(np.uint16)

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint16]]:
        """`encode` of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Ids, previous: int | None = None) -> bytes:
        """The bytes that `ids` stand for; separators give nothing, and `previous` changes nothing here."""
        array = checked(ids, self.vocab_size)
        return (array[array != 0] if self.separator else array).astype(np.uint8).tobytes()

    def target_bytes(self, previous_N: Ids, targets_N: Ids) -> NDArray[np.int64]:
        """1 for each target, 0 for a separator."""
        targets = checked(targets_N, self.vocab_size)
        return (targets != 0).astype(np.int64) if self.separator else np.ones_like(targets)

    def serialize(self) -> bytes:
        """A few words that say whether byte 0 separates documents."""
        return _BLOBS[self.separator]

    def lossless_on(self, text: str) -> bool:
        """True for all text that `encode` takes."""
        return self.decode(self.encode(text)) == utf8(text)
