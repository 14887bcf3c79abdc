"""The two tokenizer modes behind one protocol: bytes, and SentencePiece pieces (given, or trained here)."""

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

_MOST_BYTES = 64 << 20
"""Of a `.model` file; those in use have less than 5 MB."""


def load_tokenizer(kind: str, blob: bytes, separator: bool = True) -> Tokenizer:
    """The tokenizer that `tokenizer.serialize()` wrote.

    Arguments: `kind`, "bytes" or "sentencepiece"; `blob`, its serialized form; `separator`, for a byte tokenizer whose
    blob is empty, whether byte 0 separates documents. Raises `UserError` for an unknown kind or a bad blob.
    """
    if kind == "bytes":
        return ByteTokenizer.from_blob(blob, separator)
    if kind == "sentencepiece":
        return SentencePieceTokenizer(blob)
    raise UserError(f"unknown kind of tokenizer {kind!r}: there are bytes and sentencepiece")


def read_tokenizer(path: str | Path) -> SentencePieceTokenizer:
    """The tokenizer in a SentencePiece `.model` file. Raises `UserError` naming the file."""
    blob = read_untrusted(Path(path), "the tokenizer", _MOST_BYTES)
    try:
        return SentencePieceTokenizer(blob)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
