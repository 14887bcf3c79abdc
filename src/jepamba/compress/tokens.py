"""Convert any bytes to tokens of an artifact's tokenizer, and tokens to bytes.

A NUL becomes BOS if the tokenizer separates documents, as in training. A tokenizer that normalizes text, or cannot
represent every byte, does not reproduce the input exactly: see `corrections.py`.

Legend: N tokens.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from jepamba.text import SentencePieceTokenizer, Tokenizer

Ids = NDArray[np.uint16]

_INVALID_UTF8 = re.compile("([\udc80-\udcff]+)")
"""Bytes that are not UTF-8, as `surrogateescape` decodes them."""


def to_ids(tokenizer: Tokenizer, data: bytes) -> Ids:
    """Return the tokens (N,) of any bytes, without an initial BOS."""
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return np.frombuffer(data, dtype=np.uint8).astype(np.uint16)
    documents = [_INVALID_UTF8.split(raw.decode("utf-8", "surrogateescape")) for raw in data.split(b"\0")]
    # Splitting by a group alternates: text, invalid bytes, text, …
    texts = iter(tokenizer.encode_batch([piece for pieces in documents for piece in pieces[::2]]))
    ids: list[Ids] = []
    for pieces in documents:
        ids.append(np.array([tokenizer.bos_id], dtype=np.uint16))
        for index, piece in enumerate(pieces):
            ids.append(tokenizer.spell(piece.encode("utf-8", "surrogateescape")) if index % 2 else next(texts))
    return np.concatenate(ids)[1:]


def byte_lengths(tokenizer: Tokenizer, ids: Ids) -> NDArray[np.int64]:
    """Return the number of bytes (N,) that each token adds to `to_bytes`."""
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return np.ones(ids.size, dtype=np.int64)
    previous = np.concatenate([np.array([tokenizer.bos_id], dtype=np.uint16), ids[:-1]])
    return np.where(ids == tokenizer.bos_id, 1, tokenizer.target_bytes(previous, ids))


def to_bytes(tokenizer: Tokenizer, ids: Ids) -> bytes:
    """Return the bytes of tokens (N,). For a lossless tokenizer this inverts `to_ids`."""
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return ids.astype(np.uint8).tobytes()
    documents = np.split(ids, np.flatnonzero(ids == tokenizer.bos_id))
    return b"\0".join(
        tokenizer.decode(document[index > 0 :], previous=tokenizer.bos_id) for index, document in enumerate(documents)
    )
