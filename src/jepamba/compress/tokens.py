"""Any bytes as the tokens of an artifact's tokenizer, and the bytes that these tokens stand for.

A NUL becomes BOS where the tokenizer separates documents, as it was when the model was trained. A tokenizer that
normalises text, or cannot spell every byte, gives back something a little different: see `corrections.py`.

Legend: N tokens.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from jepamba.text import SentencePieceTokenizer, Tokenizer

Ids = NDArray[np.uint16]

_NO_TEXT = re.compile("([\udc80-\udcff]+)")
"""Bytes that are no UTF-8, as Python's `surrogateescape` shows them."""


def to_ids(tokenizer: Tokenizer, data: bytes) -> Ids:
    """The tokens (N,) of `data`, without the BOS that stands before the first. Takes any bytes."""
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return np.frombuffer(data, dtype=np.uint8).astype(np.uint16)
    documents = [_NO_TEXT.split(raw.decode("utf-8", "surrogateescape")) for raw in data.split(b"\0")]
    # The pattern's group alternates: text, no text, text, …
    texts = iter(tokenizer.encode_batch([part for parts in documents for part in parts[::2]]))
    found: list[Ids] = []
    for parts in documents:
        found.append(np.array([tokenizer.bos_id], dtype=np.uint16))
        for index, part in enumerate(parts):
            found.append(tokenizer.spell(part.encode("utf-8", "surrogateescape")) if index % 2 else next(texts))
    return np.concatenate(found)[1:]


def byte_lengths(tokenizer: Tokenizer, ids: Ids) -> NDArray[np.int64]:
    """Bytes (N,) that each token adds to `to_bytes`."""
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return np.ones(ids.size, dtype=np.int64)
    previous = np.concatenate([np.array([tokenizer.bos_id], dtype=np.uint16), ids[:-1]])
    return np.where(ids == tokenizer.bos_id, 1, tokenizer.target_bytes(previous, ids))


def to_bytes(tokenizer: Tokenizer, ids: Ids) -> bytes:
    """The bytes that tokens (N,) stand for, the inverse of `to_ids` where the tokenizer loses nothing."""
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return ids.astype(np.uint8).tobytes()
    documents = np.split(ids, np.flatnonzero(ids == tokenizer.bos_id))
    return b"\0".join(
        tokenizer.decode(document[index > 0 :], previous=tokenizer.bos_id) for index, document in enumerate(documents)
    )
