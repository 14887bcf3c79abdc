"""Loads the byte and the SentencePiece tokenizer."""

from __future__ import annotations

from pathlib import Path

from jepamba.errors import UserError
from jepamba.io import read_untrusted
from jepamba.text.bpe import train_bpe
from jepamba.text.byte_level import ByteTokenizer
from jepamba.text.pieces import SentencePieceTokenizer
from jepamba.text.protocol import Ids, Kind, Tokenizer

__all__ = [
    "ByteTokenizer",
    "Ids",
    "Kind",
    "SentencePieceTokenizer",
    "Tokenizer",
    "load_tokenizer",
    "read_tokenizer",
    "train_bpe",
]

_MAX_BYTES = 64 << 20
"""Maximum size of a `.model` file. Common models have less than 5 MB."""


def load_tokenizer(kind: str, blob: bytes, separator: bool = True) -> Tokenizer:
    """Restore a tokenizer from `tokenizer.serialize()`.

    Arguments: `kind`: "bytes" or "sentencepiece"; `blob`: the serialized tokenizer; `separator`: for a byte tokenizer
    with an empty blob, whether byte 0 separates documents. Raises `UserError` for an unknown kind or an invalid blob.
    """
    if kind == "bytes":
        return ByteTokenizer.from_blob(blob, separator)
    if kind == "sentencepiece":
        return SentencePieceTokenizer(blob)
    raise UserError(f"unknown kind of tokenizer {kind!r}: use bytes or sentencepiece")


def read_tokenizer(path: str | Path) -> SentencePieceTokenizer:
    """Read a SentencePiece `.model` file. Raises `UserError` with the file name."""
    blob = read_untrusted(Path(path), "the tokenizer", _MAX_BYTES)
    try:
        return SentencePieceTokenizer(blob)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
