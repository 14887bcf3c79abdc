"""The bytes that a score divides by: counted, compared with the decoded text, and related to the original text.

Legend: N targets.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepamba.data.tokens import Tokens
from jepamba.errors import UserError

_AT_ONCE = 1 << 16
"""Targets that are counted and decoded at a time."""

Counted = Literal["original", "scaled", "decoded"]


class TextBytes(NamedTuple):
    """Bytes of text that some targets stand for."""

    original: int
    """Of the text as it was before the tokenizer; see `counted`."""
    decoded: int
    """Of the text that the tokens give back, exact always."""
    counted: Counted
    """How `original` is known. `original`: exactly. `scaled`: the targets are a part of a text that the tokenizer
    changes (it normalises), and their decoded bytes were multiplied by the whole text's original ÷ decoded.
    `decoded`: nobody recorded the original's length, and these are the decoded bytes."""


def text_bytes(tokens: Tokens, targets: int) -> TextBytes:
    """Bytes of text of the stream's first `targets` targets.

    Raises `UserError` naming the first offending piece if what is counted is not the length of the decoded text; also
    if the stream is not what its `meta.json` describes, or there is no byte of text.
    """
    decoded = counted_bytes(tokens, targets)
    how: Counted = "decoded"
    original = decoded
    if tokens.text_bytes is not None:
        whole = tokens.decoded_bytes
        if tokens.recorded_bytes not in (None, whole):
            raise UserError(
                f"these tokens decode to {whole:,} bytes, but {tokens.recorded_bytes:,} were recorded when they were "
                "made: shards or tokenizer have changed since; build them again"
            )
        # Exact for the whole, and for any part where the tokenizer gives the text back to the byte.
        original = round(decoded * tokens.text_bytes / max(whole, 1))
        how = "original" if decoded == whole or tokens.text_bytes == whole else "scaled"
    if min(original, decoded) <= 0:
        raise UserError("nothing to score: the text has no bytes")
    return TextBytes(original, decoded, how)


def counted_bytes(tokens: Tokens, targets: int) -> int:
    """Bytes of decoded text of the stream's first `targets` targets, counted one by one and compared with the text.

    Raises `UserError` naming the first offending piece if the count is not the length of the decoded text.
    """
    total = 0
    for start in range(0, targets, _AT_ONCE):
        ids = tokens.read(start, min(start + _AT_ONCE, targets) + 1)
        counted = int(tokens.tokenizer.target_bytes(ids[:-1], ids[1:]).sum())
        text = tokens.tokenizer.decode(ids[1:], previous=int(ids[0]))
        if counted != len(text):
            raise UserError(_mismatch(tokens, start, ids, counted - len(text)))
        total += counted
    return total


def _mismatch(tokens: Tokens, start: int, ids: NDArray[np.uint16], excess: int) -> str:
    """What is wrong with the first of `ids[1:]`, read from position `start` on, that counts other bytes than it has."""
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
        f"byte accounting is wrong between positions {start + 1} and {start + len(ids) - 1} of the stream: together "
        f"these tokens count {excess:+d} bytes more than their text has, though each alone is right"
    )
