"""A passage of text, each piece coloured by the bits that the model spends on it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from html import escape
from typing import Any

from jepamba.report.records import number

BOUNDS = (0.25, 0.75, 1.5, 2.5, 4.0, 7.0)
"""Bits per byte at which the next colour starts; `assets/report.css` has the colours `.b0` to `.b6`."""
_LABELS = ("under ¼", "¼", "¾", "1½", "2½", "4", "7 and more")


def passage(record: Mapping[str, Any]) -> str:
    """Return the passage of summary.json with a scale of its colours; an empty string without pieces.

    Arguments: `record`, whose `documents` are lists of pairs (text, bits).
    """
    documents = record.get("documents")
    texts = [spans for pieces in (documents if isinstance(documents, list) else []) if (spans := _spans(pieces))]
    if not texts:
        return ""
    scale = "".join(f'<span class="b{index}">{label}</span>' for index, label in enumerate(_LABELS))
    return (
        "<p>The first held-out text, coloured by bits per byte: the stronger the colour, the less the finished model "
        "expected what is there. It starts without context. The cursor shows the bits of a piece.</p>"
        f'<div class="scale">bits per byte {scale}</div>' + "".join(f'<p class="card passage">{s}</p>' for s in texts)
    )


def _spans(pieces: Any) -> str:
    spans = []
    for piece in pieces if isinstance(pieces, list) else []:
        if not (isinstance(piece, list) and len(piece) == 2 and isinstance(piece[0], str)):
            continue
        text, bits = piece[0], number(piece[1])
        size = len(text.encode("utf-8", errors="replace"))
        if bits is not None and size:
            title = f"{bits:.2f} bits, {bits / size:.2f} per byte"
            spans.append(f'<span class="b{bisect_right(BOUNDS, bits / size)}" title="{title}">{escape(text)}</span>')
    return "".join(spans)
