"""Byte counts for bits per byte: counted by token, checked against the decoded text, scaled to the original text.

Legend: N targets.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepamba.data.tokens import Tokens
from jepamba.errors import UserError

_CHUNK_TOKENS = 1 << 16
"""Targets counted and decoded in one step."""

Counted = Literal["original", "scaled", "decoded"]


class TextBytes(NamedTuple):
    """Text bytes of a range of targets."""

    original: int
    """Bytes of the text before tokenization. `counted` says how exact this is."""
    decoded: int
    """Bytes of the decoded text. Always exact."""
    counted: Counted
    """How `original` was obtained. `original`: exactly. `scaled`: the tokenizer changes its text and the targets are
    only some of it, so `original` is `decoded` times the ratio of original to decoded bytes of the whole text, but at
    most `decoded`. `decoded`: the length of the original is unknown, so `original` equals `decoded`."""


def text_bytes(tokens: Tokens, targets: int) -> TextBytes:
    """Return the text bytes of the stream's first `targets` targets.

    Raises `UserError` if the count differs from the length of the decoded text (see `counted_bytes`), if the stream
    does not match its `meta.json`, or if the text is empty.
    """
    decoded = counted_bytes(tokens, targets)
    counted: Counted = "decoded"
    original = decoded
    if tokens.text_bytes is not None:
        total = tokens.decoded_bytes
        if tokens.recorded_bytes not in (None, total):
            raise UserError(
                f"these tokens decode to {total:,} bytes, but {tokens.recorded_bytes:,} were recorded when they were "
                "built: the shards or the tokenizer have changed since; rebuild them"
            )
        # Exact for the whole stream, and for any prefix if the tokenizer is lossless.
        original = round(decoded * tokens.text_bytes / max(total, 1))
        counted = "original" if decoded == total or tokens.text_bytes == total else "scaled"
        if counted == "scaled":
            # The characters that the tokens lack may all come after these targets, which would then look too good.
            original = min(original, decoded)
    if min(original, decoded) <= 0:
        raise UserError(_nothing_to_score(tokens))
    return TextBytes(original, decoded, counted)


def check_scorable(tokens: Tokens, limit: int = 0) -> None:
    """Raise `UserError` if the first `limit` targets (0: all) decode to no bytes. Reads up to the first that does."""
    targets = min(limit or len(tokens), len(tokens) - 1)
    for start in range(0, targets, _CHUNK_TOKENS):
        ids = tokens.read(start, min(start + _CHUNK_TOKENS, targets) + 1)
        if tokens.tokenizer.target_bytes(ids[:-1], ids[1:]).any():
            return
    raise UserError(_nothing_to_score(tokens))


def _nothing_to_score(tokens: Tokens) -> str:
    if not tokens.loss:
        return "nothing to score: the text has no bytes"
    return f"nothing to score: {tokens.loss}; use a tokenizer with byte fallback"


def counted_bytes(tokens: Tokens, targets: int) -> int:
    """Count the text bytes of the stream's first `targets` targets, token by token.

    Raises `UserError`, which names the first wrong token, if the count differs from the length of the decoded text.
    """
    total = 0
    for start in range(0, targets, _CHUNK_TOKENS):
        ids = tokens.read(start, min(start + _CHUNK_TOKENS, targets) + 1)
        counted = int(tokens.tokenizer.target_bytes(ids[:-1], ids[1:]).sum())
        text = tokens.tokenizer.decode(ids[1:], previous=int(ids[0]))
        if counted != len(text):
            raise UserError(_mismatch(tokens, start, ids, counted - len(text)))
        total += counted
    return total


def _mismatch(tokens: Tokens, start: int, ids: NDArray[np.uint16], excess: int) -> str:
    """Describe the first token of `ids[1:]` whose byte count is wrong. `ids[0]` has position `start` in the stream."""
    tokenizer = tokens.tokenizer
    counted_N = tokenizer.target_bytes(ids[:-1], ids[1:])
    for index, counted in enumerate(counted_N.tolist(), start=1):
        piece = tokenizer.decode(ids[index : index + 1], previous=int(ids[index - 1]))
        if len(piece) != counted:
            return (
                f"byte accounting is wrong from position {start + index} of the stream on: token {int(ids[index])}, "
                f"which decodes to {piece!r}, counts {counted} bytes and has {len(piece)}"
            )
    return (
        f"byte accounting is wrong between positions {start + 1} and {start + len(ids) - 1} of the stream: each "
        f"token alone is correct, but their total differs from the length of their text by {excess:+d} bytes"
    )
