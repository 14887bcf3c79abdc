"""Functions that several commands use."""

from __future__ import annotations

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Format `rows` as a text table with two spaces between columns.

    The first row holds the headings. Columns of numbers are aligned right, with their heading; others are aligned left.
    """
    layout = []
    for index, column in enumerate(zip(*rows, strict=True)):
        is_numeric = all(cell[:1].isdigit() or cell in ("", "–") for cell in column[1:]) and any(column[1:])
        layout.append((max(map(len, column)), str.rjust if index and is_numeric else str.ljust))
    lines = ("  ".join(align(cell, width) for cell, (width, align) in zip(row, layout, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def default_device() -> str:
    """Return `cuda` if a GPU is available, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
