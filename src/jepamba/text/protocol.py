"""The tokenizer interface and its types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from jepamba.errors import UserError

Ids = Sequence[int] | NDArray[np.integer]
"""Token ids, as a list or as an array of any integer type."""

Kind = Literal["bytes", "sentencepiece"]

PIECE_CHARS = 1 << 20
"""Approximate characters of a piece of a long text."""


class Continuation(str):
    """A part of a long document that continues the text before it. A text of another type starts a document."""

    __slots__ = ()


@runtime_checkable
class Tokenizer(Protocol):
    """Converts text to ids and back, and counts the bytes of text of each id.

    A document is `bos_id`, then the ids of its text. `decode([bos_id, *encode(text)])` returns the text. Its length is
    the sum of `target_bytes` over these ids, which is the denominator of bits per byte.
    """

    kind: Kind
    vocab_size: int
    bos_id: int
    separator: bool
    """Whether `bos_id` starts each document. False only for byte shards in which every token is text."""
    control_ids: frozenset[int]
    """Ids without text: they add to the loss and count 0 bytes."""
    fingerprint: str
    """SHA-256 (hex) of kind and blob. Tokenizers with equal fingerprints encode equally."""

    def encode(self, text: str) -> NDArray[np.uint16]:
        """Return the ids of `text` without BOS. Raises `UserError` for text that has no UTF-8 form."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint16]]:
        """Encode each text, on several cores where that is cheap."""
        ...

    def encode_pieces(self, texts: Iterable[str]) -> Iterator[tuple[str, NDArray[np.uint16]]]:
        """Cut a long text, the concatenation of `texts`, into pieces of about `PIECE_CHARS` characters with their ids.

        The ids of all pieces are those of `encode` of the whole, but the memory does not grow with the text.
        """
        ...

    def decode(self, ids: Ids, previous: int | None = None) -> bytes:
        """Return the bytes of text of `ids`: exactly the bytes that `target_bytes` counts. Control ids give no bytes.

        Consecutive slices, each decoded with its `previous`, give the bytes of the whole stream.

        Arguments: `ids`: any slice of a token stream, document starts included; `previous`: the id before the slice, or
        None if the slice starts in the middle of a document. Raises `ValueError` for an id outside the vocabulary.
        """
        ...

    def target_bytes(self, previous_N: Ids, targets_N: Ids) -> NDArray[np.int64]:
        """Count the bytes of text of each target, given the token before it. Both arrays have the same shape.

        Raises `ValueError` for an id outside the vocabulary.
        """
        ...

    def serialize(self) -> bytes:
        """Return the blob from which `load_tokenizer(kind, blob)` restores this tokenizer."""
        ...


def sliced(texts: Iterable[str], size: int) -> Iterator[str]:
    """Yield `texts` in slices of at most `size` characters."""
    for text in texts:
        for at in range(0, len(text), size):
            yield text[at : at + size]


def utf8(text: str) -> bytes:
    """Encode `text` as UTF-8. Raises `UserError` for half a surrogate pair, which has no UTF-8 form."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text contains U+{ord(text[error.start]):04X}, half a surrogate pair, at character {error.start}: "
            "remove it, it has no UTF-8 form"
        ) from None


def join_documents(tokenizer: Tokenizer, documents: Sequence[NDArray[np.uint16]]) -> NDArray[np.uint16]:
    """One stream (N,) of the encoded `documents`: each has BOS in front where the tokenizer separates documents."""
    start = [np.array([tokenizer.bos_id], dtype=np.uint16)] if tokenizer.separator else []
    return np.concatenate([np.empty(0, dtype=np.uint16), *(part for ids in documents for part in (*start, ids))])


def checked(ids: Ids, vocab_size: int) -> NDArray[np.int64]:
    """Return `ids` as int64. Raises `ValueError` for an id outside the vocabulary."""
    array = np.asarray(ids, dtype=np.int64)
    if array.size and (array.min() < 0 or array.max() >= vocab_size):
        raise ValueError(f"token ids range from {array.min()} to {array.max()}, outside the vocabulary of {vocab_size}")
    return array
