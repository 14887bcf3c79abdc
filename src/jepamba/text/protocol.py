"""What the rest of the house asks of a tokenizer, and the types that they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from jepamba.errors import UserError

Ids = Sequence[int] | NDArray[np.integer]
"""Token ids, as a list or as an array of any integer type."""

Kind = Literal["bytes", "sentencepiece"]


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back, and how many bytes of text each id stands for.

    A document is the ids of its text with `bos_id` in front. `decode([bos_id, *encode(text)])` is the text, and its
    length is the sum of `target_bytes` over those ids: the bytes that bits per byte divides by (spec section 3).
    """

    kind: Kind
    vocab_size: int
    bos_id: int
    separator: bool
    """Whether documents are separated by `bos_id`; False only for byte shards whose every symbol is text."""
    control_ids: frozenset[int]
    """Ids that stand for no text: they cost loss and count 0 bytes."""
    fingerprint: str
    """sha256 (hex) of kind and blob: equal for tokenizers that treat all text alike."""

    def encode(self, text: str) -> NDArray[np.uint16]:
        """The ids of `text`, without BOS. Raises `UserError` for text that has no UTF-8 form."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint16]]:
        """`encode` of each text, on all cores where that is cheap."""
        ...

    def decode(self, ids: Ids, previous: int | None = None) -> bytes:
        """The bytes of text that `ids` stand for: exactly those that `target_bytes` counts.

        Arguments: `ids`, any slice of a token stream, document starts included; `previous`, the id before the slice
        (None: some token of text, that is, the slice starts in the middle of a document). Control ids give nothing.
        Decoding a stream piece by piece, each with the `previous` of its cut, gives the bytes of the whole.
        Raises `ValueError` for an id outside the vocabulary.
        """
        ...

    def target_bytes(self, previous_N: Ids, targets_N: Ids) -> NDArray[np.int64]:
        """Bytes of text that each target adds, given the token before it; any shape, as long as both agree.

        Raises `ValueError` for an id outside the vocabulary.
        """
        ...

    def serialize(self) -> bytes:
        """The blob from which `load_tokenizer(kind, blob)` makes this tokenizer again."""
        ...

    def lossless_on(self, text: str) -> bool:
        """Whether `text` comes back from its ids to the byte (a given model may normalise it)."""
        ...


def utf8(text: str) -> bytes:
    """`text` in UTF-8. Raises `UserError` where it holds half a surrogate pair, which has none."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"text holds U+{ord(text[error.start]):04X}, half a surrogate pair, at character {error.start}: "
            "that is no text, take it out"
        ) from None


def join_documents(tokenizer: Tokenizer, documents: Sequence[NDArray[np.uint16]]) -> NDArray[np.uint16]:
    """One stream (N,) of the encoded `documents`: each has BOS in front where the tokenizer separates documents."""
    start = [np.array([tokenizer.bos_id], dtype=np.uint16)] if tokenizer.separator else []
    return np.concatenate([np.empty(0, dtype=np.uint16), *(part for ids in documents for part in (*start, ids))])


def checked(ids: Ids, vocab_size: int) -> NDArray[np.int64]:
    """`ids` as int64, each within the vocabulary; else `ValueError`."""
    array = np.asarray(ids, dtype=np.int64)
    if array.size and (array.min() < 0 or array.max() >= vocab_size):
        raise ValueError(f"token ids from {array.min()} to {array.max()} in a vocabulary of {vocab_size}")
    return array
