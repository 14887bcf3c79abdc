"""Corrections: the differences between the decoded tokens and the original text.

Many tokenizers normalize their text: the published tokenizer turns every run of spaces and line ends into one space,
and "…" into "...".
A correction replaces some bytes of the decoded text at a given position by other bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from jepamba.errors import UserError

MAX_CORRECTION_BYTES = 255
"""Maximum of bytes that one correction drops or inserts. A larger difference becomes several corrections."""
_SPACES = b" \t\n\r\f\v"
_NEAR, _KEY = 12, 4
_FAR, _FAR_KEY = 256, 8
_BLOCK = 1 << 14


class Correction(NamedTuple):
    """At byte `at` of the decoded text, drop `drop` bytes and insert `insert`."""

    at: int
    drop: int
    insert: bytes


def find_corrections(decoded: bytes, original: bytes) -> list[Correction]:
    """Return corrections, in order, that turn `decoded` into `original`.

    They are compact for small local differences. Any other pair of texts works too, with more corrections.
    """
    result: list[Correction] = []
    i = j = 0
    while True:
        same = _common_prefix(decoded, i, original, j)
        i, j = i + same, j + same
        if i == len(decoded) and j == len(original):
            return result
        drop, put = _difference(decoded, i, original, j)
        result += _split(i, drop, original[j : j + put])
        i, j = i + drop, j + put


def apply_corrections(decoded: bytes, changes: Iterable[Correction], size: int) -> bytes:
    """Apply `changes` to `decoded`; the result has `size` bytes. Raises `UserError` at the first that does not fit."""
    text, done = bytearray(), 0
    for at, drop, insert in changes:
        if not done <= at <= at + drop <= len(decoded) or len(text) + at - done + len(insert) > size:
            raise UserError("its corrections do not fit its text")
        text += decoded[done:at] + insert
        done = at + drop
    text += decoded[done:]
    if len(text) != size:
        raise UserError(f"it decodes to {len(text):,} bytes but declares {size:,}")
    return bytes(text)


def _split(at: int, drop: int, insert: bytes) -> Iterator[Correction]:
    while drop or insert:
        yield Correction(at, min(drop, MAX_CORRECTION_BYTES), insert[:MAX_CORRECTION_BYTES])
        at += min(drop, MAX_CORRECTION_BYTES)
        drop, insert = max(drop - MAX_CORRECTION_BYTES, 0), insert[MAX_CORRECTION_BYTES:]


def _common_prefix(decoded: bytes, i: int, original: bytes, j: int) -> int:
    """Return the length of the common prefix of `decoded[i:]` and `original[j:]`."""
    same = 0
    while True:
        a, b = decoded[i + same : i + same + _BLOCK], original[j + same : j + same + _BLOCK]
        short = min(len(a), len(b))
        differ = np.frombuffer(a, np.uint8, short) != np.frombuffer(b, np.uint8, short)
        at = int(differ.argmax()) if short else 0
        if short < _BLOCK or differ[at]:
            return same + (at if short and differ[at] else short)
        same += short


def _difference(decoded: bytes, i: int, original: bytes, j: int) -> tuple[int, int]:
    """Return (bytes to drop at `decoded[i]`, bytes of `original[j:]` to insert there), not both 0."""
    blank = len(original[j : j + MAX_CORRECTION_BYTES]) - len(original[j : j + MAX_CORRECTION_BYTES].lstrip(_SPACES))
    if blank and decoded[i : i + 1] == b" ":
        return 1, blank
    for total in range(1, _NEAR + 1):
        for drop in range(min(total, len(decoded) - i) + 1):
            put = total - drop
            if j + put <= len(original) and decoded[i + drop : i + drop + _KEY] == original[j + put : j + put + _KEY]:
                return drop, put
    for put in range(min(_FAR, len(original) - j - _FAR_KEY)):
        at = decoded.find(original[j + put : j + put + _FAR_KEY], i, i + 2 * _FAR)
        if at >= 0 and (put or at > i):
            return at - i, put
    # No match nearby, or the end of one text: replace a block.
    return min(_FAR, len(decoded) - i), min(_FAR, len(original) - j)
