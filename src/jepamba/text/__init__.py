"""Document readers, and tokenizers that report the exact byte count of every token."""

from jepamba.text.documents import read_documents
from jepamba.text.embedded import stdlib_documents
from jepamba.text.tokenizers import (
    ByteTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    load_tokenizer,
    read_tokenizer,
    train_bpe,
)

__all__ = [
    "ByteTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "load_tokenizer",
    "read_documents",
    "read_tokenizer",
    "stdlib_documents",
    "train_bpe",
]
