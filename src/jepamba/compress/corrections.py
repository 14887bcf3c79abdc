"""What a tokenizer loses, as corrections of the text that it gives back.

Many tokenizers normalise: the published one turns every run of spaces and line ends into one space, "…" into "...".
A correction says: at this byte, leave out so many bytes and put these in their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from jepamba.errors import UserError

LONGEST = 255
"""Bytes that one correction drops or puts at most; longer ones are several."""
_SPACES = b" \t\n\r\f\v"
_NEAR, _KEY = 12, 4
_FAR, _FAR_KEY = 256, 8
_BLOCK = 1 << 14


class Correction(NamedTuple):
    """At byte `at` of the text that the tokens stand for, drop `drop` bytes and put `put`."""

    at: int
    drop: int
    put: bytes


def corrections(ours: bytes, wanted: bytes) -> list[Correction]:
    """What turns `ours` into `wanted`, in order. Finds small local changes; any other pair costs more, never fails."""
    found: list[Correction] = []
    i = j = 0
    while True:
        same = _agreement(ours, i, wanted, j)
        i, j = i + same, j + same
        if i == len(ours) and j == len(wanted):
            return found
        drop, put = _difference(ours, i, wanted, j)
        found += _split(i, drop, wanted[j : j + put])
        i, j = i + drop, j + put


def corrected(ours: bytes, changes: Iterable[Correction], size: int) -> bytes:
    """`ours` with `changes` made, `size` bytes in all. Raises `UserError` if they do not fit, at the first that does
    not."""
    text, done = bytearray(), 0
    for at, drop, put in changes:
        if not done <= at <= at + drop <= len(ours) or len(text) + at - done + len(put) > size:
            raise UserError("its corrections do not fit its text")
        text += ours[done:at] + put
        done = at + drop
    text += ours[done:]
    if len(text) != size:
        raise UserError(f"it decodes to {len(text):,} bytes and declares {size:,}")
    return bytes(text)


def _split(at: int, drop: int, put: bytes) -> Iterator[Correction]:
    while drop or put:
        yield Correction(at, min(drop, LONGEST), put[:LONGEST])
        at, drop, put = at + min(drop, LONGEST), max(drop - LONGEST, 0), put[LONGEST:]


def _agreement(ours: bytes, i: int, wanted: bytes, j: int) -> int:
    """How many bytes from `i` and `j` on are the same."""
    same = 0
    while True:
        a, b = ours[i + same : i + same + _BLOCK], wanted[j + same : j + same + _BLOCK]
        short = min(len(a), len(b))
        differ = np.frombuffer(a, np.uint8, short) != np.frombuffer(b, np.uint8, short)
        at = int(differ.argmax()) if short else 0
        if short < _BLOCK or differ[at]:
            return same + (at if short and differ[at] else short)
        same += short


def _difference(ours: bytes, i: int, wanted: bytes, j: int) -> tuple[int, int]:
    """(bytes to drop at `i` of ours, bytes of `wanted` from `j` to put there), at least one of them not 0."""
    blank = len(wanted[j : j + LONGEST]) - len(wanted[j : j + LONGEST].lstrip(_SPACES))
    if blank and ours[i : i + 1] == b" ":
        return 1, blank
    for total in range(1, _NEAR + 1):
        for drop in range(min(total, len(ours) - i) + 1):
            put = total - drop
            if j + put <= len(wanted) and ours[i + drop : i + drop + _KEY] == wanted[j + put : j + put + _KEY]:
                return drop, put
    for put in range(min(_FAR, len(wanted) - j - _FAR_KEY)):
        at = ours.find(wanted[j + put : j + put + _FAR_KEY], i, i + 2 * _FAR)
        if at >= 0 and (put or at > i):
            return at - i, put
    # Nothing alike nearby (or the end of one of them): give up on this much of both.
    return min(_FAR, len(ours) - i), min(_FAR, len(wanted) - j)
