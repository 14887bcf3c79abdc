"""The section `[data]`: what text is read and how it becomes windows of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jepamba.config.checks import require


@dataclass(frozen=True)
class Data:
    """What text is read, how it becomes tokens, and how tokens become windows."""

    train: str = "stdlib"
    """Training text: a file, a folder, a folder of shards, a data set of the Hugging Face hub (`hf://owner/name`), or
    `stdlib` (the English inside Python itself)."""
    val: str = ""
    """Validation text, same forms; empty: `holdout` of the training documents are kept out for it."""
    holdout: float = 0.1
    """Share of the training documents kept for validation when `val` is empty."""
    column: str = "text"
    """The column of JSONL and parquet input that holds the text."""
    tokenizer: str = "bpe"
    """`bytes`, `bpe` (trained on the training text), or the path of a SentencePiece `.model`."""
    vocab: int = 8192
    """Pieces of a tokenizer that is trained here (`tokenizer = "bpe"`)."""
    byte_separator: Literal["auto", "yes", "no"] = "auto"
    """Byte mode: whether the symbol 0 separates documents (0 bytes of text) or is text itself. `auto`: our own data
    says so in its `meta.json`; shards without one are scored as published, every symbol one byte."""
    seq_len: int = 1024
    """Window length in tokens."""
    shuffle: bool = True
    """Visit the windows of an epoch in a seeded random order; off: in order."""
    reset: bool = True
    """Reset the recurrent state where a document starts."""
    cache: str = ""
    """Folder for tokenized shards; empty: `$XDG_CACHE_HOME/jepamba` or `~/.cache/jepamba`."""

    def __post_init__(self) -> None:
        require(0.0 < self.holdout < 1.0, f"data.holdout = {self.holdout}: must lie between 0 and 1")
        require(self.seq_len >= 2, f"data.seq_len = {self.seq_len}: a window needs at least 2 tokens")
        require(
            self.tokenizer in ("bytes", "bpe") or self.tokenizer.endswith(".model"),
            f"data.tokenizer = {self.tokenizer!r}: use bytes, bpe or the path of a SentencePiece .model",
        )
        require(
            264 <= self.vocab <= 65536,
            f"data.vocab = {self.vocab}: a trained tokenizer has 264 (bytes and controls) to 65,536 pieces",
        )
