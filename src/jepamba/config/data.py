"""The section `[data]`: text, tokenizer and windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jepamba.config.checks import require


@dataclass(frozen=True)
class Data:
    """Text, tokenizer and windows."""

    train: str = "stdlib"
    """Training text: a file, a folder, a folder of shards, a data set of the Hugging Face hub (`hf://owner/name`), or
    `stdlib` (the English text in Python's standard library)."""
    val: str = ""
    """Validation text, in the same forms; empty: the share `holdout` of the training documents."""
    holdout: float = 0.1
    """Share of the training documents held out for validation if `val` is empty."""
    column: str = "text"
    """Text column of JSONL and parquet input."""
    skip_bad: int = 0
    """Bad rows, and documents that are not UTF-8, that are left out and counted; one more ends the command."""
    tokenizer: str = "bpe"
    """`bytes`, `bpe` (trained on the training text), or the path of a SentencePiece `.model`."""
    vocab: int = 8192
    """Vocabulary size of a trained tokenizer (`tokenizer = "bpe"`)."""
    byte_separator: Literal["auto", "yes", "no"] = "auto"
    """Byte mode: whether symbol 0 is a document separator (0 bytes) or text (1 byte). `auto`: as in the data's
    `meta.json`; without one, text."""
    seq_len: int = 1024
    """Window length in tokens."""
    shuffle: bool = True
    """Shuffle the windows of each epoch; off: in order."""
    reset: bool = True
    """Reset the recurrent state at the start of each document."""
    cache: str = ""
    """Folder for tokenized shards; empty: `$XDG_CACHE_HOME/jepamba` or `~/.cache/jepamba`."""

    def __post_init__(self) -> None:
        require(0.0 < self.holdout < 1.0, f"data.holdout = {self.holdout}: must lie between 0 and 1")
        require(self.skip_bad >= 0, f"data.skip_bad = {self.skip_bad}: must not be negative")
        require(self.seq_len >= 2, f"data.seq_len = {self.seq_len}: a window needs at least 2 tokens")
        require(
            self.tokenizer in ("bytes", "bpe") or self.tokenizer.endswith(".model"),
            f"data.tokenizer = {self.tokenizer!r}: use bytes, bpe or the path of a SentencePiece .model",
        )
        require(
            264 <= self.vocab <= 65536,
            f"data.vocab = {self.vocab}: a trained tokenizer has 264 (bytes and controls) to 65,536 pieces",
        )
